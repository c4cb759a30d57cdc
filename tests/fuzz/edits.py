"""How an input is corrupted: a few edits of a real one."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What an edit does at its place."""

    CUT = 0  # everything behind the place
    REMOVE = 1  # this many bytes
    REPEAT = 2  # the bytes at the place, often
    INSERT = 3  # the payload
    REPLACE = 4  # as many bytes as the payload has
    FLIP = 5  # one bit


class Edit(NamedTuple):
    """One edit: `place` is a share of the input's length, 0 to 1."""

    kind: Kind
    place: float
    length: int
    payload: bytes


LENGTH_MAX = 64
EDITS_MAX = 6
_REPEATS = 200
_INPUT_BYTES_MAX = 1 << 20

# Payloads that break parsers more often than noise does.
TOKENS: tuple[bytes, ...] = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"'",
    b"\\",
    b": ",
    b", ",
    b"&a *a",
    b"<<: ",
    b"!!python/name:os.system ",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e400",
    b"NaN",
    b"-Inf",
    b"99999999999999999999999999",
    b"9" * 400,  # beyond all floats
    b"0x7fffffff",
    b"\xf0\x9f\x92\xa5",
    b"\xed\xa0\x80",
    b"%s%n",
    b"../../etc/passwd",
)


def spoil(data: bytes, edits: Sequence[Edit]) -> bytes:
    """The input after the edits, in turn."""
    for kind, share, length, payload in edits:
        place = min(len(data), int(share * (len(data) + 1)))
        before, behind = data[:place], data[place:]
        match kind:
            case Kind.CUT:
                data = before
            case Kind.REMOVE:
                data = before + behind[length:]
            case Kind.REPEAT:
                data = before + behind[:length] * _REPEATS + behind
            case Kind.INSERT:
                data = before + payload + behind
            case Kind.REPLACE:
                data = before + payload + behind[len(payload) :]
            case Kind.FLIP:
                flipped = bytes([behind[0] ^ (1 << length % 8)]) if behind else b""
                data = before + flipped + behind[1:]
        data = data[:_INPUT_BYTES_MAX]
    return data
