"""Stop strings equal a search of the whole text, however the stream is cut."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.text import MAX_STOP_LENGTH, MAX_STOP_STRINGS, StopStringError, StopStrings

ALPHABET = "ab\n"


def _cut(text: str, cuts: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(borders)]


def _search(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    found = [(text.find(stop), order) for order, stop in enumerate(stops) if stop in text]
    if not found:
        return text, None
    start, order = min(found)
    return text[: start + len(stops[order])] if include else text[:start], stops[order]


def _stream(pieces: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    watcher = StopStrings(stops, include_stop_str_in_output=include)
    emitted = ""
    for piece in pieces:
        text, match = watcher.push(piece)
        emitted += text
        if match is not None:
            assert watcher.matched == match
            assert watcher.finish() == ""
            return emitted, match
    expected = watcher.peek("")
    emitted += watcher.finish()
    assert watcher.matched == expected
    return emitted, watcher.matched


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    text=st.text(ALPHABET, max_size=30),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=6), max_size=5),
    cuts=st.lists(st.integers(0, 1000), max_size=12),
    include=st.booleans(),
)
def test_equals_a_search_of_the_whole_text(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    assert _stream(_cut(text, cuts), stops, include) == _search(text, stops, include)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text(ALPHABET, max_size=30),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=6), min_size=1, max_size=4),
)
def test_holds_back_no_more_than_it_must(text: str, stops: list[str]) -> None:
    """Without a match, what is held is exactly the longest end of the text that begins a stop string."""
    watcher = StopStrings(stops)
    emitted = ""
    for end, character in enumerate(text, 1):
        piece, match = watcher.push(character)
        emitted += piece
        seen = text[:end]
        if match is not None or any(stop in seen for stop in stops):
            return
        begins = [n for n in range(len(seen) + 1) if any(stop.startswith(seen[len(seen) - n :]) for stop in stops)]
        assert emitted == seen[: len(seen) - max(begins)]


def test_examples() -> None:
    watcher = StopStrings(["\n\nHuman:", "STOP"])
    assert watcher.push("Hello\n") == ("Hello", None)
    assert watcher.push("\nHum") == ("", None)
    assert watcher.push("ble\nST") == ("\n\nHumble\n", None)
    assert watcher.push("OP and more") == ("", "STOP")
    with pytest.raises(RuntimeError, match="after the text has ended"):
        watcher.push("x")


def test_the_earliest_wins_then_the_first_listed() -> None:
    assert _stream(["abcdef"], ["cd", "abcdef"], False) == ("", "abcdef")
    assert _stream(list("abcdef"), ["cd", "abcdef"], False) == ("", "abcdef")
    assert _stream(list("abcdx"), ["cd", "abcdef"], False) == ("ab", "cd")
    assert _stream(list("xab"), ["ab", "abc"], True) == ("xab", "ab")
    assert _stream(list("xabc"), ["abc", "ab"], True) == ("xabc", "abc")
    assert _stream(list("xabd"), ["abc", "ab"], True) == ("xab", "ab")


def test_a_complete_stop_string_without_rival_ends_the_text_at_once() -> None:
    watcher = StopStrings(["\n", "\n\n"])
    assert watcher.push("a\n") == ("a", "\n")


def test_finish_and_peek_decide_what_push_leaves_open() -> None:
    watcher = StopStrings(["abcdef", "cd"], include_stop_str_in_output=True)
    assert watcher.push("xabcd") == ("x", None)
    assert watcher.peek("") == "cd"
    assert watcher.peek("ef") == "abcdef"
    assert watcher.finish() == "abcd"
    assert watcher.matched == "cd"
    assert watcher.finish() == ""
    assert watcher.peek("cd") is None


def test_without_stops_everything_passes() -> None:
    watcher = StopStrings([])
    assert watcher.push("anything") == ("anything", None)
    assert watcher.finish() == ""


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        ("ab", "stop must be a list of strings, not str"),
        (None, "stop must be a list of strings, not NoneType"),
        ([""], rf"stop\[0\] must have 1 to {MAX_STOP_LENGTH} characters, got 0"),
        (["a", "b" * (MAX_STOP_LENGTH + 1)], rf"stop\[1\] must have 1 to {MAX_STOP_LENGTH} characters, got 1025"),
        (["a", 5], r"stop\[1\] must be a string, not int"),
        (["a"] * (MAX_STOP_STRINGS + 1), "at most 16 strings, got 17"),
        (["\ud800"], r"stop\[0\] holds a lone surrogate"),
    ],
)
def test_limits(stops: Any, message: str) -> None:
    with pytest.raises(StopStringError, match=message):
        StopStrings(stops)
    StopStrings(["b" * MAX_STOP_LENGTH] * MAX_STOP_STRINGS)
