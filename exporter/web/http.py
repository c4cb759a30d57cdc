"""The interface of the web server and the routes: a request in, a response out."""

from collections.abc import Callable, Mapping
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
