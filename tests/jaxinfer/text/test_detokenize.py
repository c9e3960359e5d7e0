"""Incremental detokenization: equal to decoding at once, in whole characters, at constant cost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.text import IncrementalDetokenizer, StopStrings, TextError, Tokenizer
from jaxinfer.text.decoding import DecodePlan, clean_up
from jaxinfer.text.detokenize import MAX_HELD_BYTES
from tests.jaxinfer.text.golden_cases import read, tokenizer

# One of each way to decode: bytes with and without a prefix space, byte fallback with and without the strip at the
# start, per-token spaces, clean-up, and no decoder at all.
KINDS = [
    "byte_level",
    "byte_level_prefix",
    "llama_json",
    "llama_json_no_prefix",
    "llama_model_added",
    "gemma_json",
    "generic_model_rules",
    "metaspace_unigram",
    "word_level",
]
FALLBACK = ["llama_json", "gemma_json", "metaspace_unigram"]
BAD = "\ufffd"


def _stream(
    loaded: Tokenizer, prompt: Sequence[int], ids: Sequence[int], chunks: Sequence[int], skip: bool
) -> list[str]:
    """The pieces for ids cut into chunks of the given lengths (repeated as needed); the last is finish's."""
    detokenizer = IncrementalDetokenizer(loaded, prompt, skip_special_tokens=skip)
    pieces, position, lengths = [], 0, itertools.cycle(chunks)
    while position < len(ids):
        length = next(lengths)
        pieces.append(detokenizer.push(ids[position : position + length]))
        position += length
    held = detokenizer.held
    pieces.append(detokenizer.finish())
    assert pieces[-1] == held
    assert detokenizer.finish() == ""
    return pieces


@st.composite
def _ids(draw: Any, name: str, max_size: int) -> list[int]:
    """Random ids, mixed with stretches of encoded text, so that valid and broken characters both occur."""
    loaded = tokenizer(name)
    texts = read("inputs.json")["texts"]
    parts: list[int] = []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            parts += draw(st.lists(st.integers(0, loaded.vocab_size + 1), max_size=max_size))
        else:
            ids = loaded.encode(draw(st.sampled_from(texts)), add_special_tokens=False)
            start = draw(st.integers(0, max(0, len(ids) - 1)))
            parts += ids[start : start + draw(st.integers(0, max_size))]
    return parts


@pytest.mark.parametrize("name", KINDS)
def test_concatenation_equals_decoding_at_once(name: str) -> None:
    loaded = tokenizer(name)

    @settings(max_examples=250, deadline=None, derandomize=True)
    @given(ids=_ids(name, 12), chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4), skip=st.booleans())
    def check(ids: list[int], chunks: list[int], skip: bool) -> None:
        text = "".join(_stream(loaded, [], ids, chunks, skip))
        assert text == loaded.decode(ids, skip_special_tokens=skip)

    check()


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_gives_the_context(name: str) -> None:
    loaded = tokenizer(name)
    compared = 0

    @settings(max_examples=250, deadline=None, derandomize=True)
    @given(prompt=_ids(name, 5), ids=_ids(name, 8), skip=st.booleans())
    def check(prompt: list[int], ids: list[int], skip: bool) -> None:
        nonlocal compared
        text = "".join(_stream(loaded, prompt, ids, [1], skip))
        before = loaded.decode(prompt, skip_special_tokens=skip)
        whole = loaded.decode([*prompt, *ids], skip_special_tokens=skip)
        # Elsewhere the prompt ends inside a character that generation completes; the examples below say what is due.
        if whole.startswith(before):
            assert text == whole[len(before) :]
            compared += 1

    check()
    assert compared > 150


@pytest.mark.parametrize("name", KINDS)
def test_never_half_a_character(name: str) -> None:
    """Text that encodes and decodes without loss streams in pieces that are beginnings of it, without U+FFFD."""
    loaded = tokenizer(name)
    checked = 0
    for text in read("inputs.json")["texts"]:
        ids = loaded.encode(text, add_special_tokens=False)
        whole = loaded.decode(ids, skip_special_tokens=False)
        if BAD in whole:
            continue
        pieces = _stream(loaded, [], ids, [1], skip=False)
        assert not any(BAD in piece for piece in pieces)
        shown = ""
        for piece in pieces:
            shown += piece
            assert whole.startswith(shown)
        assert shown == whole
        checked += 1
    assert checked > 30


