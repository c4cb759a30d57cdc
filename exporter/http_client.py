"""The HTTP client: one GET over a socket whose every wait ends at one deadline, bounded in size, no redirects."""

import binascii
import io
import socket
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from exporter.errors import Reason, ScrapeError


if TYPE_CHECKING:
    import ssl
    from http.client import HTTPConnection, HTTPResponse


# A busy vLLM exposes some 200 kB; eight engines behind one endpoint stay below this.
LIMIT_BYTES = 8 * 1024 * 1024
_READ_BYTES = 64 * 1024


def fetch(
    url: str,
    *,
    timeout_seconds: float,
    limit_bytes: int = LIMIT_BYTES,
    undecodable: str = "strict",
    tls_context: "ssl.SSLContext | None" = None,
    refusal_bytes: int = 0,
) -> str:
    """Return the text at `url`, or raise ScrapeError within about `timeout_seconds`.

    The deadline is for the whole exchange, so a server that sends a byte a second gains nothing.
    Only name resolution, which the operating system bounds, is not covered. `undecodable` decides
    about bytes that are not UTF-8: "strict" refuses the answer, "replace" marks them. Without a
    `tls_context`, the system's certificates are trusted. Of the body of another status than 200,
    `refusal_bytes` are kept in the error.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ScrapeError(Reason.BAD_URL, str(error)) from error
    if parts.scheme not in {"http", "https"} or not host:
        raise ScrapeError(Reason.BAD_URL, "not an http or https address")
    deadline = time.monotonic() + timeout_seconds

    def remaining() -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    try:
        body = _exchange(parts, remaining, limit_bytes, refusal_bytes, tls_context)
        return body.decode("utf-8", undecodable)
    except TimeoutError as error:
        raise ScrapeError(Reason.TIMEOUT, f"no answer in {timeout_seconds:g} s") from error
    except UnicodeDecodeError as error:
        raise ScrapeError(Reason.ENCODING, "not UTF-8") from error


def without_credentials(url: str) -> str:
    """Return `url` in a form that may be logged: without user name and password."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _exchange(
    parts: SplitResult,
    remaining: Callable[[], float],
    limit_bytes: int,
    refusal_bytes: int,
    tls_context: "ssl.SSLContext | None",
) -> bytes | bytearray:
    """The decompressed body of the answer. `remaining` is the time until the deadline.

    Raises ScrapeError or TimeoutError.
    """
    # 8 MB, for those who have an engine.
    from http.client import HTTPConnection, HTTPException, InvalidURL  # noqa: PLC0415

    sock = None
    try:
        tls = parts.scheme == "https"
        connection = HTTPConnection(parts.hostname or "", parts.port or (443 if tls else 80))
        sock = socket.create_connection((connection.host, connection.port), remaining())
        if tls:
            import ssl  # noqa: PLC0415  5 MB, for those who have an engine behind TLS

            sock.settimeout(remaining())
            context = tls_context or ssl.create_default_context()
            sock = context.wrap_socket(sock, server_hostname=connection.host)
        connection.sock = _DeadlineSocket(sock, remaining)
        return _get(connection, parts, limit_bytes, refusal_bytes)
    except (ScrapeError, TimeoutError):
        raise
    except InvalidURL as error:
        raise ScrapeError(Reason.BAD_URL, str(error)) from error
    except (HTTPException, ValueError) as error:
        raise ScrapeError(Reason.PROTOCOL, type(error).__name__) from error
    except OSError as error:
        raise ScrapeError(Reason.CONNECTION, error.strerror or type(error).__name__) from error
    finally:
        if sock is not None:
            sock.close()


def _get(
    connection: "HTTPConnection", parts: SplitResult, limit_bytes: int, refusal_bytes: int
) -> bytes | bytearray:
    from http.client import HTTPException  # noqa: PLC0415  as `_exchange`

    headers = {
        "Accept": "text/plain;version=0.0.4",
        "Accept-Encoding": "identity",
        "User-Agent": "flopwatch",
        "Connection": "close",
    }
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        encoded = binascii.b2a_base64(pair.encode(), newline=False).decode()
        headers["Authorization"] = f"Basic {encoded}"
    path = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    if 300 <= response.status < 400:
        raise ScrapeError(Reason.REDIRECT, f"status {response.status}")
    if response.status != 200:
        refusal = b""
        # The status is known: a body that does not arrive changes nothing.
        with suppress(OSError, HTTPException, ValueError):
            refusal = response.read(refusal_bytes) if refusal_bytes else b""
        raise ScrapeError(Reason.HTTP_STATUS, f"status {response.status}", refusal)
    body = _read(response, limit_bytes)
    encoding = (response.getheader("Content-Encoding") or "identity").strip().lower()
    if encoding in {"gzip", "x-gzip", "deflate"}:
        body = _inflate(body, limit_bytes)
    elif encoding != "identity":
        raise ScrapeError(Reason.ENCODING, f"content encoding {encoding[:40]}")
    return body


def _read(response: "HTTPResponse", limit_bytes: int) -> bytes | bytearray:
    too_large = ScrapeError(Reason.TOO_LARGE, f"more than {limit_bytes} bytes")
    if (response.length or 0) > limit_bytes:
        raise too_large
    body = bytearray()
    while chunk := response.read(_READ_BYTES):
        body += chunk
        if len(body) > limit_bytes:
            raise too_large
    # read() with a size returns what came before an early close without complaint.
    if response.length:
        raise ScrapeError(Reason.PROTOCOL, "answer cut short")
    return body


def _inflate(body: bytes | bytearray, limit_bytes: int) -> bytes:
    """Decompress at most `limit_bytes`: a small answer can expand into gigabytes."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        text = inflater.decompress(body, limit_bytes)
    except zlib.error as error:
        raise ScrapeError(Reason.ENCODING, "broken compression") from error
    if inflater.unconsumed_tail:
        raise ScrapeError(Reason.TOO_LARGE, f"unfolds to more than {limit_bytes} bytes")
    if not inflater.eof:
        raise ScrapeError(Reason.ENCODING, "compression cut short")
    return text


class _DeadlineSocket(io.RawIOBase):
    """The part of a socket that http.client uses, with the time left set before each wait."""

    def __init__(self, inner: socket.socket, remaining: Callable[[], float]) -> None:
        super().__init__()
        self._inner = inner
        self._remaining = remaining

    def sendall(self, data: Any) -> None:
        """Send everything before the deadline."""
        self._inner.settimeout(self._remaining())
        self._inner.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a reader whose every receive ends at the deadline."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._inner.settimeout(self._remaining())
        return self._inner.recv_into(buffer)

    def close(self) -> None:
        """Leave the socket open: the answer's body is still to be read from it."""
