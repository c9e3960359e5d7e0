"""An example of a filter: replaces e-mail addresses, card numbers and keys of this server.

`--input-filter serving.filters.redactor:redact` and `--output-filter serving.filters.redactor:redact`.
"""

from __future__ import annotations

import re

from serving.filters.contract import ALLOW, Redact, Span, Subject, Verdict

# Each is bounded in length, so that a window covers it, and in its choices, so that no text makes it slow.
_PATTERNS = {
    "[e-mail]": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,3}[A-Za-z]{2,24}(?![\w-])"),
    "[card]": re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)"),
    "[key]": re.compile(r"jx-[0-9a-f]{12}-[A-Za-z0-9_-]{43}"),
}
_LONGEST = 64 + 1 + 3 * 64 + 24


def redact(text: str, subject: Subject) -> Verdict:
    """Of overlapping finds the first stays."""
    found = [
        Span(match.start(), match.end(), mark)
        for mark, pattern in _PATTERNS.items()
        for match in pattern.finditer(text)
        if mark != "[card]" or _luhn(match[0])
    ]
    spans: list[Span] = []
    for span in sorted(found, key=lambda span: span.start):
        if not spans or span.start >= spans[-1].end:
            spans.append(span)
    return Redact(spans) if spans else ALLOW


redact.window = _LONGEST + 1  # type: ignore[attr-defined]  # and the character behind, which the patterns look at


def _luhn(text: str) -> bool:
    """ISO/IEC 7812-1's check digit."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
