"""Keeps web pages of other sites from changing the daemon through a visitor's browser.

A browser names the page's site in `Origin` (Fetch standard, section 3.2), and sends a form with one
of three content types. Against DNS rebinding, where the page's own name resolves to this host, the
`Host` header must be a name of this host.
"""

import ipaddress
import os
import socket
from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import urlsplit

from exporter.web.http import Handler, Request, Response, plain


# What a form can send without a preflight request (Fetch standard, section 2.2.2).
_FORM_TYPES: Final = frozenset(
    {"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"}
)


class CrossSiteGuard:
    """Refuses requests that a page of another site may have caused.

    `authenticates` says whether a request needs a password or certificate, which such a page does
    not have: any Host is then fine. `allowed_hosts` are names of this host beside its own.
    """

    def __init__(
        self, authenticates: Callable[[], bool], allowed_hosts: Collection[str] = ()
    ) -> None:
        self._authenticates = authenticates
        self._allowed_hosts = frozenset(host.lower() for host in (*allowed_hosts, *_own_names()))

    def protect(self, handler: Handler) -> Handler:
        """The handler, behind the guard."""

        def handle(request: Request) -> Response:
            return self.refusal(request) or handler(request)

        return handle

    def refusal(self, request: Request) -> Response | None:
        """403 or 415 with the reason, or None."""
        headers = request.headers
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return plain(403, "requests from pages of other sites are refused (Origin header)")
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            return plain(403, "requests from pages of other sites are refused (Sec-Fetch-Site)")
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type in _FORM_TYPES and headers.get("content-length", "0") != "0":
            return plain(415, "send no body, or one of type application/json")
        if not self._authenticates() and not self._knows(host):
            return plain(
                403,
                f"the Host header names {host!r}, which is not a known name of this host; "
                "use an IP address, or add it to web.allowed_hosts",
            )
        return None

    def _knows(self, host: str) -> bool:
        name = _without_port(host).lower()
        if not name or name in self._allowed_hosts:
            return True  # HTTP/1.0 has no Host, and no browser speaks it
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _own_names() -> frozenset[str]:
    own = socket.gethostname()
    # The node's name, which a pod gets from the downward API.
    return frozenset({"localhost", own, own.partition(".")[0], os.environ.get("NODE_NAME") or own})
