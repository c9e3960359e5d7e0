"""The demo model's tokenizer: a sentencepiece BPE trained on the corpus, with byte fallback and chat markers."""

from __future__ import annotations

import io
import itertools
import re
import string
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from demo_corpus import Document, short_documents

from demo_training.turns import END, ROLES, chat_turns

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
CHAT_PIECES = [*ROLES.values(), END]
# Jinja with the same text as `chat_turns`; what follows <|assistant|> is the model's turn.
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
_TRAINING_DOCUMENTS = 20_000
# Strings without meaning, such as K7QX2: pieces learned from them would be worth nothing, and a string is reversed or
# copied character by character more easily when each character is a piece.
_CODE = re.compile(r"\b(?=\w*[A-Z])[A-Z0-9]{3,}\b")


def plain_texts(seed: int, count: int) -> Iterable[str]:
    """The corpus line by line, without markers. A newline is never in a line, so it stays a byte piece as in Llama."""
    for document in itertools.islice(short_documents(seed), count):
        contents = [document.text] if document.text else [message["content"] for message in document.messages]
        yield from itertools.chain.from_iterable(_CODE.sub("", content).split("\n") for content in contents)


def train_tokenizer(path: Path, *, seed: int, vocab_size: int) -> None:
    """Trains a BPE tokenizer on text made from the seed and writes `tokenizer.model` bytes to the path.

    No dummy prefix, no normalization, no collapsing of blanks: decoding gives back exactly the text that was encoded.

    Raises:
        RuntimeError: from sentencepiece, when the corpus cannot fill `vocab_size` pieces.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(plain_texts(seed, _TRAINING_DOCUMENTS)),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        required_chars="".join(sorted(set(string.printable) - set(string.whitespace))),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_piece=UNK,
        bos_piece=BOS,
        eos_piece=EOS,
        pad_piece=PAD,
        user_defined_symbols=CHAT_PIECES,
        num_threads=1,
        minloglevel=2,
    )
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(model.getvalue())
    temporary.replace(path)


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer in the file."""
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def encode_document(
    tokenizer: sentencepiece.SentencePieceProcessor, document: Document
) -> tuple[list[int], list[bool]]:
    """Token ids of one document (bos, the story or the rendered chat, eos), and which of them are learned.

    What users, systems and functions say is not learned, unless the document says so: most of it is drawn at random,
    and its gradient would be noise. Nor is what the template writes, and of a chat with thinking what was said before
    its last question: its reasoning is not shown any more, and without one the model answers differently.
    """
    if document.text:
        ids = [tokenizer.bos_id(), *tokenizer.encode(document.text), tokenizer.eos_id()]
        return ids, [True] * len(ids)
    ids, learned = [tokenizer.bos_id()], [True]
    for turn in chat_turns(document):
        head, body = tokenizer.encode(turn.head), tokenizer.encode(turn.head + turn.body)
        if body[: len(head)] != head:
            raise ValueError(f"a prompt that ends with {turn.head!r} would have other tokens than the whole turn")
        ids += body
        learned += [False] * len(head) + [document.learn_all or turn.learned] * (len(body) - len(head))
    return [*ids, tokenizer.eos_id()], [*learned, True]
