"""Samples to bytes: one rendering per state of the world and format.

The exporter's own process is described by prometheus_client's collectors, behind our own families.
"""

import gzip
import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from exporter.metrics import exporter
from exporter.metrics.catalogue import CATALOGUE
from exporter.metrics.family import Family, Sample
from exporter.metrics.samples import forget_labels
from exporter.metrics.text import Format, LineWriter, header, write_line


# A second scraper within this time gets the bytes of the first, even if a tick came between: the
# devices of a host tick at the same instant, and half of their snapshots would be rendered twice.
_REUSE_SECONDS = 0.2
# Level 1 costs a third of level 6 and leaves text like this a tenth of its size.
_GZIP_LEVEL = 1


_State = TypeVar("_State")

# The exporter's own health is never dropped, or nobody would learn of the limit.
_ALWAYS = frozenset(exporter.SUBJECT.families)


class Exposition(Generic[_State]):
    """Renders on demand and remembers the bytes by format and encoding. Thread-safe."""

    def __init__(
        self,
        samples: Callable[[_State], Iterable[Sample]],
        *,
        series_limit: Callable[[], int],
        state: Callable[[], _State],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`state` gives another object when a new rendering would differ; `samples` renders it."""
        self._samples = samples
        self._series_limit = series_limit
        self._state = state
        self._clock = clock
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)
        self._lock = threading.Lock()
        self._writer = LineWriter()
        self._dropped = 0
        self._families: list[tuple[Family, str]] = []
        self._rendered: dict[tuple[Format, bool], bytes] = {}
        self._rendered_state: object = None
        self._rendered_at = -_REUSE_SECONDS

    def render(self, format_: Format, *, compressed: bool) -> bytes:
        """The exposition in this format, gzipped if asked."""
        with self._lock:
            state = self._state()
            now = self._clock()
            if state is not self._rendered_state and now - self._rendered_at >= _REUSE_SECONDS:
                self._rendered.clear()
                self._families = self._write(state)
                self._rendered_state = state
                self._rendered_at = now
            key = (format_, compressed)
            body = self._rendered.get(key)
            if body is None:
                plain = self._plain(format_)
                body = gzip.compress(plain, _GZIP_LEVEL, mtime=0) if compressed else plain
                self._rendered[key] = body
            return body

    def _write(self, state: _State) -> list[tuple[Family, str]]:
        """The lines of all families that have samples, in the order of the catalogue."""
        written = self._writer.write(
            self._samples(state), limit=self._series_limit(), always=_ALWAYS
        )
        self._dropped += written.dropped
        if written.forgot:
            forget_labels()
        lines = dict(written.lines)
        for sample in (
            Sample(exporter.SERIES, (), float(written.count + 2)),
            Sample(exporter.SERIES_DROPPED_TOTAL, (), float(self._dropped)),
        ):
            lines[sample.family] = [write_line(sample)]
        return [(family, "".join(lines[family])) for family in CATALOGUE if family in lines]

    def _plain(self, format_: Format) -> bytes:
        plain = self._rendered.get((format_, False))
        if plain is None:
            generate = generate_openmetrics if format_ is Format.OPENMETRICS else generate_latest
            text = "".join(
                part
                for family, lines in self._families
                for part in (header(family, format_), lines)
            )
            plain = self._rendered[(format_, False)] = text.encode(errors="replace") + generate(
                self._process
            )
        return plain
