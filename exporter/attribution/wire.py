"""The protobuf wire format, as far as reading a message of strings and messages needs it.

Source: the encoding page of the protocol buffers documentation. A field is a varint tag, number
times eight plus wire type, and a value; numbers that one does not know are skipped.
"""

from collections.abc import Iterator


_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_VARINT_BYTES_MAX = 10


def length_delimited(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field (strings, bytes, messages), in order.

    Fields of other wire types are skipped. Raises ValueError where the message is not well-formed.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _LENGTH:
            length, position = _varint(message, position)
            if length > end - position:
                raise ValueError(f"field {number} is longer than its message")
            yield number, message[position : position + length]
            position += length
        elif wire_type == _VARINT:
            _, position = _varint(message, position)
        elif wire_type in _FIXED_BYTES:
            position += _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"field {number} has wire type {wire_type}")
    if position > end:
        raise ValueError("the message ends within a field")


def text(content: memoryview) -> str:
    """A string field. Raises ValueError where it is not UTF-8."""
    return str(content, "utf-8")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number at this position, and the position behind it."""
    value = 0
    for count in range(_VARINT_BYTES_MAX):
        if position >= len(message):
            raise ValueError("the message ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than ten bytes")
