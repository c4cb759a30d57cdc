"""Requests, responses and the router, and HTTP/1.1 as bytes: h11 parses, under this server's limits. No I/O here."""

import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import h11
import structlog

from exporter.web.connections import Limits


log = structlog.get_logger(__name__)

PLAIN_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """One parsed request; its body, if any, has been read and dropped.

    `path` is percent-decoded, `query` is what follows `?`, still encoded. Names in `headers` are
    lower-case; a repeated header is joined by commas. `client` is the peer's IP address.
    """

    method: str
    path: str
    query: str
    # Not shown in tracebacks: they hold the password.
    headers: Mapping[str, str] = field(repr=False)
    client: str


@dataclass(frozen=True, slots=True)
class Response:
    """The response; the server adds Date, Content-Length and, when it closes, Connection."""

    status: int
    body: bytes = b""
    content_type: str = PLAIN_TEXT
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Response]


def plain(status: int, text: str = "", headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """A one-line plain text response; without `text`, the status's own phrase."""
    line = text or HTTPStatus(status).phrase.lower()
    return Response(status, f"{line}\n".encode(), headers=headers)


def respond(handler: Handler, request: Request) -> Response:
    """Call a handler; one that raises is logged with its traceback and answered by a bare 500."""
    try:
        return handler(request)
    except Exception:  # one broken page must not affect the others, nor show its traceback
        log.exception("request_failed", method=request.method, path=request.path)
        return plain(500)


class Router:
    """Finds the handler of a path. Add all routes before serving; then it is thread-safe.

    A trailing slash is ignored. Without a route the answer is 404, or 405 with Allow if the path
    has other methods. HEAD calls the GET handler; the server drops the body.
    """

    def __init__(self) -> None:
        self._routes: dict[str, dict[str, Handler]] = {}

    def add(self, path: str, methods: str | Iterable[str], handler: Handler) -> None:
        """Serve `path` for one or more methods; a second handler for the same two is an error."""
        routes = self._routes.setdefault(path, {})
        for method in (methods,) if isinstance(methods, str) else methods:
            if method in routes:
                raise ValueError(f"{method} {path} has a handler already")
            routes[method] = handler

    def __call__(self, request: Request) -> Response:
        """Answer a request: the router is itself a Handler."""
        path = request.path
        routes = self._routes.get(path) or self._routes.get(path.rstrip("/") or "/")
        if routes is None:
            return plain(404)
        method = request.method
        if method == "HEAD" and method not in routes:
            method = "GET"
        handler = routes.get(method)
        if handler is None:
            allowed = sorted({*routes, "HEAD"} if "GET" in routes else routes)
            return plain(405, headers=(("Allow", ", ".join(allowed)),))
        return respond(handler, request)


# ---- as bytes ----

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_ONCE: Final = frozenset({"authorization", "host"})


class RefusedError(Exception):
    """A request that is answered by `status` and a short text, after which the connection closes."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class Head:
    """A parsed request, without its client."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)
    keeps_alive: bool


# A longer request, one with another header, and one with a query are not kept: they may hold a secret,
# or need more than an answer.
_KEPT_BYTES_MAX: Final = 2048
_KEPT_HEADERS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "host",
        "user-agent",
        "x-prometheus-scrape-timeout-seconds",
    }
)


class KnownHeads:
    """What h11 has made of requests without a body, by their bytes: a scraper sends the same each time.

    Used by all connections of a server. Thread-safe.
    """

    def __init__(self, limit: int = 32) -> None:
        """When `limit` are kept, a new one takes the place of all of them."""
        self._limit = limit
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytes) -> Head | None:
        """What these bytes are, if they were a whole request before."""
        return self._heads.get(data)

    def keep(self, data: bytes, head: Head) -> None:
        """Keep what these bytes were: a whole request, and nothing else."""
        if len(data) > _KEPT_BYTES_MAX or head.query or not head.headers.keys() <= _KEPT_HEADERS:
            return
        if not data.startswith(b"/", len(head.method) + 1):
            return  # a whole URL, which may hold a password
        if len(self._heads) >= self._limit:
            self._heads.clear()
        self._heads[data] = head


