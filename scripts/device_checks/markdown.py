"""Pieces of the report: tables, shares, footnotes. Standard library only."""

from __future__ import annotations

NOTE_LENGTH = 160


class Notes:
    """Footnotes: what went wrong, each reason once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def mark(self, word: str, reason: str) -> str:
        reason = " ".join(reason.split())[:NOTE_LENGTH].replace("|", "/")
        if reason not in self.lines:
            self.lines.append(reason)
        return f"{word} [{self.lines.index(reason) + 1}]"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows)]
    return "\n".join(lines)
