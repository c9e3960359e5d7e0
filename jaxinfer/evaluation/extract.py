"""The answer inside a response, in canonical form. Functions return None when there is none to be found."""

from __future__ import annotations

import json
import re

# A sign counts only where no operand stands before it ("5-3" ends in 3, "= -3" in -3). Digits with thousands commas
# need groups of three, so a list "1,2,3" is three numbers.
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\d+(?:\.\d+)?")
_QUOTES = "\"'`\u201c\u201d\u2018\u2019\u300c\u300d\u300e\u300f"
_COLON = re.compile(r"[:\uff1a]")
_LABEL_END = re.compile(r": |\uff1a")
_PUNCTUATION = ".,;:!?()[]{}*" + _QUOTES + "\u3002\uff0c\u3001\uff1b\uff1a\uff01\uff1f\uff08\uff09"
_WORD_BREAK = re.compile(r"[\s,;\u3001\uff0c\uff1b]+")
_MAX_JSON_STARTS = 64  # braces tried as the start of an object, so that a run of braces costs little


def canonical_number(text: str) -> str:
    """A decimal number without thousands commas, leading zeros or zeros at the end of a fraction; "-0" is "0".

    Raises:
        ValueError: the text is not a decimal number.
    """
    plain = text.strip().replace(",", "").replace("\u2212", "-")
    match = re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?", plain, re.ASCII)
    if match is None:
        raise ValueError(f"not a decimal number: {text!r}")
    whole, fraction = match[2].lstrip("0") or "0", (match[3] or "").rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return number if number == "0" else match[1] + number


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no blanks; text stays as it is (no escapes for Chinese)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def last_number(text: str) -> str | None:
    """The last integer or decimal number in the text, as `canonical_number` writes it."""
    found = [match[0] for match in _NUMBER.finditer(text) if match[0].isascii() or match[0][0] == "\u2212"]
    return canonical_number(found[-1]) if found else None


def last_line_words(text: str) -> str | None:
    """The words of the last line that is not empty, after its last colon if it has one, joined by single blanks.

    Commas, semicolons and blanks part words; punctuation and quotes around a word are dropped. Case is kept.
    """
    line = _last_nonempty_line(text)
    if line is None:
        return None
    # A colon at the very end introduces nothing.
    line = _COLON.split(line.rstrip(":\uff1a \t"))[-1]
    words = [word.strip(_PUNCTUATION) for word in _WORD_BREAK.split(line)]
    return " ".join(word for word in words if word) or None


def last_line(text: str) -> str | None:
    """The last line that is not empty, after its last ": ", without the quotes, blanks and full stop around it."""
    line = _last_nonempty_line(text)
    if line is None:
        return None
    line = _LABEL_END.split(line)[-1].strip(" \t" + _QUOTES)
    return line.removesuffix(".").removesuffix("\u3002").strip(" \t" + _QUOTES) or None


def first_json(text: str) -> str | None:
    """The first JSON object that parses, as `canonical_json` writes it; NaN and Infinity are not JSON."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    start = text.find("{")
    for _ in range(_MAX_JSON_STARTS):
        if start < 0:
            return None
        try:
            return canonical_json(decoder.raw_decode(text, start)[0])
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
    return None


def _last_nonempty_line(text: str) -> str | None:
    return next((line for raw in reversed(text.splitlines()) if (line := raw.strip())), None)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
