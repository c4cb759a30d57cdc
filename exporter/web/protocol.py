"""HTTP/1.1 as bytes: a request's head parsed strictly, a response written. No I/O here.

Written for this server rather than taken from http.server, whose parser lets through what RFC 9112
forbids (folded headers, HTTP/0.9, two lengths) and answers errors in HTML with a version banner.
"""

import re
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from exporter.web.http import Response
from exporter.web.limits import Limits


END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # RFC 9110's word for it
_REQUEST_LINE: Final = re.compile(rf"({_TOKEN}) ([!-~]+) HTTP/([0-9])\.([0-9])")
_NAME: Final = re.compile(_TOKEN)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_METHOD_START: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]")
_ONCE: Final = frozenset({"authorization", "content-length", "host"})


class RefusedError(Exception):
    """A request that is answered by `status` and a short text, after which the connection closes."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class Head:
    """A request's line and headers, and what they say about the bytes that follow."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body_bytes: int
    keep_alive: bool
    expects_continue: bool


def may_begin_request(data: bytes | bytearray) -> bool:
    """Whether the first byte can begin a method; a TLS greeting or other noise cannot."""
    return _METHOD_START.match(data) is not None


def parse_head(data: bytes, limits: Limits) -> Head:
    """Parse a head without its empty line; lines end in CRLF or LF. Raises RefusedError."""
    lines = data.decode("latin-1").replace("\r\n", "\n").split("\n")
    method, target, minor = _request_line(lines[0], limits)
    if len(lines) - 1 > limits.header_count:
        raise RefusedError(431, f"more than {limits.header_count} headers")
    headers = _headers(lines[1:])
    if minor >= 1 and "host" not in headers:
        raise RefusedError(400, "the Host header is missing")
    path, query = _origin(target)
    connection = {word.strip().lower() for word in headers.get("connection", "").split(",")}
    return Head(
        method=method,
        path=urllib.parse.unquote(path, errors="replace"),
        query=query,
        headers=headers,
        body_bytes=_body_bytes(headers, limits),
        # HTTP/1.0 closes: its keep-alive is an old extension that no scraper relies on.
        keep_alive=minor >= 1 and "close" not in connection,
        expects_continue=minor >= 1 and headers.get("expect", "").lower() == "100-continue",
    )


def _request_line(line: str, limits: Limits) -> tuple[str, str, int]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise RefusedError(400, "malformed request line")
    method, target, major, minor = match.groups()
    if major != "1":
        raise RefusedError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if len(target) > limits.target_bytes:
        raise RefusedError(414, f"the request target is longer than {limits.target_bytes} bytes")
    return method, target, int(minor)


def _headers(lines: Iterable[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not (colon and _NAME.fullmatch(name)) or _CONTROL.search(value):
            raise RefusedError(400, "malformed header")
        name, value = name.lower(), value.strip(" \t")
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


def _body_bytes(headers: Mapping[str, str], limits: Limits) -> int:
    length = headers.get("content-length")
    if "transfer-encoding" in headers:
        if length is not None:
            raise RefusedError(400, "Content-Length and Transfer-Encoding contradict each other")
        raise RefusedError(411, "a body needs a Content-Length")
    if length is None:
        return 0
    if not (length.isascii() and length.isdecimal()):
        raise RefusedError(400, "Content-Length must be a number")
    if len(length.lstrip("0")) > len(str(limits.body_bytes)) or int(length) > limits.body_bytes:
        raise RefusedError(413, f"the body is larger than {limits.body_bytes} bytes")
    return int(length)


def encode_head(
    response: Response,
    *,
    extra_headers: Iterable[tuple[str, str]],
    close: bool,
    unix_seconds: float,
) -> bytes:
    """The status line and headers of a response. Raises ValueError on a header with line breaks."""
    headers = [("Date", formatdate(unix_seconds, usegmt=True))]
    if allows_body(response.status):
        headers.append(("Content-Type", response.content_type))
        headers.append(("Content-Length", str(len(response.body))))
    headers += extra_headers
    headers += response.headers
    if close:
        headers.append(("Connection", "close"))
    lines = [f"HTTP/1.1 {response.status} {_phrase(response.status)}"]
    for name, value in headers:
        line = f"{name}: {value}"
        if not line.isprintable():
            raise ValueError(f"unprintable character in header {name!r}")
        lines.append(line)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def allows_body(status: int) -> bool:
    """Whether a response of this status has a body (RFC 9110, section 6.4.1)."""
    return status >= 200 and status not in {204, 304}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
