"""The daemon's HTTP endpoints."""

import urllib.parse
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from exporter.errors import FlopwatchError
from exporter.metrics.catalogue import BY_NAME
from exporter.metrics.render import Exposition
from exporter.web.cross_site import CrossSiteGuard
from exporter.web.http import Request, Response, plain
from exporter.web.negotiation import accepts_gzip, choose_format
from exporter.web.routing import Router


# Families that prometheus_client contributes.
_CLIENT_LIBRARY_PREFIXES = ("process_", "python_")


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The daemon's actions behind the POST endpoints. Each raises FlopwatchError with the reason."""

    reload: Callable[[], str]
    pause_probes: Callable[[], None]
    resume_probes: Callable[[], None]


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
                    return plain(400, f"name[]: no family is called {', '.join(unknown)}")
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


def health_handlers(
    ready: Callable[[], bool],
) -> tuple[Callable[[Request], Response], Callable[[Request], Response]]:
    """`/-/healthy`: the HTTP loop lives; `/-/ready`: a device's snapshot is fresh. No driver call."""

    def healthy(_request: Request) -> Response:
        return plain(200, "healthy")

    def is_ready(_request: Request) -> Response:
        return plain(200, "ready") if ready() else plain(503, "no device has a fresh snapshot")

    return healthy, is_ready


def lifecycle_handler(
    action: Callable[[], str | None], done: str, *, enabled: bool
) -> Callable[[Request], Response]:
    """A POST that changes the daemon; refused unless --web.enable-lifecycle was given."""

    def handle(_request: Request) -> Response:
        if not enabled:
            return plain(403, "lifecycle API is off; start with --web.enable-lifecycle")
        try:
            said = action()
        except FlopwatchError as error:
            return plain(500, str(error))
        return plain(200, said or done)

    return handle


def add_lifecycle(
    router: Router, lifecycle: Lifecycle, guard: CrossSiteGuard, *, enabled: bool
) -> None:
    """The mutating endpoints, by POST or PUT, behind the guard."""
    for path, action, done in (
        ("/-/reload", lifecycle.reload, "configuration reloaded"),
        ("/-/probes/pause", lifecycle.pause_probes, "probes paused"),
        ("/-/probes/resume", lifecycle.resume_probes, "probes resumed"),
    ):
        handler = lifecycle_handler(action, done, enabled=enabled)
        router.add(path, ("POST", "PUT"), guard.protect(handler))
