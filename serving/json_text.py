"""JSON as every server and file writes it: safe for readers of lines, and in parts where it is long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import msgspec

from serving.pace import Pace

# Line ends to some readers though not to JSON: str.splitlines, httpx' and requests' iter_lines cut there. As JSON these
# bytes stand inside strings only, where an escape means the same.
_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))
_ESCAPES = {ord(raw.decode()): escaped.decode() for raw, escaped in _LINE_ENDS}
_SLICE = 256  # entries of a list that are encoded at a time
_PIECE_STEPS = 2  # of `Pace`: for a value, a name, or a slice of a list
PART_BYTES = 1 << 16  # about the size of a part

_encode = msgspec.json.Encoder().encode


def encode(value: Any) -> bytes:
    """One line of JSON, without the line's end."""
    return line_safe(_encode(value))


def line_safe(data: bytes) -> bytes:
    """JSON without U+2028, U+2029 and U+0085, which are escaped."""
    for raw, escaped in _LINE_ENDS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def line_safe_text(text: str) -> str:
    """`line_safe` of JSON that is a string."""
    return text.translate(_ESCAPES)


async def encode_in_parts(value: Any) -> AsyncIterator[bytes]:
    """`encode` in parts of about PART_BYTES; other tasks run between them. value: of dict, list, tuple and what JSON
    has, which must not change meanwhile."""
    parts: list[bytes] = []
    size = 0
    pace = Pace()
    for part in _parts(value):
        parts.append(part)
        size += len(part)
        if size >= PART_BYTES:
            yield line_safe(b"".join(parts))
            parts, size = [], 0
            await pace.rest()
        await pace.spend(_PIECE_STEPS)  # many small values are long work, too
    if parts:
        yield line_safe(b"".join(parts))


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        mark = b"{"
        for name, item in value.items():
            yield mark + _encode(str(name)) + b":"  # numbers, too, are strings as names
            yield from _parts(item)
            mark = b","
        yield b"{}" if mark == b"{" else b"}"
    elif isinstance(value, list | tuple) and (len(value) > _SLICE or any(_holds(item) for item in value)):
        yield from _list(value)
    else:
        yield _encode(value)


def _list(values: list[Any] | tuple[Any, ...]) -> Iterator[bytes]:
    mark = b"["
    for start in range(0, len(values), _SLICE):
        part = values[start : start + _SLICE]
        if any(_holds(item) for item in part):
            for item in part:
                yield mark
                yield from _parts(item)
                mark = b","
        else:
            yield mark + _encode(part)[1:-1]
            mark = b","
    yield b"]"


def _holds(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)
