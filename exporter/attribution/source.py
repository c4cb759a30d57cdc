"""One source of holders: read when due, with its health and its last answer while valid."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from exporter.attribution.snapshot import SourceState


log = structlog.get_logger(__name__)

# An answer is valid for this many intervals: a kubelet restart does not change its pods' devices,
# but after a long outage they may have changed.
KEEP_INTERVALS = 3

Item = TypeVar("Item")
Clock = Callable[[], float]


class HolderSourceError(Exception):
    """A source could not be read. `reason` is one of a few words, usable as a label value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Source(Generic[Item]):
    """Used only by the service's thread, except `state` and `items`, which are replaced whole.

    `quiet` holds reasons that are no error before the first success: a socket or directory that
    does not exist on other kinds of hosts.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], tuple[Item, ...]],
        mark: Callable[[], object],
        *,
        quiet: frozenset[str] = frozenset(),
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        self.name = name
        self.state: SourceState | None = None
        self.items: tuple[Item, ...] = ()
        self._read = read
        self._mark = mark
        self._quiet = quiet
        self._clock = clock
        self._wall_clock = wall_clock
        self._seen_mark: object = None
        self._read_at: float | None = None
        self._answered_at: float | None = None

    def poll(self, interval_seconds: float) -> None:
        """Read if the interval has passed or something has changed; drop outdated answers."""
        mark = self._mark()
        now = self._clock()
        due = self._read_at is None or now - self._read_at >= interval_seconds
        if due or mark != self._seen_mark:
            self._seen_mark = mark
            self._read_at = now
            self._try()
        answered = self._answered_at
        if answered is not None and now - answered > KEEP_INTERVALS * interval_seconds:
            self.items = ()
            self._answered_at = None

    def _try(self) -> None:
        before = self.state
        try:
            self.items = self._read()
        except HolderSourceError as error:
            if before is None and error.reason in self._quiet:
                return
            self._fail(before, error)
            return
        self._answered_at = self._clock()
        errors = before.errors if before is not None else {}
        self.state = SourceState(True, self._wall_clock(), errors)
        if before is None or not before.up:
            log.info("holder_source_up", source=self.name, holders=len(self.items))

    def _fail(self, before: SourceState | None, error: HolderSourceError) -> None:
        errors = dict(before.errors) if before is not None else {}
        errors[error.reason] = errors.get(error.reason, 0) + 1
        last = before.last_success_unix_seconds if before is not None else None
        self.state = SourceState(False, last, errors)
        if before is None or before.up:
            log.warning(
                "holder_source_down", source=self.name, reason=error.reason, error=error.detail
            )
