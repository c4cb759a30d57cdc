"""One GET over a socket whose every wait ends at one deadline. Loaded on first use."""

import base64
import http.client
import io
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote

from exporter.errors import Reason, ScrapeError


if TYPE_CHECKING:
    import ssl

_READ_BYTES = 64 * 1024


def exchange(
    parts: SplitResult,
    *,
    timeout_seconds: float,
    limit_bytes: int,
    clock: Callable[[], float],
    tls_context: "ssl.SSLContext | None",
    refusal_bytes: int,
) -> bytes | bytearray:
    """The decompressed body of the answer. Raises ScrapeError, soon after `timeout_seconds` at the latest."""
    path = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
    connection = _Connection(parts, clock() + timeout_seconds, clock, tls_context)
    try:
        return _get(connection, path, _authorization(parts), limit_bytes, refusal_bytes)
    except ScrapeError:
        raise
    except TimeoutError as error:
        raise ScrapeError(Reason.TIMEOUT, f"no answer in {timeout_seconds:g} s") from error
    except (http.client.HTTPException, ValueError) as error:
        raise ScrapeError(Reason.PROTOCOL, type(error).__name__) from error
    except OSError as error:
        raise ScrapeError(Reason.CONNECTION, error.strerror or type(error).__name__) from error
    finally:
        connection.hang_up()


def _authorization(parts: SplitResult) -> dict[str, str]:
    """Basic authentication, if the address has a user name."""
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _get(
    connection: "_Connection",
    path: str,
    authorization: dict[str, str],
    limit_bytes: int,
    refusal_bytes: int = 0,
) -> bytes | bytearray:
    connection.request(
        "GET",
        path,
        headers={
            "Accept": "text/plain;version=0.0.4",
            "Accept-Encoding": "identity",
            "User-Agent": "flopwatch",
            "Connection": "close",
            **authorization,
        },
    )
    response = connection.getresponse()
    if 300 <= response.status < 400:
        raise ScrapeError(Reason.REDIRECT, f"status {response.status}")
    if response.status != http.client.OK:
        refusal = b""
        # The status is known: a body that does not arrive changes nothing.
        with suppress(OSError, http.client.HTTPException, ValueError):
            refusal = response.read(refusal_bytes) if refusal_bytes else b""
        raise ScrapeError(Reason.HTTP_STATUS, f"status {response.status}", refusal)
    body = _read(response, limit_bytes)
    encoding = (response.getheader("Content-Encoding") or "identity").strip().lower()
    if encoding in {"gzip", "x-gzip", "deflate"}:
        body = _inflate(body, limit_bytes)
    elif encoding != "identity":
        raise ScrapeError(Reason.ENCODING, f"content encoding {encoding[:40]}")
    return body


def _read(response: http.client.HTTPResponse, limit_bytes: int) -> bytes | bytearray:
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


class _Connection(http.client.HTTPConnection):
    """An HTTP connection all of whose waits end at one deadline."""

    def __init__(
        self,
        parts: SplitResult,
        deadline: float,
        clock: Callable[[], float],
        tls_context: "ssl.SSLContext | None",
    ) -> None:
        self._tls = parts.scheme == "https"
        super().__init__(parts.hostname or "", parts.port or (443 if self._tls else 80))
        self._tls_context = tls_context
        self._deadline = deadline
        self._clock = clock
        self._plain: socket.socket | None = None

    def connect(self) -> None:
        """Connect, and apply the deadline to every read from the socket."""
        self._plain = socket.create_connection((self.host, self.port), self._remaining())
        if self._tls:
            self._plain.settimeout(self._remaining())
            import ssl  # noqa: PLC0415  5 MB, for those who have an engine behind TLS

            context = self._tls_context or ssl.create_default_context()
            self._plain = context.wrap_socket(self._plain, server_hostname=self.host)
        self.sock = _DeadlineSocket(self._plain, self._remaining)

    def hang_up(self) -> None:
        """Close the socket; http.client's own close() comes as early as the headers."""
        if self._plain is not None:
            self._plain.close()

    def _remaining(self) -> float:
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            raise TimeoutError
        return remaining


class _DeadlineSocket:
    """The part of a socket that http.client uses, with the time left set before each wait."""

    def __init__(self, inner: socket.socket, remaining: Callable[[], float]) -> None:
        self._inner = inner
        self._remaining = remaining

    def sendall(self, data: Any) -> None:
        """Send everything before the deadline."""
        self._inner.settimeout(self._remaining())
        self._inner.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a reader whose every receive ends at the deadline."""
        return io.BufferedReader(_DeadlineReader(self._inner, self._remaining))

    def close(self) -> None:
        """Leave the socket open: the answer's body is still to be read from it."""


class _DeadlineReader(io.RawIOBase):
    def __init__(self, inner: socket.socket, remaining: Callable[[], float]) -> None:
        super().__init__()
        self._inner = inner
        self._remaining = remaining

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._inner.settimeout(self._remaining())
        return self._inner.recv_into(buffer)
