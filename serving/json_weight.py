"""How much a JSON text makes a parser do, before it is parsed.

Parsing is one call that keeps the interpreter to itself: 27 ns for a number of a list, 150 for a list or an object, 530
for a field of one were measured, and for numbers of thousands of digits 16 ns a byte.
"""

from __future__ import annotations

MAX_WEIGHT = 2_000_000  # in numbers of a list: about 50 ms
_WEIGHTS = ((b",", 1), (b"[", 5), (b"{", 5), (b":", 20))
_LARGE = 3 << 20  # bytes; below, the longest numbers take no longer
_PLAIN = 24  # bytes of a value outside of strings that are nothing unusual
_SLICE = 1 << 18  # bytes that one call of the interpreter looks at


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


def _weight(data: bytes | bytearray) -> int:
    return sum(weight * data.count(mark) for mark, weight in _WEIGHTS)
