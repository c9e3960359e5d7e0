"""Stop strings over a stream of text."""

from __future__ import annotations

import functools
import re
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxinfer.errors import StopStringError

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters

# A lone surrogate, which neither a stop string nor a text can hold.
_NO_CHARACTER = "\ud800"
_NO_STOP = -1


class StopAutomaton:
    """All stop strings of a request in one automaton (Aho and Corasick, 1975), shared by its sequences.

    A node is a beginning of a stop string, node 0 the empty one; the automaton stands at the node that spells the
    longest end of the text that begins a stop string. One character more costs amortised O(1), however many strings
    there are and whatever they hold. Node n's first child is n + 1 (`_follow` has its character); a node from which
    strings part has the others in `_branches`. So a node takes about 14 bytes, at most 17k nodes.

    Args:
        stops: at most 16 strings of 1 to 1024 characters.

    Raises:
        StopStringError: a limit is broken; names the entry.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = _check(stops)
        self._branches: dict[int, dict[str, int]] = {}
        self._fail = array("H", [0])  # the node of the longest proper end of the node's text
        self._depth = array("H", [0])  # length of the node's text
        # The first listed stop string that the node's text ends with; _NO_STOP for none.
        self._ends = array("h", [_NO_STOP])
        self._extended = bytearray(1)  # whether a stop string goes on from the node
        # The node of the longest end of the node's text that a stop string goes on from.
        self._open = array("H", [0])
        levels = self._grow()
        self._link(levels)
        starts = "".join({stop[0] for stop in self.stops})
        self._start = re.compile(f"[{re.escape(starts)}]") if starts else None

    def _grow(self) -> list[list[tuple[int, int, str]]]:
        """Makes the nodes; by depth: (node, its parent, the character between them)."""
        follow = [_NO_CHARACTER]
        levels: list[list[tuple[int, int, str]]] = [[] for _ in range(max(map(len, self.stops), default=0))]
        for order, stop in enumerate(self.stops):
            node = 0
            for depth, character in enumerate(stop, 1):
                self._extended[node] = 1
                if follow[node] == character:
                    node += 1
                    continue
                branch = self._branches.get(node, {})
                if character in branch:
                    node = branch[character]
                    continue
                child = len(follow)
                if child == node + 1:
                    follow[node] = character
                else:
                    self._branches.setdefault(node, {})[character] = child
                levels[depth - 1].append((child, node, character))
                follow.append(_NO_CHARACTER)
                self._fail.append(0)
                self._depth.append(depth)
                self._ends.append(_NO_STOP)
                self._extended.append(0)
                self._open.append(0)
                node = child
            if self._ends[node] == _NO_STOP:
                self._ends[node] = order
        self._follow = "".join(follow)
        return levels

    def _link(self, levels: list[list[tuple[int, int, str]]]) -> None:
        """Sets what a node has of shorter ends of its text, shortest nodes first."""
        for level in levels:
            for node, parent, character in level:
                if parent:
                    self._fail[node] = self.step(self._fail[parent], character)
                shorter = self._fail[node]
                if self._ends[shorter] != _NO_STOP and not 0 <= self._ends[node] < self._ends[shorter]:
                    self._ends[node] = self._ends[shorter]
                self._open[node] = node if self._extended[node] else self._open[shorter]

    def step(self, node: int, character: str) -> int:
        """The node after one character more."""
        while True:
            if self._follow[node] == character:
                return node + 1
            branch = self._branches.get(node)
            if branch is not None and character in branch:
                return branch[character]
            if not node:
                return 0
            node = self._fail[node]

    def skip(self, text: str, position: int) -> int:
        """From `position` on, where the first character is that begins a stop string; the text's length without one."""
        found = None if self._start is None else self._start.search(text, position)
        return len(text) if found is None else found.start()

    def ended(self, node: int) -> int:
        """Index of the first listed stop string that ends here; negative for none."""
        return self._ends[node]

    def unfinished(self, node: int) -> int:
        """Characters at the end of the text that begin a stop string without being all of it; the most there are."""
        return self._depth[self._open[node]]


@functools.lru_cache(maxsize=32)
def stop_automaton(stops: tuple[str, ...]) -> StopAutomaton:
    """The automaton of these stop strings, made once for requests that share them (a few milliseconds where they are
    as many and as long as allowed). Raises StopStringError."""
    return StopAutomaton(stops)


@dataclass(slots=True)
class _Cursor:
    """How far a text was read. `match`: (position, index of the stop string)."""

    node: int = 0
    position: int = 0
    match: tuple[int, int] | None = None


