"""Requests, responses and the router: what the server and the endpoints share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import structlog


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
            return plain(405, headers=(("Allow", self._allowed(routes)),))
        return respond(handler, request)

    @staticmethod
    def _allowed(routes: dict[str, Handler]) -> str:
        methods = set(routes)
        if "GET" in methods:
            methods.add("HEAD")
        return ", ".join(sorted(methods))