@pytest.mark.parametrize("name", [*FALLBACK, "byte_level"])
def test_every_character_of_an_emoji_sequence_comes_whole(name: str) -> None:
    loaded = tokenizer(name)
    text = "a👩‍👩‍👧‍👦e\u0301日b"
    pieces = _stream(loaded, [], loaded.encode(text, add_special_tokens=False), [1], skip=True)
    assert "".join(pieces).strip() == text
    assert sum(bool(piece) for piece in pieces) >= 3
    for piece in pieces:
        piece.encode("utf-8")


def _bytes(loaded: Tokenizer, data: bytes) -> list[int]:
    """Ids of the tokens that stand for single bytes."""
    plan = loaded.decode_plan
    table = {}
    for index in range(loaded.vocab_size):
        if plan.byte_level and len(plan.token_bytes(index)) == 1:
            table.setdefault(plan.token_bytes(index)[0], index)
        elif not plan.byte_level and (byte := plan.fallback_byte(index)) is not None:
            table[byte] = index
    return [table[byte] for byte in data]


def _pushed(loaded: Tokenizer, prompt: bytes, data: bytes) -> list[str]:
    word = loaded.encode("the", add_special_tokens=False)
    return _stream(loaded, [*word, *_bytes(loaded, prompt)], _bytes(loaded, data), [1], skip=True)


def test_bad_bytes_come_out_as_soon_as_they_are_certain() -> None:
    loaded = tokenizer("byte_level")
    assert _pushed(loaded, b"", b"\xff\xffa") == [BAD, BAD, "a", ""]
    assert _pushed(loaded, b"", b"\xe4\xb8a") == ["", "", BAD + "a", ""]
    assert _pushed(loaded, b"", b"\xe4\xb8") == ["", "", BAD]
    assert _pushed(loaded, b"", b"\xed\xa0\x80") == ["", "", BAD * 3, ""]
    assert _pushed(loaded, b"", b"\xed\xa0") == ["", "", BAD * 2]
    assert _pushed(loaded, b"", "中".encode()) == ["", "", "中", ""]
    # U+FFFD that is really written is a character like any other.
    assert _pushed(loaded, b"", BAD.encode()) == ["", "", BAD, ""]


def test_a_run_of_byte_tokens_is_one_unit() -> None:
    loaded = tokenizer("llama_json")
    assert _pushed(loaded, b"", "中".encode()) == ["", "", "", "中"]
    assert _pushed(loaded, b"", b"\n\xff") == ["", BAD * 2, ""]
    assert _pushed(loaded, b"", b"\xff\n\xff") == [BAD, BAD, BAD, ""]
    assert _pushed(loaded, b"", b"\xe4\xb8") == ["", "", BAD * 2]
    word = loaded.encode("a", add_special_tokens=False)
    newline = _bytes(loaded, b"\n")
    assert _stream(loaded, word, [*newline, *newline, *word], [1], skip=True)[-2:] == ["\n\n a", ""]


@pytest.mark.parametrize("name", ["byte_level", "llama_json"])
def test_a_character_that_the_prompt_begins(name: str) -> None:
    loaded = tokenizer(name)
    euro = "€".encode()
    # Completed: it is generated text. Broken: its U+FFFD is the prompt's. Left open: nothing was generated.
    assert "".join(_pushed(loaded, euro[:1], euro[1:])) == "€"
    assert "".join(_pushed(loaded, b"x" + euro[:2], euro[2:] + b"y")) == "€y"
    assert "".join(_pushed(loaded, euro[:2], b"")) == ""
    broken = "".join(_pushed(loaded, euro[:2], b"a"))
    assert broken == ("a" if name == "byte_level" else BAD)
    still_open = "".join(_pushed(loaded, euro[:1], euro[1:2]))
    assert still_open == ("" if name == "byte_level" else BAD)
    # A whole character before generation stays the prompt's.
    assert "".join(_pushed(loaded, euro, euro)) == "€"


def test_the_space_at_the_start_of_a_text() -> None:
    loaded = tokenizer("llama_json")
    ids = loaded.encode("the", add_special_tokens=False)
    assert loaded.token_to_piece(ids[0]).startswith("▁")
    assert _stream(loaded, [], ids, [1], skip=True)[0] == "the"
    assert _stream(loaded, [1], ids, [1], skip=True)[0] == "the"  # a skipped BOS is no text
    assert _stream(loaded, [1], ids, [1], skip=False)[0] == " the"
    assert _stream(loaded, ids, ids, [1], skip=True)[0] == " the"


