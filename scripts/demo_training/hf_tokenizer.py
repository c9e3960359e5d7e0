"""The sentencepiece BPE as a Hugging Face `tokenizer.json`, checked token for token before it is trusted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from demo_training.tokenizer import BOS, CHAT_PIECES, EOS, PAD, UNK

_BLANK = "\u2581"  # sentencepiece's mark for a space
# Texts on which two BPE implementations would part: blanks, newlines, bytes, markers, digits, nothing at all.
ODD_TEXTS = [
    "", " ", "\n", "  two  spaces ", "tab\tand\nnewline\n\n", "1234 + 99 = 12.5", "caf\u00e9 \U0001f600 \u6f22\u5b57",
    "<|user|>Hi<|end|><|assistant|>", "a<|end|> b <|end", "Z\u00fcrich \u2014 \u201cquoted\u201d", "<0x41>", "don't!?",
]  # fmt: skip


def merges(tokenizer: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """The merges behind the vocabulary, best first.

    Sentencepiece keeps scores, not merges: any two neighbours whose join is a piece may be joined, the best score
    first. A piece therefore gives one merge for each way to split it into two pieces.
    """
    pieces = {tokenizer.id_to_piece(i): i for i in range(tokenizer.vocab_size())}
    found: list[tuple[float, int, int, str, str]] = []
    for piece, index in pieces.items():
        if tokenizer.is_byte(index) or tokenizer.is_control(index) or piece in CHAT_PIECES or piece == UNK:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                found.append((-tokenizer.get_score(index), pieces[left], pieces[right], left, right))
    return [(left, right) for _, _, _, left, right in sorted(found)]


def build(tokenizer: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """The same tokenizer for the `tokenizers` library; with special tokens it puts bos in front."""
    vocabulary = {tokenizer.id_to_piece(i): i for i in range(tokenizer.vocab_size())}
    fast = Tokenizer(models.BPE(vocabulary, merges(tokenizer), unk_token=UNK, fuse_unk=True, byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_BLANK, prepend_scheme="never", split=False)
    fast.decoder = decoders.Sequence([decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.bos_id())]
    )
    specials = sorted([UNK, BOS, EOS, PAD, *CHAT_PIECES], key=tokenizer.piece_to_id)
    fast.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in specials])
    return fast


def write(path: Path, tokenizer: sentencepiece.SentencePieceProcessor, texts: Iterable[str]) -> None:
    """Writes tokenizer.json after comparing ids and decoded text with sentencepiece on the texts and the odd ones.

    Raises:
        ValueError: the two tokenizers differ on a text.
    """
    fast = build(tokenizer)
    for text in [*ODD_TEXTS, *texts]:
        theirs, ours = tokenizer.encode(text), fast.encode(text, add_special_tokens=False).ids
        if theirs != ours or fast.decode(ours, skip_special_tokens=False) != text:
            raise ValueError(f"tokenizer.json differs from tokenizer.model on {text!r}: {ours}, expected {theirs}")
    temporary = path.with_name(path.name + ".partial")
    fast.save(str(temporary))
    temporary.replace(path)
