"""What of a request had no effect. A field takes effect, or the answer names it: in the header `x-jaxinfer-ignored`, in
the request's explanation and in its line of the log, names alone, never values. Under `refuse` it is a 400 instead.

Names are the client's text: what goes into a header or a log is escaped, and bounded in number and length.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from jaxinfer.errors import InvalidRequest

UnknownFields = Literal["report", "refuse"]
HEADER = b"x-jaxinfer-ignored"
OTHER = "other"  # what the metric calls a name that only clients know
MAX_NAMES = 32  # that are told; the rest is counted
MAX_NAME = 64  # characters of a path, as it is told
MAX_HEADER = 1024  # bytes: proxies take a few thousand for all of an answer's headers
UNKNOWN = "it is no field of this request"

_UNSAFE = re.compile(rb"[^A-Za-z0-9_.\[\]@/:+~!*$^-]")
_INDEX = re.compile(r"\[\d+\]")
_LIKENESS = 0.75  # of two names, as difflib measures it: one letter of four or more


class IgnoredFields:
    """Of one request. A name within several elements of a list is told once, at its first place."""

    def __init__(self, mode: UnknownFields = "report") -> None:
        self.mode = mode
        self.counts: Counter[str] = Counter()  # for the metric: names that the server knows, and OTHER
        self._found: dict[str, tuple[str, str]] = {}  # the path without indices -> as it is told, and what was meant
        self._more = 0

    def add(self, path: str, label: str = OTHER, nearest: str = "") -> None:
        """path: such as messages[0].name. label: for the metric. nearest: the field that may have been meant."""
        beginning = path[: 2 * MAX_NAME]
        place = _INDEX.sub("[]", beginning)
        if place in self._found:
            return
        if len(self._found) == MAX_NAMES:
            self._more += 1
        else:
            self._found[place] = escaped(beginning), nearest
            self.counts[label] += 1

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._found.values())

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """None where nothing was ignored. The value is a list as RFC 9110 writes it: names, each with the parameter
        `nearest` where a field has nearly this name, and `more=N` in the place of those that are not told."""
        if not self._found:
            return []
        shown, length, more = [], 0, self._more
        for name, nearest in self._found.values():
            item = f"{name};nearest={nearest}" if nearest else name
            length += len(item) + 2
            if length <= MAX_HEADER:
                shown.append(item)
            else:
                more += 1
        if more:
            shown.append(f"more={more}")
        return [(HEADER, ", ".join(shown).encode("ascii"))]


def escaped(path: str) -> str:
    """A client's name as a header and a log take it: what is not plain in it is percent-encoded UTF-8."""
    plain = _UNSAFE.sub(lambda found: b"%%%02X" % ord(found[0]), path.encode("utf-8", "backslashreplace")).decode()
    return (plain if len(plain) <= MAX_NAME else plain[: MAX_NAME - 3] + "...") or '""'


_FOUND: ContextVar[IgnoredFields | None] = ContextVar("ignored", default=None)


@contextmanager
def collecting(mode: UnknownFields) -> Iterator[IgnoredFields]:
    """Within, on this thread, names are collected for one request. Elsewhere they are refused."""
    found = IgnoredFields(mode)
    token = _FOUND.set(found)
    try:
        yield found
    finally:
        _FOUND.reset(token)


def reporting() -> bool:
    """Whether what has no effect is reported, not refused."""
    found = _FOUND.get()
    return found is not None and found.mode == "report"


def unknown(path: str, value: object, known: Sequence[str], allowed: str = UNKNOWN) -> None:
    """The last name of `path` is none of `known`. Raises InvalidRequest where it is refused."""
    found = _FOUND.get()
    if found is None or found.mode == "refuse":
        raise InvalidRequest(path, value, allowed)
    found.add(path, nearest=nearest_of(path.rpartition(".")[2], known))


def without_effect(path: str, value: object, why: str) -> None:
    """A field that is known asks for what is not done. Raises InvalidRequest where that is refused."""
    found = _FOUND.get()
    if found is None or found.mode == "refuse":
        raise InvalidRequest(path, value, why)
    found.add(path, _INDEX.sub("[]", path))


def passed_over(path: str, label: str = OTHER) -> None:
    """What clients and proxies put beside a message, and asks for nothing: told, and never refused."""
    found = _FOUND.get()
    if found is not None:
        found.add(path, label)


def nearest_of(name: str, known: Iterable[str]) -> str:
    """The one of `known` that may have been meant, or ""."""
    close = difflib.get_close_matches(name[:MAX_NAME], known, n=1, cutoff=_LIKENESS)
    return close[0] if close else ""