def test_a_long_run_of_byte_tokens_does_not_wait_for_ever() -> None:
    loaded = tokenizer("llama_json")
    ids = _bytes(loaded, "é".encode() * 400 + b"\n")
    pieces = _stream(loaded, [1], ids, [1], skip=True)
    assert "".join(pieces) == "é" * 400 + "\n" == loaded.decode(ids)
    assert max(map(len, pieces)) <= MAX_HELD_BYTES // 2
    # If it breaks only after that, what is out stays out, and each byte that waited is a U+FFFD.
    broken = _stream(loaded, [1], [*ids[:700], *_bytes(loaded, b"\xff\xff")], [1], skip=True)
    assert "".join(broken) == "é" * 256 + BAD * (700 - 512 + 2)
    # The break ends with the run.
    word = loaded.encode("the", add_special_tokens=False)
    after = _stream(loaded, word, [*_bytes(loaded, b"\xff"), *word, *_bytes(loaded, b"\n")], [1], skip=True)
    assert "".join(after) == BAD + " the\n"


@pytest.mark.parametrize("name", KINDS)
def test_cost_does_not_grow_with_the_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tokenizer(name)
    lengths: list[int] = []
    decode = DecodePlan.text

    def counted(plan: DecodePlan, ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return decode(plan, ids)

    monkeypatch.setattr(DecodePlan, "text", counted)
    rng = random.Random(0)
    ids = [rng.randrange(loaded.vocab_size) for _ in range(6000)]
    detokenizer = IncrementalDetokenizer(loaded, ids[:3000])
    totals = []
    for index in ids[3000:]:
        detokenizer.push([index])
        totals.append(sum(lengths))
    # Ids handed to the decoder per pushed id, in the second half of the text: the tables are filled by then.
    assert (totals[-1] - totals[1500]) / 1500 < 4
    assert max(lengths, default=0) <= MAX_HELD_BYTES + 2


def test_held_text_lets_a_stop_string_end_the_text_at_once() -> None:
    loaded = tokenizer("llama_json")
    detokenizer, stops = IncrementalDetokenizer(loaded, [1]), StopStrings(["\n"])
    word = loaded.encode("the", add_special_tokens=False)
    assert stops.push(detokenizer.push(word)) == ("the", None)
    assert stops.push(detokenizer.push(_bytes(loaded, b"\n"))) == ("", None)
    assert detokenizer.held == "\n"
    assert stops.peek(detokenizer.held) == "\n"
    assert stops.push(detokenizer.finish()) == ("", "\n")


def test_arguments_are_checked() -> None:
    loaded = tokenizer("byte_level")
    with pytest.raises(TextError, match=r"prompt_ids\[0\] must be an integer"):
        IncrementalDetokenizer(loaded, [-1])
    detokenizer = IncrementalDetokenizer(loaded, [])
    with pytest.raises(TextError, match=r"ids\[1\] must be an integer"):
        detokenizer.push([1, True])
    # Ids beyond the vocabulary have no text, as in decode.
    assert detokenizer.push([loaded.vocab_size + 5]) == ""
    detokenizer.finish()
    with pytest.raises(RuntimeError, match="push after finish"):
        detokenizer.push([1])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=st.text(" .?!,'nmtsvrexa", max_size=40), cuts=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_clean_up_over_a_stream(text: str, cuts: list[int]) -> None:
    from jaxinfer.text.detokenize import _Cleaner

    cleaner, position, shown = _Cleaner(), 0, ""
    for length in itertools.cycle(cuts):
        if position >= len(text):
            break
        shown += cleaner.push(text[position : position + length])
        assert clean_up(text).startswith(shown)
        position += length
    assert shown + cleaner.rest("") == clean_up(text)


_NASTY = b"a\n\x7f\x80\xbf\xc2\xe0\xa0\xe4\xb8\xad\xed\x9f\xef\xbf\xbd\xf0\x90\xf4\x8f\xff"


@pytest.mark.parametrize("name", ["byte_level", "llama_json"])
def test_broken_utf8_at_and_after_the_border_of_the_prompt(name: str) -> None:
    loaded = tokenizer(name)
    bytes_of = dict(zip(_NASTY, _bytes(loaded, _NASTY), strict=True))
    word = loaded.encode("the", add_special_tokens=False)
    ids = st.lists(st.sampled_from([*bytes_of.values(), word[0]]), max_size=6)

    @settings(max_examples=600, deadline=None, derandomize=True)
    @given(prompt=ids, generated=ids)
    def check(prompt: list[int], generated: list[int]) -> None:
        text = "".join(_stream(loaded, prompt, generated, [1], skip=True))
        before, whole = loaded.decode(prompt), loaded.decode([*prompt, *generated])
        if whole.startswith(before):
            assert text == whole[len(before) :]
        if not prompt:
            assert text == whole

    check()
