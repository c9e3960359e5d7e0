"""Stop strings over a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from jaxinfer.text.errors import StopStringError

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters


class StopStrings:
    """Finds the first stop string in a stream, however the text is cut into pieces. One per sequence.

    The match is the one that a search of the whole text would give: the one that begins earliest; of several that
    begin there, the first listed. Everything returned together is the text before the match (and, with
    `include_stop_str_in_output`, the stop string), or the whole text when nothing matches.

    Only the longest end of the text that could be the start of a stop string is held back. When a stop string is
    complete but an overlapping one with precedence may still become complete, the decision waits for at most the length
    of that one; `finish` and `peek` decide at once.

    Args:
        stops: at most 16 strings of 1 to 1024 characters.
        include_stop_str_in_output: emit the stop string as well.

    Raises:
        StopStringError: a limit is broken; names the entry.
    """

    def __init__(self, stops: Sequence[str], *, include_stop_str_in_output: bool = False) -> None:
        self._stops = _check(stops)
        self._include = include_stop_str_in_output
        self._held = ""
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
        if not self._stops:
            return text, None
        buffer = self._held + text
        match = self._find(buffer)
        partial = self._first_partial(buffer, match)
        if match is not None and partial is None:
            return self._end(buffer, match), self._matched
        keep = len(buffer) if partial is None else partial
        self._held = buffer[keep:]
        return buffer[:keep], None

    def peek(self, text: str) -> str | None:
        """The stop string that would end the text if it ended after `text`; changes nothing.

        For text that a detokenizer still holds (`IncrementalDetokenizer.held`): a match there can end the sequence now.
        """
        match = None if self._done else self._find(self._held + text)
        return None if match is None else self._stops[match[1]]

    def finish(self) -> str:
        """Ends the text; returns what was held back, up to a match among it (then `matched` is set)."""
        if self._done:
            return ""
        match = self._find(self._held)
        if match is not None:
            return self._end(self._held, match)
        self._done = True
        text, self._held = self._held, ""
        return text

    def _end(self, buffer: str, match: tuple[int, int]) -> str:
        start, order = match
        self._matched = self._stops[order]
        self._done = True
        self._held = ""
        return buffer[: start + len(self._matched)] if self._include else buffer[:start]

    def _find(self, buffer: str) -> tuple[int, int] | None:
        """(position, index of the stop string) of the match, by earliest position and then by order."""
        found = [(buffer.find(stop), order) for order, stop in enumerate(self._stops)]
        return min((entry for entry in found if entry[0] >= 0), default=None)

    def _first_partial(self, buffer: str, match: tuple[int, int] | None) -> int | None:
        """Where the earliest unfinished stop string begins that could still take precedence over `match`."""
        earliest: int | None = None
        for order, stop in enumerate(self._stops):
            position = max(0, len(buffer) - len(stop) + 1)
            while (position := buffer.find(stop[0], position)) >= 0:
                if match is not None and (position, order) > match:
                    break
                if earliest is not None and position >= earliest:
                    break
                if stop.startswith(buffer[position:]):
                    earliest = position
                    break
                position += 1
        return earliest


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
