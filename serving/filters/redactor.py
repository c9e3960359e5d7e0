"""An example of a filter: replaces e-mail addresses, card numbers and keys of this server.

`--input-filter serving.filters.redactor:redact` and `--output-filter serving.filters.redactor:redact`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from serving.filters.contract import ALLOW, Redact, Span, Subject, Verdict

# Each is bounded in length, so that a window covers it, and in its choices, so that no text makes it slow.
_PATTERNS = {
    "[e-mail]": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,3}[A-Za-z]{2,24}(?![\w-])"),
    "[card]": re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)"),
    "[key]": re.compile(r"jx-[0-9a-f]{12}-[A-Za-z0-9_-]{43}"),
}
_LONGEST = 64 + 1 + 3 * 64 + 24
_SLICE = 1 << 14  # characters that one call of a pattern looks at: other threads wait for its end


def redact(text: str, subject: Subject) -> Verdict:
    """Of overlapping finds the first stays."""
    found = [
        Span(match.start(), match.end(), mark)
        for mark, pattern in _PATTERNS.items()
        for match in _finds(pattern, text)
        if mark != "[card]" or _luhn(match[0])
    ]
    spans: list[Span] = []
    for span in sorted(found, key=lambda span: span.start):
        if not spans or span.start >= spans[-1].end:
            spans.append(span)
    return Redact(spans) if spans else ALLOW


def _finds(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """As `pattern.finditer`, in slices. No find is longer than _LONGEST, and none looks further than a character behind
    itself: so whatever begins within a slice is found in it and that much more."""
    at = 0
    while at < len(text):
        end = at + _SLICE
        after = end
        for match in pattern.finditer(text, at, end + _LONGEST + 1):
            if match.start() >= end:
                break
            yield match
            after = max(end, match.end())
        at = after


redact.window = _LONGEST + 1  # type: ignore[attr-defined]  # and the character behind, which the patterns look at


def _luhn(text: str) -> bool:
    """ISO/IEC 7812-1's check digit."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
