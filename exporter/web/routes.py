"""What the daemon answers over HTTP."""

from collections.abc import Callable
from dataclasses import dataclass

from exporter.errors import FlopwatchError
from exporter.exposition.render import Exposition
from exporter.web.http import Request, Response, plain
from exporter.web.negotiation import accepts_gzip, choose_format
from exporter.web.routing import Router


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What may be asked of the daemon over HTTP. Each raises FlopwatchError with the reason."""

    reload: Callable[[], None]
    pause_probes: Callable[[], None]
    resume_probes: Callable[[], None]


def metrics_handler(exposition: Exposition) -> Callable[[Request], Response]:
    """`/metrics`: the last snapshot's bytes; no request ever reaches a device."""

    def handle(request: Request) -> Response:
        format_, content_type = choose_format(request.headers.get("accept"))
        compressed = accepts_gzip(request.headers.get("accept-encoding"))
        body = exposition.render(format_, compressed=compressed)
        headers = (("Content-Encoding", "gzip"),) if compressed else ()
        return Response(200, body, content_type, (*headers, ("Vary", "Accept, Accept-Encoding")))

    return handle


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
    action: Callable[[], None], done: str, *, enabled: bool
) -> Callable[[Request], Response]:
    """A POST that changes the daemon; refused unless --web.enable-lifecycle was given."""

    def handle(_request: Request) -> Response:
        if not enabled:
            return plain(403, "lifecycle API is off; start with --web.enable-lifecycle")
        try:
            action()
        except FlopwatchError as error:
            return plain(500, str(error))
        return plain(200, done)

    return handle


def add_lifecycle(router: Router, lifecycle: Lifecycle, *, enabled: bool) -> None:
    """The mutating endpoints, by POST or PUT."""
    for path, action, done in (
        ("/-/reload", lifecycle.reload, "configuration reloaded"),
        ("/-/probes/pause", lifecycle.pause_probes, "probes paused"),
        ("/-/probes/resume", lifecycle.resume_probes, "probes resumed"),
    ):
        router.add(path, ("POST", "PUT"), lifecycle_handler(action, done, enabled=enabled))
