"""What a filter is. An operator names one as MODULE:FUNCTION (`--input-filter`, `--output-filter`).

A filter is a function of (text, Subject) that returns ALLOW, a Redact or a Refuse. It runs on the server's own threads
and holds up the request, so it must be quick, safe to call from several threads, and must not keep the text. One that
raises refuses the request: what nobody judged does not pass.

An output filter sees an answer as it grows: all text that has not been sent yet. It has an attribute `window`, the most
characters over which it looks for anything; the last `window` characters stay unsent until more is there or the answer
has ended, so that nothing is sent of what a later piece completes. Without the attribute an answer is held to its end.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from serving.errors import Refusal

_LOG = logging.getLogger("serving.filters")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged. part: "prompt", "messages[2].content", "tools", "output" and the like."""

    direction: str  # "input" | "output"
    part: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Span:
    """Characters start to end are replaced by `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Allow:
    pass


@dataclass(frozen=True, slots=True)
class Redact:
    """Spans in order, without overlap."""

    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Refuse:
    """reason: for the client; it must not quote the text."""

    reason: str


ALLOW = Allow()
Verdict = Allow | Redact | Refuse
Filter = Callable[[str, Subject], Verdict]


class FilterError(Exception):
    """A filter cannot be used: one sentence."""


def load_filter(name: str) -> Filter:
    """The function that MODULE:FUNCTION names. Raises FilterError."""
    module, _, function = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise FilterError(f"filter is {name!r}; it must be MODULE:FUNCTION that can be imported: {error}") from error
    if not callable(found):
        raise FilterError(f"filter is {name!r}; that is no function")
    window = getattr(found, "window", None)
    if window is not None and not (isinstance(window, int) and window >= 0):
        raise FilterError(f"filter is {name!r}; its window is {window!r}, it must be a number of characters")
    return found


def judge(judging: Filter, text: str, subject: Subject) -> Sequence[Span]:
    """The spans to replace. Raises Refusal."""
    try:
        verdict = judging(text, subject)
        spans = _spans(verdict, len(text))
    except Exception as error:
        _LOG.exception("a filter failed; what it was to judge is refused")
        raise _refused(subject, "the filter failed") from error
    if isinstance(verdict, Refuse):
        raise _refused(subject, verdict.reason)
    return spans


def _spans(verdict: Any, length: int) -> Sequence[Span]:
    if isinstance(verdict, Allow | Refuse):
        return ()
    if not isinstance(verdict, Redact):
        raise TypeError(f"a filter returned {type(verdict).__name__}, which is no verdict")
    at = 0
    for span in verdict.spans:
        if not at <= span.start <= span.end <= length:
            raise ValueError(f"a filter's span {span.start} to {span.end} is not in order, or not in the text")
        at = span.end
    return verdict.spans


def _refused(subject: Subject, reason: str) -> Refusal:
    what = "request" if subject.direction == "input" else "answer"
    message = f"the {what} was refused by this server's {subject.direction} filter: {reason}"
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, message, reason="content_filter")


def replaced(text: str, spans: Sequence[Span]) -> str:
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], span.text]
        at = span.end
    return "".join([*parts, text[at:]])
