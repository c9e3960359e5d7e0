"""Answers of a known shape inside a response: a date, or one word at the end."""

from __future__ import annotations

import re

from jaxinfer.evaluation.extract import last_line_words

MONTHS = (
    ("January", 31), ("February", 28), ("March", 31), ("April", 30), ("May", 31), ("June", 30),
    ("July", 31), ("August", 31), ("September", 30), ("October", 31), ("November", 30), ("December", 31),
)  # fmt: skip
_DATE = re.compile(rf"\b({'|'.join(name for name, _ in MONTHS)}) (\d{{1,2}})\b")


def last_word(text: str) -> str | None:
    """The last word of the response, without punctuation."""
    words = last_line_words(text)
    return words.rsplit(" ", 1)[-1] if words else None


def last_date(text: str) -> str | None:
    """The last month and day, such as "April 4"."""
    found = _DATE.findall(text)
    return f"{found[-1][0]} {int(found[-1][1])}" if found else None
