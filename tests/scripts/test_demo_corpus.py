"""The demo model's text and tokenizer: its documents and rows, agreement of the two tokenizer files."""

from __future__ import annotations

import collections
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxinfer.text.chat import ChatTemplates

pytestmark = pytest.mark.longer

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as `python scripts/train_demo.py` has it

from demo_corpus import (  # noqa: E402
    Document,
    check_not_held_out,
    held_out_texts,
    long_documents,
    short_documents,
)
from demo_corpus.dialogues import asks, says  # noqa: E402
from demo_training import hf_tokenizer  # noqa: E402
from demo_training import tokenizer as demo_tokenizer  # noqa: E402
from demo_training.rows import make_rows  # noqa: E402

VOCAB = 1024
TEMPLATES = ChatTemplates(demo_tokenizer.CHAT_TEMPLATE, "the demo's")


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    demo_tokenizer.train_tokenizer(path, seed=0, vocab_size=VOCAB)
    return path


# --- corpus


def _first(documents: Iterator[Document], count: int) -> list[Document]:
    return list(itertools.islice(documents, count))


def test_the_seed_decides_the_corpus() -> None:
    first, again, other = (_first(short_documents(seed), 50) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert _first(long_documents(3, 400), 5) == _first(long_documents(3, 400), 5)


def test_chats_alternate_and_their_sums_are_right() -> None:
    sums = 0
    for document in _first(short_documents(0), 1500):
        kinds = ["call" if "tool_calls" in message else message["role"] for message in document.messages]
        said = " ".join(kind for kind in kinds if kind != "system")
        assert re.fullmatch(r"(user (call (tool ?)+)?assistant ?)*", said), said
        for message in document.messages:
            if message["role"] == "assistant" and (
                match := re.search(r"(\d+) \+ (\d+) = (\d+)\.$", message["content"])
            ):
                assert int(match[1]) + int(match[2]) == int(match[3])
                sums += 1
    assert sums > 50


def test_long_documents_answer_from_their_text() -> None:
    for document in _first(long_documents(1, 400), 20):
        turns = [message for message in document.messages if message["role"] != "system"]
        text = turns[0]["content"]
        assert 100 <= len(text.split()) <= 900
        for answer in turns[1::2]:
            assert answer["content"].removesuffix(".") in text


def test_no_document_says_what_evaluation_asks() -> None:
    asked = held_out_texts()
    documents = itertools.chain(_first(short_documents(5), 3000), _first(long_documents(5, 300), 30))
    assert sum(1 for _ in check_not_held_out(documents, asked)) == 3030
    leaked = Document(messages=[{"role": "user", "content": min(asked)}])
    with pytest.raises(ValueError, match="held-out text"):
        list(check_not_held_out(iter([leaked]), asked))


# --- tokenizer


def test_tokenizer_gives_back_every_text(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    assert tokenizer.vocab_size() == VOCAB
    for text in [*hf_tokenizer.ODD_TEXTS, *demo_tokenizer.plain_texts(9, 30)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("\u6f22", out_type=str) == ["<0xE6>", "<0xBC>", "<0xA2>"]
    assert tokenizer.encode("1234", out_type=str) == ["1", "2", "3", "4"]
    assert tokenizer.encode("\n", out_type=str) == ["<0x0A>"]
    assert [tokenizer.piece_to_id(piece) for piece in ("<unk>", "<s>", "</s>", "<pad>")] == [0, 1, 2, 3]


def test_chat_is_encoded_with_its_markers(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    documents = (document for document in short_documents(0) if document.messages)
    document = next(document for document in documents if not (document.tools or document.thinking))
    ids, learned = demo_tokenizer.encode_document(tokenizer, document)
    assert ids[0] == tokenizer.bos_id()
    assert ids[-2:] == [tokenizer.piece_to_id("<|end|>"), tokenizer.eos_id()]
    assert ids.count(tokenizer.piece_to_id("<|end|>")) == len(document.messages)
    assert ids[1] == tokenizer.piece_to_id(f"<|{document.messages[0]['role']}|>")
    # learned: bos, the answers with their <|end|>, eos; nothing that a user or a system says, and no role marker
    answers = [message["content"] for message in document.messages if message["role"] == "assistant"]
    text = tokenizer.decode([token for token, learn in zip(ids[1:-1], learned[1:-1], strict=True) if learn])
    assert text == "".join(f"{answer}<|end|>" for answer in answers)
    assert learned[0]
    assert learned[-1]


def _shown(document: Document) -> str:
    """By the template, with the settings that the document has."""
    return TEMPLATES.render(
        document.messages,
        add_generation_prompt=False,
        tools=document.tools or None,
        template=None,
        variables={"enable_thinking": document.thinking},
        special_tokens={"bos_token": "<s>"},
    )


def test_chats_are_encoded_as_the_template_shows_them(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    seen = collections.Counter[tuple[bool, bool]]()
    for document in _first(short_documents(2), 400):
        if document.messages:
            ids, _ = demo_tokenizer.encode_document(tokenizer, document)
            assert ids == [
                tokenizer.bos_id(),
                *tokenizer.encode(_shown(document).removeprefix("<s>")),
                tokenizer.eos_id(),
            ]
            seen[bool(document.tools), document.thinking] += 1
    assert min(seen[kind] for kind in itertools.product((False, True), repeat=2)) > 10


def test_of_a_chat_with_thinking_the_last_answer_is_learned(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    call = {"function": {"name": "f", "arguments": {"n": 1}}}
    messages = [
        asks("One?"),
        says("Two."),
        asks("Three?"),
        says("", "I call.", [call]),
        {"role": "tool", "content": "5"},
    ]
    tool = {"function": {"name": "f", "description": "F", "parameters": {"properties": {}, "required": []}}}
    for thinking, learned in (
        (True, 'I call.\n</think>\n<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call><|end|>'),
        (False, 'Two.<|end|><tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call><|end|>Six.<|end|>'),
    ):
        chat = [*messages, says("Six.")]
        if not thinking:
            chat = [{key: value for key, value in m.items() if key != "reasoning_content"} for m in chat]
        ids, marks = demo_tokenizer.encode_document(tokenizer, Document(messages=chat, tools=[tool], thinking=thinking))
        shown = [token for token, learn in zip(ids[1:-1], marks[1:-1], strict=True) if learn]
        assert tokenizer.decode(shown) == learned


def test_rows_start_with_a_document_and_hold_what_follows(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    rows = make_rows(tokenizer, frozenset(), 5, 6, 256, long=False)
    assert rows.ids.shape == rows.learned.shape == (6, 257)
    assert (rows.ids[:, 0] == tokenizer.bos_id()).all()
    expected = (demo_tokenizer.encode_document(tokenizer, document) for document in short_documents(5))
    ids, learned = map(
        list, zip(*(pair for pair in itertools.islice(expected, 20) if len(pair[0]) <= 257), strict=True)
    )
    flat, marks = (list(itertools.chain.from_iterable(part))[:257] for part in (ids, learned))
    assert rows.ids[0].tolist() == flat
    assert rows.learned[0].tolist() == marks
    assert 0.2 < rows.learned.mean() < 0.9
    first, second = rows.batch(4, 3), rows.batch(10, 3)  # begins again behind the last row
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[0][2], rows.ids[0])


def test_long_rows_start_with_a_long_document(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    rows = make_rows(tokenizer, frozenset(), 5, 3, 1024, long=True)
    separator = tokenizer.eos_id()
    assert all(row.tolist().index(separator) > 150 for row in rows.ids)
    with pytest.raises(ValueError, match="rows of 16 tokens are too short"):
        make_rows(tokenizer, frozenset(), 5, 1, 16, long=True)


def test_a_tokenizer_json_that_disagrees_is_not_written(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    texts = list(demo_tokenizer.plain_texts(9, 50))
    hf_tokenizer.write(tmp_path / "good.json", tokenizer, texts)
    fast = Tokenizer.from_file(str(tmp_path / "good.json"))
    assert fast.encode("Once upon a time").ids == [tokenizer.bos_id(), *tokenizer.encode("Once upon a time")]
    whole = hf_tokenizer.merges(tokenizer)
    monkeypatch.setattr(hf_tokenizer, "merges", lambda _: whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"differs from tokenizer\.model"):
        hf_tokenizer.write(tmp_path / "bad.json", tokenizer, texts)
    assert {path.name for path in tmp_path.iterdir()} == {"good.json"}
