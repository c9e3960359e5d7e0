"""How much a protobuf message holds, seen on the wire, before it is parsed.

Parsing is one call that keeps the interpreter to itself: 16 MiB of empty submessages take half a second, as do the
objects made of them. Walking the bytes in Python can be interrupted, and ends as soon as it has seen too much.
"""

from __future__ import annotations

from contextvars import ContextVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

# Of the running call's large message, as it came: asking the message takes milliseconds for each megabyte of text.
RECEIVED_BYTES: ContextVar[int | None] = ContextVar("received_bytes", default=None)

MAX_PARTS = 100_000  # of a message; 4096 messages of a conversation with all of their fields are a third
_UNKNOWN = 4  # what a field that nobody knows counts for: each becomes an object when it is refused
_PACKED = 128  # bytes of a list of numbers that count as one part
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def size_of(message: Message) -> int:
    """Bytes of the running call's message."""
    received = RECEIVED_BYTES.get()
    return message.ByteSize() if received is None else received


def has_too_many_parts(data: bytes, descriptor: Descriptor, limit: int = MAX_PARTS) -> bool:
    """Whether a message has more than `limit` fields and submessages, at all depths. Bytes that are no message are the
    parser's to refuse."""
    count, left = 0, [(0, len(data), descriptor)]
    try:
        while left:
            at, end, kind = left.pop()
            while at < end:
                tag, at = _varint(data, at)
                number, wire = tag >> 3, tag & 7
                field = None if kind is None else kind.fields_by_number.get(number)
                count += 1 if field is not None else _UNKNOWN
                if wire == _BYTES:
                    length, at = _varint(data, at)
                    if at + length > end:
                        return False
                    if field is not None and field.message_type is not None:
                        left.append((at, at + length, field.message_type))
                    elif field is not None and field.type not in (
                        FieldDescriptor.TYPE_STRING,
                        FieldDescriptor.TYPE_BYTES,
                    ):
                        count += length // _PACKED
                    at += length
                elif wire == _VARINT:
                    _, at = _varint(data, at)
                elif wire in (_FIXED64, _FIXED32):
                    at += 8 if wire == _FIXED64 else 4
                if count > limit:
                    return True
    except IndexError:
        return False
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends). Raises IndexError at the end of the data."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:
            return value, at
        shift += 7
