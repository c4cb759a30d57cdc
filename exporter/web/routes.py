"""The daemon's HTTP endpoints."""

import ipaddress
import os
import socket
import urllib.parse
from collections.abc import Callable, Collection
from typing import Any, Final
from urllib.parse import urlsplit

from exporter.errors import FlopwatchError
from exporter.metrics.catalogue import BY_NAME
from exporter.metrics.render import Exposition
from exporter.web.http import Handler, Request, Response, Router, plain
from exporter.web.negotiation import accepts_gzip, choose_format


# Families that prometheus_client contributes.
_CLIENT_LIBRARY_PREFIXES = ("process_", "python_")


def metrics_handler(exposition: Exposition[Any]) -> Callable[[Request], Response]:
    """`/metrics`: the last snapshot's bytes; no request ever reaches a device."""

    def handle(request: Request) -> Response:
        format_, content_type = choose_format(request.headers.get("accept"))
        compressed = accepts_gzip(request.headers.get("accept-encoding"))
        if request.query:
            parameters = urllib.parse.parse_qs(request.query, keep_blank_values=True)
            if "collect[]" in parameters:
                return plain(400, "collect[] is not supported; choose families with name[]")
            if "name[]" in parameters:
                names = frozenset(parameters["name[]"])
                unknown = sorted(name for name in names if not _is_family(name))
                if unknown:
                    return plain(400, f"name[]: unknown metric family: {', '.join(unknown)}")
                body = only_families(exposition.render(format_, compressed=False), names)
                return Response(200, body, content_type, (("Vary", "Accept"),))
        body = exposition.render(format_, compressed=compressed)
        headers = (("Content-Encoding", "gzip"),) if compressed else ()
        return Response(200, body, content_type, (*headers, ("Vary", "Accept, Accept-Encoding")))

    return handle


def only_families(exposition: bytes, names: Collection[str]) -> bytes:
    """The part of an exposition that belongs to the families, by their full names (`_total`)."""
    kept: list[str] = []
    wanted = True
    for line in exposition.decode().splitlines(keepends=True):
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            # OpenMetrics leaves the suffix of a counter out of its HELP line.
            wanted = name in names or f"{name}_total" in names
        if wanted or line.startswith("# EOF"):
            kept.append(line)
    return "".join(kept).encode()


def _is_family(name: str) -> bool:
    return name in BY_NAME or name.startswith(_CLIENT_LIBRARY_PREFIXES)


def add_health(router: Router, ready: Callable[[], bool]) -> None:
    """`/-/healthy`: the HTTP loop lives; `/-/ready`: a device's snapshot is fresh. No driver call."""

    def is_ready(_request: Request) -> Response:
        return plain(200, "ready") if ready() else plain(503, "no device has a fresh snapshot")

    router.add("/-/healthy", "GET", lambda _request: plain(200, "healthy"))
    router.add("/-/ready", "GET", is_ready)


# What a form can send without a preflight request (Fetch standard, section 2.2.2).
_FORM_TYPES: Final = frozenset(
    {"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"}
)


class CrossSiteGuard:
    """Refuses requests that a page of another site may have caused through a visitor's browser.

    A browser names the page's site in `Origin` (Fetch standard, section 3.2), and sends a form with
    one of three content types. Against DNS rebinding, where the page's own name resolves to this
    host, the `Host` header must be a name of this host.

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


def add_lifecycle(
    router: Router,
    guard: CrossSiteGuard,
    *,
    enabled: bool,
    reload: Callable[[], str],
    pause_probes: Callable[[], None],
    resume_probes: Callable[[], None],
) -> None:
    """The endpoints that change the daemon, by POST or PUT, behind the guard.

    They are refused unless --web.enable-lifecycle was given. An action returns the outcome as text,
    or None, and raises FlopwatchError with the reason for a failure.
    """

    def add(path: str, action: Callable[[], str | None], done: str) -> None:
        def handle(_request: Request) -> Response:
            if not enabled:
                return plain(
                    403, "the lifecycle API is disabled; enable it with --web.enable-lifecycle"
                )
            try:
                outcome = action()
            except FlopwatchError as error:
                return plain(500, str(error))
            return plain(200, outcome or done)

        router.add(path, ("POST", "PUT"), guard.protect(handle))

    add("/-/reload", reload, "configuration reloaded")
    add("/-/probes/pause", pause_probes, "probes paused")
    add("/-/probes/resume", resume_probes, "probes resumed")
