"""The output filter over one sequence's text as it streams."""

from __future__ import annotations

from serving.filters.contract import Filter, Span, Subject, judge, replaced


class FilteredText:
    """`push` takes what the model wrote and gives what may be sent of it. However the text is cut into pieces, what is
    sent adds up to the same, as long as the filter looks no further than its window."""

    def __init__(self, judging: Filter, tenant: str) -> None:
        self._judging = judging
        self._subject = Subject("output", "output", tenant)
        self._window: int | None = getattr(judging, "window", None)
        self._before = ""  # the end of what was sent, as the model wrote it: a filter may look back
        self._held = ""
        self._waiting: list[str] = []  # where the filter wants all of the text at once

    def push(self, text: str, *, last: bool) -> str:
        """Raises Refusal."""
        if self._window is None and not last:
            self._waiting.append(text)
            return ""
        self._held = "".join([self._held, *self._waiting, text])
        self._waiting.clear()
        if last:
            return self._send(len(self._held), self._judge()) if self._held else ""
        assert self._window is not None
        if len(self._held) <= self._window:
            return ""
        spans = self._judge()
        cut = len(self._held) - self._window
        for span in spans:
            if span.start < cut < span.end:
                cut = span.start  # it may go on
        return self._send(cut, spans)

    def _judge(self) -> list[Span]:
        """Spans of what is held."""
        known = len(self._before)
        spans = judge(self._judging, self._before + self._held, self._subject)
        return [Span(max(0, s.start - known), s.end - known, s.text) for s in spans if s.end > known]

    def _send(self, cut: int, spans: list[Span]) -> str:
        sent, self._held = self._held[:cut], self._held[cut:]
        self._before = (self._before + sent)[-(self._window or 0) :] if self._window else ""
        return replaced(sent, [span for span in spans if span.end <= cut])
