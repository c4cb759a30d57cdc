"""The State to bytes: one rendering per State and format."""

import gzip
import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from exporter.metrics import exporter, process
from exporter.metrics.catalogue import CATALOGUE
from exporter.metrics.exporter import EXPOSITION_ROWS
from exporter.metrics.holders import HolderLabels
from exporter.metrics.layout import Blocks, ExtraLabels, Format, Layout
from exporter.metrics.process import PROCESS_ROWS, ProcessReader
from exporter.metrics.rows import Part


# A second scraper within this time gets the bytes of the first, even if a tick came between: the
# devices of a host tick at the same instant, and half of their snapshots would be rendered twice.
_REUSE_SECONDS = 0.2
# Level 1 costs a third of level 6 and leaves text like this an eighth of its size.
_GZIP_LEVEL = 1


_State = TypeVar("_State")

# The exporter's own health is never dropped, so that the limit can be noticed.
_ALWAYS = frozenset((*exporter.SUBJECT.families, *process.SUBJECT.families))


class Exposition(Generic[_State]):
    """Renders on demand and remembers the bytes by format and encoding. Thread-safe."""

    def __init__(
        self,
        parts: Callable[[_State], Iterable[Part]],
        *,
        series_limit: Callable[[], int],
        state: Callable[[], _State],
        extra_labels: Callable[[_State], ExtraLabels] = lambda _state: HolderLabels(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`state` returns another object when a new rendering would differ; `parts` reads it."""
        self._parts = parts
        self._series_limit = series_limit
        self._state = state
        self._extra_labels = extra_labels
        self._clock = clock
        self._process = ProcessReader()
        self._lock = threading.Lock()
        self._blocks = Blocks()
        self._extra: ExtraLabels = HolderLabels()
        self._limit = 0
        self._layout: Layout | None = None
        self._dropped = 0
        self._rendered: dict[tuple[Format, bool], bytes] = {}
        self._rendered_state: object = None
        self._rendered_at = -_REUSE_SECONDS

    def render(self, format_: Format, *, compressed: bool) -> bytes:
        """The exposition in this format, gzipped if asked."""
        with self._lock:
            state = self._state()
            now = self._clock()
            if self._layout is None or (
                state is not self._rendered_state and now - self._rendered_at >= _REUSE_SECONDS
            ):
                self._rendered.clear()
                # None meanwhile: if a part fails, everything is laid out again the next time.
                layout, self._layout = self._layout, None
                self._layout = self._update(state, layout)
                self._rendered_state = state
                self._rendered_at = now
            key = (format_, compressed)
            body = self._rendered.get(key)
            if body is None:
                plain = self._plain(self._layout, format_)
                body = gzip.compress(plain, _GZIP_LEVEL, mtime=0) if compressed else plain
                self._rendered[key] = body
            return body

    def _update(self, state: _State, layout: Layout | None) -> Layout:
        """Read everything that is new, and keep the layout if it is still valid."""
        extra = self._extra_labels(state)
        limit = self._series_limit()
        same = layout is not None and limit == self._limit
        if extra != self._extra:
            self._blocks.set_extra_labels(extra)
            same = False
        self._extra, self._limit = extra, limit
        counts = (layout.count if layout is not None else 0, self._dropped)
        same &= self._blocks.update(self._all_parts(state, counts), extra)
        if layout is None or not same:
            layout = Layout(self._blocks.blocks, CATALOGUE, limit=limit, always=_ALWAYS)
        self._dropped += layout.dropped
        self._blocks.update_first((layout.count, self._dropped), extra)
        layout.update(self._blocks.take_changed())
        return layout

    def _all_parts(self, state: _State, counts: tuple[int, int]) -> Iterable[Part]:
        yield EXPOSITION_ROWS.of((), counts)
        yield PROCESS_ROWS.of((), self._process.read())
        yield from self._parts(state)

    def _plain(self, layout: Layout, format_: Format) -> bytes:
        plain = self._rendered.get((format_, False))
        if plain is None:
            plain = layout.write(format_)
            if format_ is Format.OPENMETRICS:
                plain += b"# EOF\n"
            self._rendered[(format_, False)] = plain
        return plain
