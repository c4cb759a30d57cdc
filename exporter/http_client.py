"""The HTTP client: one GET, bounded in time and size, no redirects."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from exporter.errors import Reason, ScrapeError


if TYPE_CHECKING:
    import ssl


__all__ = ["LIMIT_BYTES", "Reason", "ScrapeError", "fetch", "without_credentials"]


# A busy vLLM exposes some 200 kB; eight engines behind one endpoint stay below this.
LIMIT_BYTES = 8 * 1024 * 1024


def fetch(
    url: str,
    *,
    timeout_seconds: float,
    limit_bytes: int = LIMIT_BYTES,
    undecodable: str = "strict",
    tls_context: "ssl.SSLContext | None" = None,
    clock: Callable[[], float] = time.monotonic,
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
    from exporter.http_exchange import exchange  # noqa: PLC0415  8 MB, for those who have an engine

    body = exchange(
        parts,
        timeout_seconds=timeout_seconds,
        limit_bytes=limit_bytes,
        clock=clock,
        tls_context=tls_context,
        refusal_bytes=refusal_bytes,
    )
    try:
        return body.decode("utf-8", undecodable)
    except UnicodeDecodeError as error:
        raise ScrapeError(Reason.ENCODING, "not UTF-8") from error


def without_credentials(url: str) -> str:
    """Return `url` in a form that may be logged: without user name and password."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
