"""What an operation of a template would make, judged by its operands before it runs.

Judged are only operands that make much out of little: widths, counts, precisions, what a text is repeated or joined
with, formats. Every other number is data (a time, an id), however large. `CALLS` has the filters, functions and methods
with such operands; a test goes through all that Jinja and Python's types offer and knows each of the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

MAX_LENGTH = 1 << 26  # characters or items that one operation may make
MAX_NUMBER_BITS = 1 << 16
MAX_ITEMS = 2_000_000  # of lists and objects that are written as text at once
MAX_WIDTH = 1_000_000  # characters or items
MAX_PRECISION = 10_000  # digits
_SIZED = (str, bytes, list, tuple, dict)
_NESTING = (list, tuple, dict)
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_MAX_DIGITS = 5  # of a width or a precision that stands in a format
# In a format with %, the width and the precision of a field, which may follow a key in brackets; * takes them from the
# values. No expression here may look at a character more than a few times: a template may format megabytes.
_PERCENT_FIELD = re.compile(r"%[#0\- +]*([\d*]*)(?:\.([\d*]*))?")
_PERCENT_KEYED_FIELD = re.compile(r"[%)][#0\- +]*([\d*]*)(?:\.([\d*]*))?")
_BRACE_FIELD = re.compile(r"\{([^{}]*)")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")  # a field whose width comes from the values
_STRFTIME_FIELD = re.compile(r"%([^%A-Za-z]*)")
_NUMBER = re.compile(r"\d+")


class TemplateTooLong(SecurityError):
    """A template did more than its budget allows."""


# -- measures ---------------------------------------------------------------------------------------------------------


def check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise TemplateTooLong(f"an operation would make {length} characters or items; at most {MAX_LENGTH} are allowed")


def check_bits(bits: int) -> None:
    if bits > MAX_NUMBER_BITS:
        raise TemplateTooLong(f"a number would have {bits} bits; at most {MAX_NUMBER_BITS} are allowed")


def weigh(value: Any) -> int:
    """About the length of a value as text. A few lists inside each other, each there twice, can be endless text."""
    if isinstance(value, str | bytes):
        return len(value)
    return _total(value, lambda leaf: len(leaf) + 4 if isinstance(leaf, str | bytes) else 8)


def _total(value: Any, measure: Callable[[Any], int]) -> int:
    """The sum of a measure over everything in a value as it is written: what is there twice is looked at once and
    counts twice. Raises TemplateTooLong for a sum above MAX_LENGTH, and for more than MAX_ITEMS things to look at."""
    totals: dict[int, int] = {}  # by id; `value` keeps all of them alive
    stack, items = [value], 0
    while stack:
        found = stack[-1]
        inner = _inner(found)
        missing = [each for each in inner if isinstance(each, _NESTING) and id(each) not in totals]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        if id(found) not in totals or not isinstance(found, _NESTING):
            items += 1 + len(inner)
            if items > MAX_ITEMS:
                raise TemplateTooLong(f"it writes a value of more than {MAX_ITEMS} parts")
            own = 8 if isinstance(found, _NESTING) else 0
            total = own + measure(found) * (not own)
            total += sum(totals[id(each)] if isinstance(each, _NESTING) else measure(each) for each in inner)
            check_length(total)
            totals[id(found)] = total
    return totals[id(value)]


def _inner(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | tuple) else []


def _leaves(value: Any) -> Iterator[Any]:
    """What is neither list nor object in a value; those that are there twice are looked at once.

    Raises TemplateTooLong after MAX_ITEMS.
    """
    left, seen, items = [value], set(), 0
    while left:
        found = left.pop()
        if not isinstance(found, _NESTING):
            yield found
        elif id(found) not in seen:
            seen.add(id(found))
            inner = _inner(found)
            items += len(inner)
            if items > MAX_ITEMS:
                raise TemplateTooLong(f"it uses a value of more than {MAX_ITEMS} parts")
            left.extend(inner)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, _SIZED) else 20


def _width(value: Any, limit: int = MAX_WIDTH) -> int:
    """A width, count or precision: 0 where it is no whole number. Raises TemplateTooLong."""
    if not isinstance(value, int):
        return 0
    if abs(value) > limit:
        raise TemplateTooLong(f"a width, count or precision is above {limit}")
    return abs(int(value))


def _lines(text: str) -> int:
    return 1 + sum(map(text.count, _LINE_ENDS))


# -- operators --------------------------------------------------------------------------------------------------------


def check_operands(operator: str, left: Any, right: Any) -> None:
    """Raises TemplateTooLong for an operator whose result would be huge."""
    if operator == "*":
        for value, count in ((left, right), (right, left)):
            if isinstance(value, _SIZED) and isinstance(count, int):
                check_length(len(value) * max(0, count))
        if isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() * max(0, right))
    elif operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
        check_length(len(left) + len(right))
    elif operator == "%" and isinstance(left, str | bytes):
        _check_percent(left, right)


def _check_percent(text: str | bytes, values: Any) -> None:
    found = text.decode("latin-1") if isinstance(text, bytes) else text
    given = values if isinstance(values, tuple) else tuple(values.values()) if isinstance(values, dict) else (values,)
    fields = (_PERCENT_KEYED_FIELD if "%(" in found else _PERCENT_FIELD).findall(found)
    widths = _widths(number for field in fields for number in field)
    starred = sum("*" in number for field in fields for number in field)
    if starred:
        widths += starred * max(map(_width, given), default=0)
    check_length(len(found) * 2 + widths + len(fields) * max(map(weigh, given), default=0))


def _widths(fields: Iterable[str]) -> int:
    """The sum of the numbers in the fields of a format. Raises TemplateTooLong for one of more than five digits."""
    total = 0
    for field in fields:
        for number in _NUMBER.findall(field):
            if len(number) > _MAX_DIGITS:
                raise TemplateTooLong("a format asks for more than 99999 characters")
            total += int(number)
    return total


# -- calls ------------------------------------------------------------------------------------------------------------
# Each has the parameters of what it judges, by their names; a text that a method belongs to comes first.


def _pad(value: Any, width: Any = 80, fillchar: Any = "") -> None:
    _width(width)


def _indent(s: Any, width: Any = 4, first: Any = False, blank: Any = False) -> None:
    each = len(width) if isinstance(width, str) else _width(width)
    text = s if isinstance(s, str) else ""
    check_length(weigh(s) + _lines(text) * each)


def _wordwrap(
    s: Any, width: Any = 79, break_long_words: Any = True, wrapstring: Any = None, break_on_hyphens: Any = True
) -> None:
    length = weigh(s)
    each = max(1, width) if isinstance(width, int) else 1
    check_length(length + (length // each + _lines(s if isinstance(s, str) else "") + 1) * _length(wrapstring or "\n"))


def _replace(s: Any, old: Any, new: Any, count: Any = None, **_: Any) -> None:
    length = weigh(s)
    if isinstance(s, str | bytes) and isinstance(old, type(s)):
        places = s.count(old)  # type: ignore[arg-type]
    else:  # written as a text first
        places = length // max(1, _length(old)) + 1
    if isinstance(count, int) and count >= 0:
        places = min(places, count)
    check_length(length + places * weigh(new))


def _translate(s: Any, table: Any, *_: Any) -> None:
    values = table.values() if isinstance(table, dict) else ()
    check_length((_length(s) + 1) * (max(map(_length, values), default=0) + 1))


def _join(value: Any, d: Any = "", attribute: Any = None) -> None:
    check_length(weigh(value) + (len(value) if isinstance(value, list | tuple | dict) else 0) * weigh(d))


def _join_method(d: Any, value: Any) -> None:
    _join(value, d)


def _percent_filter(value: Any, *args: Any, **kwargs: Any) -> None:
    _check_percent(value if isinstance(value, str) else str(value) if weigh(value) < MAX_WIDTH else "", kwargs or args)


def _braces(text: Any, *args: Any, **kwargs: Any) -> None:
    """str.format and str.format_map."""
    if not isinstance(text, str):
        return
    given = (*args, *kwargs.values())
    fields = text.count("{")
    widths = _widths(_BRACE_FIELD.findall(text))
    if _NESTED_FIELD.search(text):
        leaves = list(_leaves(list(given)))
        widths += _widths([text])
        widths += fields * max((_width(leaf) for leaf in leaves), default=0)
        widths += fields * max((_widths([leaf]) for leaf in leaves if isinstance(leaf, str)), default=0)
    check_length(len(text) + widths + fields * max(map(weigh, given), default=0))


def _tojson(
    value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> None:
    each = _length(indent) if isinstance(indent, str) else _width(indent)
    if isinstance(separators, list | tuple):
        each += sum(map(_length, separators))
    weight = weigh(value)
    if each:
        items = _total(value, lambda _: 8) // 8
        check_length(weight + items * each * (_depth(value) if indent is not None else 1))


def _depth(value: Any) -> int:
    """How deep lists and objects are inside each other."""
    depth, level = 0, {id(value): value}
    while level := {key: found for key, found in level.items() if isinstance(found, _NESTING)}:
        depth += 1
        level = {id(each): each for found in level.values() for each in _inner(found)}
    return depth + 1


def _written(*values: Any, **more: Any) -> None:
    check_length(sum(map(weigh, (*values, *more.values()))))


def _round(value: Any, precision: Any = 0, method: Any = "common") -> None:
    _width(precision, MAX_PRECISION)


def _slice(value: Any, slices: Any, fill_with: Any = None) -> None:
    _width(slices)


def _batch(value: Any, linecount: Any, fill_with: Any = None) -> None:
    if fill_with is not None:
        _width(linecount)


def _sum(iterable: Any, attribute: Any = None, start: Any = 0) -> None:
    """A sum of lists copies what is there already for each of them."""
    if isinstance(start, _SIZED) and isinstance(iterable, list | tuple):
        total = sum(map(_length, iterable))
        check_length((len(start) + total) * max(1, len(iterable)))


def _expandtabs(text: Any, tabsize: Any = 8) -> None:
    check_length(_length(text) * max(1, _width(tabsize)))


def _to_bytes(number: Any, length: Any = 1, byteorder: Any = "big", *, signed: Any = False) -> None:
    _width(length)


def _strftime(pattern: Any, *_: Any) -> None:
    if isinstance(pattern, str):
        # Anything that a field may stand for, such as the whole date, is short.
        check_length(len(pattern) * 32 + _widths(_STRFTIME_FIELD.findall(pattern)))


FILTERS: dict[str, Callable[..., None]] = {
    "center": _pad,
    "indent": _indent,
    "wordwrap": _wordwrap,
    "replace": _replace,
    "join": _join,
    "format": _percent_filter,
    "tojson": _tojson,
    "string": _written,
    "list": _written,
    "round": _round,
    "slice": _slice,
    "batch": _batch,
    "sum": _sum,
}
METHODS: dict[str, Callable[..., None]] = {
    "center": _pad,
    "ljust": _pad,
    "rjust": _pad,
    "zfill": _pad,
    "replace": _replace,
    "translate": _translate,
    "join": _join_method,
    "format": _braces,
    "format_map": _braces,
    "expandtabs": _expandtabs,
    "to_bytes": _to_bytes,
}
FUNCTIONS: dict[str, Callable[..., None]] = {"strftime_now": _strftime}


def check_call(judge: Callable[..., None] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises TemplateTooLong for a call whose result could be huge."""
    if judge is None:
        return
    try:
        judge(*args, **kwargs)
    except TypeError:
        # Not the parameters of what is called, which will say so. Until then nothing large may pass.
        for value in (*args, *kwargs.values()):
            _width(value)
