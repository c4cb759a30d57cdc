"""Points to bytes, through prometheus_client: one rendering per state of the world and format."""

import gzip
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from exporter.metrics import own
from exporter.metrics.catalogue import CATALOGUE
from exporter.metrics.family import Family, MetricType, Point
from exporter.web.negotiation import Format


# A second scraper within this time gets the bytes of the first, even if a tick came between: the
# devices of a host tick at the same instant, and half of their snapshots would be rendered twice.
_REUSE_SECONDS = 0.2
# Level 1 costs a third of level 6 and leaves text like this a tenth of its size.
_GZIP_LEVEL = 1


class PointsCollector(Collector):
    """Groups points into families, in the order of the catalogue, and keeps the series limit."""

    def __init__(self, points: Callable[[], Iterable[Point]], limit: Callable[[], int]) -> None:
        self._points = points
        self._limit = limit
        self._dropped = 0

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families that have points."""
        limit = self._limit()
        grouped: dict[Family, list[Point]] = {}
        count = 0
        for point in self._points():
            # The exporter's own health is never dropped, or nobody would learn of the limit.
            if count >= limit and point.family not in _ALWAYS:
                self._dropped += 1
                continue
            count += 1
            grouped.setdefault(point.family, []).append(point)
        grouped[own.SERIES] = [Point(own.SERIES, (), float(count + 2))]
        grouped[own.SERIES_DROPPED_TOTAL] = [
            Point(own.SERIES_DROPPED_TOTAL, (), float(self._dropped))
        ]
        for family in CATALOGUE:
            points = grouped.get(family)
            if points:
                yield _metric(family, points)


_ALWAYS = frozenset(own.FAMILIES)


def _metric(family: Family, points: Iterable[Point]) -> Metric:
    counter = family.type is MetricType.COUNTER
    metric = Metric(
        family.name.removesuffix("_total") if counter else family.name, family.help, family.type
    )
    metric.samples = [
        Sample(family.name + point.suffix, dict(point.labels), point.value) for point in points
    ]
    return metric


class Exposition:
    """Renders on demand and remembers the bytes by format and encoding. Thread-safe."""

    def __init__(
        self,
        points: Callable[[], Iterable[Point]],
        *,
        series_limit: Callable[[], int],
        state: Callable[[], object],
    ) -> None:
        """`state` changes when a new rendering would differ; it is compared, never kept long."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(PointsCollector(points, series_limit))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._state = state
        self._lock = threading.Lock()
        self._rendered: dict[tuple[Format, bool], bytes] = {}
        self._rendered_state: object = None
        self._rendered_at = -_REUSE_SECONDS

    def render(self, format_: Format, *, compressed: bool) -> bytes:
        """The exposition in this format, gzipped if asked."""
        with self._lock:
            state = self._state()
            now = time.monotonic()
            if state != self._rendered_state and now - self._rendered_at >= _REUSE_SECONDS:
                self._rendered.clear()
                self._rendered_state = state
                self._rendered_at = now
            key = (format_, compressed)
            body = self._rendered.get(key)
            if body is None:
                body = (
                    gzip.compress(self._plain(format_), _GZIP_LEVEL, mtime=0)
                    if compressed
                    else self._plain(format_)
                )
                self._rendered[key] = body
            return body

    def _plain(self, format_: Format) -> bytes:
        plain = self._rendered.get((format_, False))
        if plain is None:
            generate = generate_openmetrics if format_ is Format.OPENMETRICS else generate_latest
            plain = self._rendered[(format_, False)] = generate(self._registry)
        return plain