class StopStrings:
    """Finds the first stop string in a stream, however the text is cut into pieces. One per sequence.

    The match is the stop string that is complete first; of several that end at the same character, the first listed. So
    does vLLM 0.32 (v1/engine/detokenizer.py, check_stop_strings), and it ends a text as soon as possible. Everything
    returned together is the text before the match (and, with `include_stop_str_in_output`, the stop string), or the
    whole text when nothing matches. Only the longest end of the text that could be the start of a stop string is held
    back.

    **Cost.** Each character is looked at once, by one automaton for all stop strings (`StopAutomaton`).

    Args:
        stops: at most 16 strings of 1 to 1024 characters, or their automaton.
        include_stop_str_in_output: emit the stop string as well.

    Attributes:
        closed: characters at the front of the text in which no stop string may end: one that is complete within them
            is none, one that only begins there counts (min_tokens). May be set as long as no text behind it was pushed.

    Raises:
        StopStringError: a limit is broken; names the entry.
    """

    def __init__(self, stops: Sequence[str] | StopAutomaton, *, include_stop_str_in_output: bool = False) -> None:
        self._automaton = stops if isinstance(stops, StopAutomaton) else StopAutomaton(stops)
        self._include = include_stop_str_in_output
        self.closed = 0
        self._cursor = _Cursor()
        self._ahead: tuple[str, _Cursor] | None = None  # text that `peek` saw, and the cursor behind it
        self._held = Held()
        self._done = False
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text; None as long as there is none."""
        return self._matched

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes more text; returns (text now safe to emit, the stop string that ended the text or None).

        Raises:
            RuntimeError: the text has already ended.
        """
        if self._done:
            raise RuntimeError("push after the text has ended")
        if not text:
            return "", None
        self._cursor = self._read(text)
        self._ahead = None
        self._held.add(text)
        cursor = self._cursor
        if cursor.match is not None:
            return self._end(), self._matched
        return self._held.take(cursor.position - self._automaton.unfinished(cursor.node)), None

    def peek(self, text: str) -> str | None:
        """The stop string that would end the text if it ended after `text`; nothing is emitted.

        For text that a detokenizer still holds (`IncrementalDetokenizer.settled`): a match there can end the sequence
        now. What was seen here is not read again, by `peek` or `push`, as long as the text goes on with it.
        """
        if self._done:
            return None
        cursor = self._cursor
        if text:
            cursor = self._read(text)
            self._ahead = text, cursor
        return None if cursor.match is None else self._automaton.stops[cursor.match[1]]

    def finish(self) -> str:
        """Ends the text; returns what was held back."""
        if self._done:
            return ""
        self._done = True
        return self._held.take(self._cursor.position)

    def _end(self) -> str:
        assert self._cursor.match is not None
        start, order = self._cursor.match
        self._matched = self._automaton.stops[order]
        self._done = True
        return self._held.take(start + len(self._matched) if self._include else start)

    def _read(self, text: str) -> _Cursor:
        """The cursor behind `text`."""
        if self._ahead is not None and text.startswith(self._ahead[0]):
            seen, cursor = self._ahead
            cursor, begin = replace(cursor), len(seen)
        else:
            cursor, begin = replace(self._cursor), 0
        automaton, closed = self._automaton, self.closed
        node, offset = cursor.node, cursor.position - begin  # offset + index is the position in the whole text
        index = begin
        while index < len(text) and cursor.match is None:
            if not node:
                index = automaton.skip(text, index)
                if index == len(text):
                    break
            node = automaton.step(node, text[index])
            index += 1
            order = automaton.ended(node)
            if order >= 0 and offset + index > closed:
                cursor.match = offset + index - len(automaton.stops[order]), order
        cursor.node, cursor.position = node, offset + len(text)
        return cursor


class Held:
    """Text that waits: added behind, taken from the front, without copying the rest."""

    def __init__(self) -> None:
        self._pieces: deque[str] = deque()
        self._offset = 0  # characters of the first piece that were taken
        self._taken = 0

    def add(self, text: str) -> None:
        if text:
            self._pieces.append(text)

    def take(self, position: int) -> str:
        """Everything before `position`, counted from the front of the whole text."""
        wanted = position - self._taken
        self._taken += max(wanted, 0)
        taken: list[str] = []
        while wanted > 0:
            piece = self._pieces[0]
            part = piece[self._offset : self._offset + wanted]
            taken.append(part)
            wanted -= len(part)
            self._offset += len(part)
            if self._offset == len(piece):
                self._pieces.popleft()
                self._offset = 0
        return "".join(taken)


def _check(stops: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stops, str) or not isinstance(stops, Sequence):
        raise StopStringError(f"stop must be a list of strings, not {type(stops).__name__}")
    if len(stops) > MAX_STOP_STRINGS:
        raise StopStringError(f"stop may hold at most {MAX_STOP_STRINGS} strings, got {len(stops)}")
    for position, stop in enumerate(stops):
        if not isinstance(stop, str):
            raise StopStringError(f"stop[{position}] must be a string, not {type(stop).__name__}")
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise StopStringError(f"stop[{position}] must have 1 to {MAX_STOP_LENGTH} characters, got {len(stop)}")
        if any("\ud800" <= character <= "\udfff" for character in stop):
            raise StopStringError(f"stop[{position}] holds a lone surrogate, which no text can contain")
    return tuple(stops)
