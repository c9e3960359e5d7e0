"""Where stop strings count: behind the first tokens, and in the answer, not in the reasoning before it."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.text import AnswerReading, AnswerStops, StopStrings
from jaxinfer.text.answers import PUT_IN, CallArguments, Content, Event, OutputParser, OutputParserNames
from jaxinfer.text.answers.reasoning import ReasoningSplitter

THINK = OutputParserNames(reasoning="think")
PIECES = ("<think>", "</think>", "a", "b", " ", "\n", "<", "think>", "</")


def answer_begins(text: str, begun: bool) -> int | None:
    """Where the answer begins; None where the text is all reasoning. One closing tag at most."""
    opened = re.match(r"\s*<think>", text)
    if not begun and opened is None:
        return 0
    closed = re.compile(r"</think>\s*").search(text, 0 if opened is None else opened.end())
    return None if closed is None else closed.end()


def search(text: str, stops: list[str], begin: int | None, opens: int) -> tuple[str, str | None]:
    """The text up to the stop string from `begin` on that is the first to end behind the first `opens` characters."""
    begin = len(text) if begin is None else begin
    found = [
        (place + len(stop), order, place)
        for place in range(begin, len(text))
        for order, stop in enumerate(stops)
        if text.startswith(stop, place) and place + len(stop) > opens
    ]
    return (text, None) if not found else (text[: min(found)[2]], stops[min(found)[1]])


def play(text: str, stops: list[str], reading: AnswerReading, cuts: list[int], opens: int) -> tuple[str, str | None]:
    """In pieces; stop strings open with the piece that ends after `opens` characters."""
    watcher = AnswerStops(StopStrings(stops), reading.splitter(), opened=not opens)
    borders = sorted({0, len(text), min(opens, len(text)), *(cut % (len(text) + 1) for cut in cuts)})
    shown = ""
    for start, end in itertools.pairwise(borders):
        piece, match = watcher.push(text[start:end])
        shown += piece
        if match is not None:
            return shown, match
        if end == opens:
            watcher.open(0)
    return shown + watcher.finish(), watcher.matched


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join).filter(lambda text: text.count("</think>") < 2),
    stops=st.lists(st.text("ab<\nt", min_size=1, max_size=3), min_size=1, max_size=3),
    begun=st.booleans(),
    cuts=st.lists(st.integers(0, 1000), max_size=12),
    opens=st.just(0) | st.integers(0, 12),
)
def test_equals_a_search_of_the_answer(text: str, stops: list[str], begun: bool, cuts: list[int], opens: int) -> None:
    begin = answer_begins(text, begun)
    assert play(text, stops, AnswerReading(THINK, begun=begun), cuts, opens) == search(text, stops, begin, opens)


HARMONY = OutputParserNames("harmony", "harmony")
CHANNELS = (
    *("<|start|>assistant", "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|>", "<|channel|>"),
    *("<|channel|>commentary to=functions.f<|message|>", "a", "b", " ", "\n", "<", "<|", "to=f"),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.lists(st.sampled_from(CHANNELS), max_size=10).map("".join),
    stops=st.lists(st.text("abn<\nt", min_size=1, max_size=3), min_size=1, max_size=3),
    begun=st.booleans(),
    cuts=st.lists(st.integers(0, 1000), max_size=12),
    opens=st.just(0) | st.integers(0, 12),
)
def test_an_answer_in_channels_begins_with_its_first_text_that_is_no_reasoning(
    text: str, stops: list[str], begun: bool, cuts: list[int], opens: int
) -> None:
    parser = OutputParser(HARMONY, tools={"f"}, begun=begun)
    told = [event for event in [*parser.push(text), *parser.finish()] if isinstance(event, Content | CallArguments)]
    begin = next((event.at for event in told if event.at != PUT_IN), None)
    reading = AnswerReading(HARMONY, frozenset({"f"}), begun=begun)
    assert play(text, stops, reading, cuts, opens) == search(text, stops, begin, opens)


@pytest.mark.parametrize(
    ("text", "begun", "stops", "shown", "match"),
    [
        ("<think>a stop</think>\n\nb stop c", False, ["stop"], "<think>a stop</think>\n\nb ", "stop"),
        ("a stop</think>b stop c", True, ["stop"], "a stop</think>b ", "stop"),
        ("b stop c", False, ["stop"], "b ", "stop"),
        ("<think>a stop and no end", False, ["stop"], "<think>a stop and no end", None),
        ("<think>a</think>\n\nb\n\nc", False, ["\n\n"], "<think>a</think>\n\nb", "\n\n"),
        ("<think>a</think>bc", False, ["think>b", ">bc", "</think>"], "<think>a</think>bc", None),
        ("\n\nb", False, ["\n\n"], "", "\n\n"),
        ("<th stop", False, ["<th"], "", "<th"),
        ("<th", False, ["<th"], "", "<th"),
        ("<think> stop <think> stop </think> b stop", False, ["stop"], "<think> stop <think> stop </think> b ", "stop"),
    ],
)
def test_stop_strings_wait_for_the_answer(
    text: str, begun: bool, stops: list[str], shown: str, match: str | None
) -> None:
    for cuts in ([], list(range(len(text)))):
        assert play(text, stops, AnswerReading(THINK, begun=begun), cuts, 0) == (shown, match)


def test_a_format_without_reasoning_waits_for_nothing() -> None:
    watcher = AnswerStops(StopStrings(["stop"]), AnswerReading(OutputParserNames("hermes")).splitter())
    assert watcher.push("<think>a stop") == ("<think>a ", "stop")


def test_reasoning_is_shown_as_it_comes() -> None:
    watcher = AnswerStops(StopStrings(["b stop"]), AnswerReading(THINK).splitter())
    assert watcher.push("<thi") == ("", None)
    assert watcher.push("nk>a b st")[0].endswith("a b st")
    assert watcher.push("op </th") == ("op", None)
    assert watcher.peek("ink>b stop") is None
    assert watcher.push("ink>") == (" </think>", None)
    assert watcher.push("a b st") == ("a ", None)
    assert watcher.peek("op") == "b stop"
    assert watcher.push("ay") == ("b stay", None)
    assert watcher.finish("tail") == "tail"


def test_white_space_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may fill its reasoning with line breaks; what waits is not read again with each of them."""
    read: list[int] = []
    push = ReasoningSplitter.push

    def counted(self: ReasoningSplitter, text: str, events: list[Event]) -> str:
        read.append(self.undecided + len(text))
        return push(self, text, events)

    monkeypatch.setattr(ReasoningSplitter, "push", counted)
    parser = OutputParser(OutputParserNames("hermes", "think"), tools={"f"})
    watcher = AnswerStops(StopStrings(["stop"]), AnswerReading(THINK).splitter())
    shown = ""
    for piece in ("<think>a", *["\n"] * 3000, "b stop</think>"):
        parser.push(piece)
        shown += watcher.push(piece)[0]
    assert shown == "<think>a" + "\n" * 3000 + "b stop</think>"
    assert sum(read) <= 5 * 3000
    assert (watcher.push("\n\nstop"), watcher.finish()) == (("\n\n", "stop"), "")


def test_what_follows_at_the_end_is_no_match() -> None:
    watcher = AnswerStops(StopStrings(["\ufffd"]), None)
    assert watcher.push("a") == ("a", None)
    assert watcher.finish("\ufffd") == "\ufffd"
    assert watcher.matched is None