class HttpProtocol:
    """One connection's requests and responses, one at a time."""

    def __init__(self, limits: Limits, client: str, known: KnownHeads | None = None) -> None:
        """`client` is the peer's address, for the requests."""
        self._limits = limits
        self._client = client
        self._known = known or KnownHeads()
        # None until there are bytes that are not a known request.
        self._connection: h11.Connection | None = None
        self._repeated: Head | None = None
        # The first bytes of a request, while nothing else has followed them.
        self._piece: bytes | None = None
        self._head: Head | None = None
        self._is_complete = False
        self._body_bytes = 0

    @property
    def has_received(self) -> bool:
        """Whether bytes of the next request have arrived."""
        if self._connection is None:
            return self._repeated is not None
        return bool(self._connection.trailing_data[0])

    @property
    def awaits_continue(self) -> bool:
        """Whether the client sends its body only after an interim response."""
        connection = self._connection
        return connection is not None and connection.they_are_waiting_for_100_continue

    def feed(self, data: bytes) -> None:
        """Take received bytes."""
        if not data:
            return
        connection = self._connection
        if connection is not None:
            self._piece = None
        else:
            if self._repeated is None:
                data = data.lstrip(b"\r\n")  # RFC 9112, section 2.2: empty lines before a request
                if not data:
                    return
                self._piece = data
                self._repeated = self._known.find(data)
                if self._repeated is not None:
                    return
            else:  # more than a known request
                data = (self._piece or b"") + data
                self._piece = self._repeated = None
            self._connection = connection = _parser(self._limits)
        connection.receive_data(data)

    def request(self) -> Request | None:
        """The next request; None until its head is complete. Raises RefusedError."""
        self._body_bytes = 0
        self._is_complete = self._repeated is not None
        self._head, self._repeated = self._repeated, None
        if self._head is None and self._connection is not None:
            event = self._next_event(self._connection)
            if isinstance(event, h11.Request):
                self._head = _head(event, self._limits)
        head = self._head
        if head is None:
            return None
        return Request(
            method=head.method,
            path=head.path,
            query=head.query,
            headers=head.headers,
            client=self._client,
        )

    def body_is_complete(self) -> bool:
        """Discard what has arrived of the body; whether it is complete. Raises RefusedError."""
        connection = self._connection
        if self._is_complete or connection is None:
            return self._is_complete
        while True:
            event = self._next_event(connection)
            if event is h11.NEED_DATA:
                return False
            if isinstance(event, h11.EndOfMessage):
                self._keep(connection)
                return True
            if isinstance(event, h11.ConnectionClosed):
                return True
            if isinstance(event, h11.Data):
                self._body_bytes += len(event.data)
                _check_body(self._body_bytes, self._limits)

    def _keep(self, connection: h11.Connection) -> None:
        is_whole = not self._body_bytes and not connection.trailing_data[0]
        if self._piece is not None and self._head is not None and is_whole:
            self._known.keep(self._piece, self._head)

    def encode(
        self,
        response: Response,
        *,
        extra_headers: Iterable[tuple[str, str]],
        close: bool,
        unix_seconds: float,
    ) -> tuple[bytes, bytes]:
        """Head and body of the response as bytes. Raises ValueError on a header that is not one line.

        The connection ends after it if `close` is true, or the client cannot or will not go on.
        """
        has_body = response.status not in {204, 304}  # RFC 9110, section 6.4.1
        headers = [("Date", _date(unix_seconds))]
        if has_body:
            headers.append(("Content-Type", response.content_type))
            headers.append(("Content-Length", str(len(response.body))))
        headers += extra_headers
        headers += response.headers
        head = self._head
        if close or head is None or not head.keeps_alive:
            headers.append(("Connection", "close"))
        lines = [f"{name}: {value}" for name, value in headers]
        if any(mark in line for line in lines for mark in "\r\n\0"):
            raise ValueError("a header of the response is not one line")
        text = "\r\n".join(
            (f"HTTP/1.1 {response.status} {_phrase(response.status)}", *lines, "\r\n")
        )
        asks_for_body = head is None or head.method != "HEAD"
        return text.encode("latin-1"), response.body if has_body and asks_for_body else b""

    def next_request(self) -> bool:
        """Prepare for the next request; False where the connection must close instead."""
        if self._head is None or not self._head.keeps_alive:
            return False
        connection, self._connection = self._connection, None
        if connection is not None:
            self.feed(connection.trailing_data[0])
        return True

    def _next_event(self, connection: h11.Connection) -> object:
        try:
            return connection.next_event()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            raise RefusedError(status, _REASONS.get(status, str(error))) from None


# h11's messages about these name its own internals.
_REASONS: Final = {
    431: "the head is too large",
    501: "chunked is the only supported transfer coding",
}


def _parser(limits: Limits) -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)


def _says_close(headers: Mapping[str, str]) -> bool:
    options = headers.get("connection", "").lower().split(",")
    return "close" in map(str.strip, options)


def _head(request: h11.Request, limits: Limits) -> Head:
    if request.http_version not in {b"1.0", b"1.1"}:
        raise RefusedError(505, "only HTTP/1.0 and HTTP/1.1 are supported")
    if len(request.target) > limits.target_bytes:
        raise RefusedError(414, f"the request target is longer than {limits.target_bytes} bytes")
    headers = _headers(request, limits)
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers and "content-length" in headers:
        raise RefusedError(400, "Content-Length and Transfer-Encoding contradict each other")
    _check_body(int(length), limits)
    path, query = _origin(request.target.decode("latin-1"))
    return Head(
        method=request.method.decode("latin-1"),
        path=urllib.parse.unquote(path, errors="replace"),
        query=query,
        headers=headers,
        keeps_alive=request.http_version == b"1.1" and not _says_close(headers),
    )


def _headers(request: h11.Request, limits: Limits) -> dict[str, str]:
    if len(request.headers) > limits.header_count:
        raise RefusedError(431, f"more than {limits.header_count} headers")
    headers: dict[str, str] = {}
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name in _ONCE:
            raise RefusedError(400, "a header that may occur once occurs twice")
        else:
            headers[name] = f"{headers[name]}, {value}"
    return headers


def _origin(target: str) -> tuple[str, str]:
    """The path and query of a target; a client that takes us for a proxy sends the whole URL."""
    path, _, query = target.partition("?")
    scheme, _, rest = path.partition("://")
    if scheme.lower() in {"http", "https"}:
        path = "/" + rest.partition("/")[2]
    if not path.startswith("/"):
        raise RefusedError(400, "the request target must be a path")
    return path, query


def _check_body(size: int, limits: Limits) -> None:
    if size > limits.body_bytes:
        raise RefusedError(413, f"the body is larger than {limits.body_bytes} bytes")


_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)


def _date(unix_seconds: float) -> str:
    """The time as HTTP has it, whatever the locale (RFC 9110, section 5.6.7)."""
    at = time.gmtime(unix_seconds)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    clock = f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}"
    return f"{day}, {at.tm_mday:02d} {month} {at.tm_year} {clock} GMT"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
