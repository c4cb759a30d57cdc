"""The status page's service: follows the devices, and renders on request."""

import gzip
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qs

import msgspec

from exporter.device_state import UNKNOWN, DeviceState
from exporter.metrics.findings import DeviceFindings
from exporter.status.build import StatusSources, build_status
from exporter.status.document import STATUS_PATH, Device, Status
from exporter.status.history import Histories, Memory
from exporter.web.http import Request, Response, Router
from exporter.web.routes import accepts_gzip


HTML = "text/html; charset=utf-8"
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
PAGE_PATH = "/"
# A page is reused for as long as no tick can have brought anything new, and a second at most.
_REUSE_SECONDS = 1.0
# While somebody scrapes, findings are judged this often by the daemon's main loop, so that no scrape
# waits for it; a scrape does it itself only when they are much older. Else they are judged each minute.
_FINDINGS_SECONDS = 10.0
_FINDINGS_REUSE_SECONDS = 15.0
_TEND_SECONDS = 60.0
_SCRAPED_SECONDS = 150.0
_GZIP_LEVEL = 4
# Single-device pages are kept for the tick too, but not more than there can be devices.
_BODIES_MAX = 256


class StatusService:
    """Page, JSON and configuration. All methods may be called from any thread."""

    def __init__(
        self,
        sources: StatusSources,
        *,
        clock: Callable[[], float] = time.monotonic,
        memory: Memory | None = None,
    ) -> None:
        """`memory` is what was kept of the devices before; without one, nothing is."""
        self._sources = sources
        self._clock = clock
        self._started_at = clock()
        self._histories = Histories(memory)
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._built_at = 0.0
        self._bodies: dict[str, bytes] = {}
        self._findings: list[DeviceFindings] = []
        self._judged_at: float | None = None
        self._scraped_at: float | None = None

    def observe(self, snapshot: DeviceState) -> None:
        """Take a device's next snapshot: microseconds, constant memory, never raises.

        The same snapshot twice does no harm, and one that was missed loses nothing but resolution:
        the history follows counters.
        """
        self._histories.observe(snapshot)

    def add_routes(self, router: Router) -> None:
        """Serve everything; the page gives way where the metrics were given its path."""
        for path, handler in (
            (PAGE_PATH, self.page),
            (STATUS_PATH, self.document),
            ("/config", self.configuration),
            ("/docs/metrics", _metrics_page),
            ("/docs/configuration", _configuration_page),
        ):
            if path != self._sources.telemetry_path:
                router.add(path, "GET", handler)

    def page(self, request: Request) -> Response:
        """`/`, and with `?gpu=3` that device alone."""
        wanted = parse_qs(request.query).get("gpu")
        only = wanted[0] if wanted else None
        with self._lock:
            status = self._current()
            if only is not None and only not in {device.gpu for device in status.devices}:
                return Response(404, _page(status, only), HTML, security_headers())
            key = f"page {only or ''}"
            body = self._body(key, lambda: _page(status, only))
            return self._response(key, body, HTML, request)

    def document(self, request: Request) -> Response:
        """`/api/v1/status`."""
        with self._lock:
            status = self._current()
            body = self._body("json", lambda: msgspec.json.encode(status))
            return self._response("json", body, JSON, request)

    def configuration(self, request: Request) -> Response:
        """`/config`: the active configuration as YAML, secrets masked."""
        from exporter.documentation import configuration_text  # noqa: PLC0415  as `_page`

        return _text(configuration_text(self._sources.configuration()))

    def status(self) -> Status:
        """The document as of now; at most a tick old."""
        with self._lock:
            return self._current()

    def findings(self) -> list[DeviceFindings]:
        """What holds of each device, for the metrics; at most 15 seconds old."""
        with self._lock:
            self._scraped_at = self._clock()
            self._judge(_FINDINGS_REUSE_SECONDS)
            return self._findings

    def tend(self) -> None:
        """Keep what must outlive the exporter. Called by the daemon's main loop; cheap."""
        with self._lock:
            scraped = self._scraped_at
            is_scraped = scraped is not None and self._clock() - scraped < _SCRAPED_SECONDS
            self._judge(_FINDINGS_SECONDS if is_scraped else _TEND_SECONDS)
        with self._histories.lock:
            self._histories.memory.save()

    def _judge(self, reuse_seconds: float) -> None:
        """Find out what holds now, unless that was done within this time."""
        now = self._clock()
        if self._judged_at is not None and now - self._judged_at < reuse_seconds:
            return
        status = self._build(now, charts=False)
        self._judged_at = now
        self._findings = [
            DeviceFindings(
                _labels(device),
                tuple(device.findings),
                device.finding_since_unix_seconds,
                device.reset_unix_seconds,
            )
            for device in status.devices
            if device.uuid != UNKNOWN
        ]

    def _current(self) -> Status:
        now = self._clock()
        reuse = min(self._sources.interval_seconds(), _REUSE_SECONDS)
        if self._status is None or now - self._built_at >= reuse:
            self._status = self._build(now, charts=True)
            self._built_at = now
            self._bodies.clear()
        return self._status

    def _build(self, now: float, *, charts: bool) -> Status:
        return build_status(
            self._sources,
            self._histories,
            now_seconds=now,
            uptime_seconds=now - self._started_at,
            charts=charts,
        )

    def _body(self, key: str, render: Callable[[], bytes]) -> bytes:
        body = self._bodies.get(key)
        if body is None:
            body = render()
            if len(self._bodies) < _BODIES_MAX:
                self._bodies[key] = body
        return body

    def _response(self, key: str, body: bytes, content_type: str, request: Request) -> Response:
        headers: tuple[tuple[str, str], ...] = (*security_headers(), ("Vary", "Accept-Encoding"))
        if accepts_gzip(request.headers.get("accept-encoding")):
            body = self._body(f"{key} gzip", lambda: gzip.compress(body, _GZIP_LEVEL, mtime=0))
            headers = (*headers, ("Content-Encoding", "gzip"))
        return Response(200, body, content_type, headers)


def security_headers() -> tuple[tuple[str, str], ...]:
    """The headers of everything that a browser may show."""
    from exporter.status.page import SECURITY_HEADERS  # noqa: PLC0415  as `_page`

    return SECURITY_HEADERS


def _page(status: Status, only: str | None) -> bytes:
    # 5 MB, for those who look at it.
    from exporter.status.page import render_page  # noqa: PLC0415

    return render_page(status, only=only).encode()


def _labels(device: Device) -> tuple[tuple[str, str], ...]:
    """The labels of the device's series."""
    labels = (("gpu", device.gpu), ("uuid", device.uuid))
    return labels if device.mig is None else (*labels, ("mig", device.mig))


def _metrics_page(_request: Request) -> Response:
    from exporter.documentation import metrics_page  # noqa: PLC0415  as `_page`

    return _text(metrics_page())


def _configuration_page(_request: Request) -> Response:
    from exporter.documentation import configuration_page  # noqa: PLC0415  as `_page`

    return _text(configuration_page())


def _text(text: str) -> Response:
    return Response(200, text.encode(), TEXT, security_headers())
