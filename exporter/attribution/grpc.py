"""One gRPC call over a Unix socket: one request and one response over HTTP/2, with the h2 package.

Why not grpcio: for one small message every ten seconds it adds 15 MB of resident memory and six
threads; this module adds 1.6 MB and no thread (`python -m tests.attribution.client_memory`, CPython
3.11 on x86-64). h2 and its two parts are pure Python and are imported at the first call, so that a
host without a kubelet does not load them.

Source of the protocol: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of the gRPC documentation).
"""

import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from exporter.errors import HolderSourceError


if TYPE_CHECKING:
    from h2.connection import H2Connection

# The kubelet's own limit for this API (16 MiB): it sends nothing larger.
RESPONSE_BYTES_MAX = 16 * 1024 * 1024
_READ_BYTES = 256 * 1024
# Flow control matters on links with latency; here it only must not get in the way.
_WINDOW_BYTES = 4 * 1024 * 1024
_PREFIX_BYTES = 5  # prefix of each message: compression flag, length
_STATUS_NAMES = (
    "ok", "cancelled", "unknown", "invalid_argument", "deadline_exceeded", "not_found",
    "already_exists", "permission_denied", "resource_exhausted", "failed_precondition", "aborted",
    "out_of_range", "unimplemented", "internal", "unavailable", "data_loss", "unauthenticated",
)  # fmt: skip


def call(path: Path, method: str, request: bytes, timeout_seconds: float) -> bytes:
    """The response to a unary call of `method` (`/package.Service/Method`).

    Takes at most `timeout_seconds`, however slowly the server sends. Raises HolderSourceError.
    """
    deadline = time.monotonic() + timeout_seconds
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_seconds)
            connection.connect(os.fspath(path))
            return _converse(connection, deadline, method, request, timeout_seconds)
    except FileNotFoundError:
        raise HolderSourceError("absent", f"{path} is not there") from None
    except PermissionError:
        raise HolderSourceError("permission", f"{path} may not be opened") from None
    except ConnectionRefusedError:
        raise HolderSourceError("refused", f"nobody listens on {path}") from None
    except TimeoutError:
        raise HolderSourceError("timeout", f"no answer within {timeout_seconds:g} s") from None
    except OSError as error:
        raise HolderSourceError("connection", os.strerror(error.errno or 0)) from None


def _converse(
    connection: socket.socket, deadline: float, method: str, request: bytes, timeout_seconds: float
) -> bytes:
    import h2.exceptions  # noqa: PLC0415  only if a server listens

    try:
        return _Call(connection, deadline).run(method, request, timeout_seconds)
    except h2.exceptions.ProtocolError as error:
        raise HolderSourceError("protocol", str(error)) from None


class _Call:
    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._body = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._ended = False

    def run(self, method: str, request: bytes, timeout_seconds: float) -> bytes:
        protocol = _open(method, timeout_seconds)
        protocol.send_data(1, struct.pack(">BI", 0, len(request)) + request, end_stream=True)
        self._send(protocol)
        while not self._ended:
            self._connection.settimeout(max(self._deadline - time.monotonic(), 1e-3))
            received = self._connection.recv(_READ_BYTES)
            if (
                time.monotonic() > self._deadline
            ):  # a server that sends byte by byte never times out in recv
                raise TimeoutError
            if not received:
                raise HolderSourceError("connection", "the server closed it within the answer")
            for event in protocol.receive_data(received):
                self._take(protocol, event)
            self._send(protocol)
        return self._message()

    def _take(self, protocol: "H2Connection", event: Any) -> None:
        from h2 import events  # noqa: PLC0415

        match event:
            case events.DataReceived():
                self._body += event.data or b""
                if len(self._body) > RESPONSE_BYTES_MAX + _PREFIX_BYTES:
                    raise HolderSourceError("too_large", f"more than {RESPONSE_BYTES_MAX} bytes")
                protocol.acknowledge_received_data(event.flow_controlled_length or 0, 1)
            case events.ResponseReceived() | events.TrailersReceived():
                self._headers.update(event.headers or ())
            case events.StreamEnded():
                self._ended = True
            # Ignore anything after the end of the answer.
            case events.StreamReset() | events.ConnectionTerminated() if not self._ended:
                raise HolderSourceError("reset", f"HTTP/2 error code {event.error_code}")
            case _:
                pass

    def _message(self) -> bytes:
        status = self._headers.get(b"grpc-status", b"").decode("ascii", "replace")
        if status != "0":
            http = self._headers.get(b":status", b"?").decode("ascii", "replace")
            # More digits than int() accepts would raise a different error.
            known = len(status) <= 2 and status.isdecimal() and int(status) < len(_STATUS_NAMES)
            detail = unquote(self._headers.get(b"grpc-message", b"").decode("utf-8", "replace"))
            raise HolderSourceError(
                _STATUS_NAMES[int(status)] if known else "protocol",
                detail or f"gRPC status {status[:40] or 'missing'}, HTTP status {http[:40]}",
            )
        if len(self._body) < _PREFIX_BYTES:
            raise HolderSourceError("protocol", "the answer holds no message")
        compressed, length = struct.unpack_from(">BI", self._body)
        if compressed or length != len(self._body) - _PREFIX_BYTES:
            raise HolderSourceError("protocol", "the answer is not one uncompressed message")
        return bytes(memoryview(self._body)[_PREFIX_BYTES:])

    def _send(self, protocol: "H2Connection") -> None:
        waiting = protocol.data_to_send()
        if waiting:
            self._connection.sendall(waiting)


def _open(method: str, timeout_seconds: float) -> "H2Connection":
    """A connection that has sent the request's headers, in stream 1."""
    from h2.config import H2Configuration  # noqa: PLC0415
    from h2.connection import H2Connection  # noqa: PLC0415
    from h2.settings import SettingCodes  # noqa: PLC0415

    protocol = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    protocol.initiate_connection()
    protocol.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES})
    protocol.increment_flow_control_window(_WINDOW_BYTES)
    headers = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("grpc-timeout", f"{max(1, int(timeout_seconds * 1000))}m"),
    )
    protocol.send_headers(1, headers)
    return protocol
