"""How much a JSON text makes a parser do, before it is parsed.

Parsing is one call that keeps the interpreter to itself: 27 ns for a number of a list, 150 for a list or an object, 530
for a field of one were measured, and for numbers of thousands of digits 16 ns a byte.
"""

from __future__ import annotations

import msgspec

MAX_WEIGHT = 2_000_000  # in numbers of a list: about 50 ms
_WEIGHTS = ((b",", 1), (b"[", 5), (b"{", 5), (b":", 20))
_LARGE = 3 << 20  # bytes; below, the longest numbers take no longer
_PLAIN = 24  # bytes of a value outside of strings that are nothing unusual
_SLICE = 1 << 18  # bytes that one call of the interpreter looks at

_LONG_NAME = 1 << 20  # bytes of a field's name
_LONG_BEGINNING = 1 << 16  # bytes in front of it
_SHOWN_OF_NAME = 200  # bytes, more than any error tells
_PLAIN_TEXT = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')


def is_too_heavy(data: bytes | bytearray, limit: int = MAX_WEIGHT) -> bool:
    """Whether parsing would hold up everybody else. What is between two quotes is text, and weighs nothing."""
    if len(data) < _LARGE and _weight(data) <= limit:
        return False
    weight = excess = start = 0
    within = False
    while start < len(data):
        end = min(start + _SLICE, len(data))
        while end < len(data) and data[end - 1] == 0x5C:  # an escape is not cut
            end += 1
        parts = data[start:end].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[int(within) :: 2])
        weight += _weight(outside)
        excess += len(outside) - _PLAIN * outside.count(b",")
        within ^= len(parts) % 2 == 0
        start = end
    return weight + max(0, excess - _LARGE // 2) // 2 > limit


def up_to_long_name(data: bytes | bytearray) -> bytes | None:
    """A body up to the first field whose name is as long as `_LONG_NAME`, and of that name the beginning, as an object;
    None where there is none. To make a name of megabytes, and a message about it, takes long, and nobody reads it.

    Only names of plain ASCII at the object's own level are found, behind a beginning that is not long.
    """
    for at in range(0, len(data) - _LONG_NAME // 2, _LONG_NAME // 2):
        if data.find(b'"', at, at + _LONG_NAME // 2) >= 0:
            continue
        begin, end = data.rfind(b'"', 0, at), data.find(b'"', at)
        if not 0 <= begin < _LONG_BEGINNING or end < begin + _LONG_NAME:
            return None
        if not _is_name(data[:begin]) or not data[end + 1 : end + 64].lstrip(b" \t\r\n").startswith(b":"):
            return None
        for start in range(begin + 1, end, _SLICE):
            if data[start : min(start + _SLICE, end)].translate(None, _PLAIN_TEXT):
                return None  # it may not be what it looks like: the parser's to say
        return bytes(data[: begin + 1 + _SHOWN_OF_NAME]) + b'":0}'
    return None


def _is_name(before: bytes | bytearray) -> bool:
    """Whether a quote behind it opens the name of a field of the outermost object."""
    try:
        return isinstance(msgspec.json.decode(bytes(before) + b'"":0}'), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _weight(data: bytes | bytearray) -> int:
    return sum(weight * data.count(mark) for mark, weight in _WEIGHTS)
