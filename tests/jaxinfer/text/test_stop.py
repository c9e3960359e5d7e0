"""Stop strings equal a search of the whole text, however the stream is cut."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.text import MAX_STOP_LENGTH, MAX_STOP_STRINGS, StopStringError, StopStrings, stop_automaton

ALPHABET = "ab\n"


def _cut(text: str, cuts: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(borders)]


def _search(text: str, stops: list[str], include: bool, closed: int = 0) -> tuple[str, str | None]:
    """By looking at every end, as if each character were a token (vLLM 0.32, check_stop_strings): a match must end
    behind the first `closed` characters."""
    for end in range(closed + 1, len(text) + 1):
        for stop in stops:
            if text.endswith(stop, 0, end):
                return text[:end] if include else text[: end - len(stop)], stop
    return text, None


def _stream(pieces: list[str], stops: list[str], include: bool, closed: int = 0) -> tuple[str, str | None]:
    watcher = StopStrings(stops, include_stop_str_in_output=include)
    watcher.closed = closed
    emitted = ""
    for piece in pieces:
        text, match = watcher.push(piece)
        emitted += text
        if match is not None:
            assert watcher.matched == match
            assert watcher.finish() == ""
            return emitted, match
    assert watcher.peek("") is None
    return emitted + watcher.finish(), watcher.matched


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    text=st.text(ALPHABET, max_size=30),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=6), max_size=5),
    cuts=st.lists(st.integers(0, 1000), max_size=12),
    include=st.booleans(),
    closed=st.just(0) | st.integers(0, 12),
)
def test_equals_a_search_of_the_whole_text(
    text: str, stops: list[str], cuts: list[int], include: bool, closed: int
) -> None:
    assert _stream(_cut(text, cuts), stops, include, closed) == _search(text, stops, include, closed)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text(ALPHABET, max_size=20),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=6), min_size=1, max_size=4),
    ahead=st.lists(st.text(ALPHABET, max_size=5), max_size=4),
    more=st.text(ALPHABET, max_size=8),
)
def test_looking_ahead_changes_nothing(text: str, stops: list[str], ahead: list[str], more: str) -> None:
    """`peek` gives what the whole text would end with, however often it was asked; what comes may go on with it."""
    watcher = StopStrings(stops)
    shown, match = watcher.push(text)
    if match is None:
        grown = ""
        for piece in ahead:
            grown += piece
            assert watcher.peek(grown) == _search(text + grown, stops, False)[1]
        for other in (more, grown[:-1]):
            assert watcher.peek(other) == _search(text + other, stops, False)[1]
        watcher.peek(grown)
        rest, match = watcher.push(grown + more)
        shown += rest
    if match is None:
        shown += watcher.finish()
    assert (shown, watcher.matched) == _search(text + "".join(ahead) + more, stops, False)


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
        assert (match is not None) == any(stop in seen for stop in stops), "a text ends at once"
        if match is not None:
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


def test_the_first_to_be_complete_wins_then_the_first_listed() -> None:
    for cut in (lambda text: [text], list):
        assert _stream(cut("abcdef"), ["abcdef", "cd"], False) == ("ab", "cd")
        assert _stream(cut("xabc"), ["abc", "ab"], True) == ("xab", "ab")
        assert _stream(cut("xabc"), ["abc", "bc"], False) == ("x", "abc")
        assert _stream(cut("xabc"), ["bc", "abc"], False) == ("xa", "bc")
        assert _stream(cut("xabc"), ["c", "abc", "bc"], False) == ("xab", "c")
        assert _stream(cut("a\n\n"), ["\n\n", "\n"], False) == ("a", "\n")


def test_looking_ahead_ends_nothing() -> None:
    watcher = StopStrings(["abcdef", "cde"], include_stop_str_in_output=True)
    assert watcher.push("xabcd") == ("x", None)
    assert watcher.peek("") is None
    assert watcher.peek("ef") == "cde"
    assert watcher.finish() == "abcd"
    assert watcher.matched is None
    assert watcher.finish() == ""
    assert watcher.peek("e") is None


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


# -- cost: counted, not timed ---------------------------------------------------------------------------------------


def _lines(run: Callable[[], object]) -> int:
    """Lines of stop.py that a run executes: its loops, whatever they hold."""
    count = 0

    def local(_frame: Any, event: str, _arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def trace(frame: Any, _event: str, _arg: object) -> Any:
        return local if frame.f_code.co_filename.endswith("jaxinfer/text/stop.py") else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def _long_borders() -> list[str]:
    """Strings whose ends are beginnings of each other, so that much is held and little of it is ever certain."""
    draw = random.Random(1)
    return [f"{'a' * (800 + 10 * i)}{draw.choice('bc')}" for i in range(8)] + [
        f"{'ab' * 400}{'a' * i}c" for i in range(7)
    ]


@pytest.mark.parametrize("text", ["a" * 4000, "ab" * 2000, ("a" * 799 + "b") * 5], ids=["a", "ab", "borders"])
def test_a_character_costs_the_same_however_many_and_long_the_stop_strings_are(text: str) -> None:
    automaton = stop_automaton(tuple(_long_borders()))

    def read(begin: int, end: int) -> int:
        watcher = StopStrings(automaton)
        watcher.push(text[:begin])
        return _lines(lambda: [watcher.push(text[i : i + 4]) for i in range(begin, end, 4)])

    early, late = read(0, 1000), read(3000, 4000)
    assert 1000 < late <= 30 * 1000, "lines for each new character"
    assert late <= 2 * early, "with much held, a character costs no more"


def test_what_was_seen_ahead_is_not_read_again() -> None:
    """A run of byte tokens waits in the detokenizer and is looked at with each token; then it comes all at once."""
    watcher = StopStrings(stop_automaton(tuple(_long_borders())))
    run = "ab" * 120

    def ahead() -> None:
        for end in range(1, len(run) + 1):
            assert watcher.peek(run[:end]) is None
        watcher.push(run)

    assert _lines(ahead) <= 60 * len(run)


def test_the_automaton_is_made_once_and_small() -> None:
    stops = tuple(f"{i}" + "xyz" * 300 for i in range(MAX_STOP_STRINGS))
    assert stop_automaton(stops) is stop_automaton((*stops,))
    automaton = stop_automaton(stops)
    held = sum(sys.getsizeof(value) for value in vars(automaton).values())
    assert held <= 20 * sum(map(len, stops)) + 4096, "bytes"
    assert _lines(lambda: StopStrings(automaton)) < 20
    assert _lines(lambda: type(automaton)(stops)) <= 40 * sum(map(len, stops))
