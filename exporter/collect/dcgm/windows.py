"""Turns scrapes into windows: which samples are new, how often they come, which time they cover.

dcgm-exporter shows the mean of DCGM's last collection (30 s by default) without a timestamp, the
same one in every scrape until the next collection. A window spans the instants at which two
different samples were first seen; its activities are those of the sample that closed it. Where DCGM
exports the device's cycle totals, activities are their exact shares instead.
"""

from collections.abc import Mapping
from dataclasses import replace

from exporter.accounting.device import COARSE_SOURCE
from exporter.collect.dcgm.exposition import ELAPSED, DeviceSample
from exporter.readings import DCGM_SOURCE, ActivityWindow


SOURCE = DCGM_SOURCE
DEFAULT_INTERVAL_SECONDS = 30.0  # dcgm-exporter's --collect-interval
_INTERVALS_KEPT = 5
_INTERVALS_NEEDED = 2
# A sample that does not change for this many intervals is not being collected any more.
_STALE_INTERVALS = 2.5
# While the interval is not known, and around the expected change once it is.
_POLL_SECONDS = 1.0
_POLL_SECONDS_MIN = 0.5
_QUIET_POLL_SECONDS = 5.0  # nothing changes: all GPUs are idle
_EARLY_SECONDS = 1.5
_SHARE_MAX = 1.01  # of elapsed cycles: totals of one collection are read one after the other
# Hertz at which one SM may run. Cycles summed over the SMs of a GPU are far above: for those the
# shares are right, and the clock is left out.
_CLOCKS = (5e7, 3.5e9)


class CollectInterval:
    """Learns how often samples change, and when to scrape next."""

    def __init__(self, began_seconds: float) -> None:
        self._seen: list[float] = []
        self._changed_at: float | None = None
        self._looked_since_change = False
        self._began = began_seconds

    @property
    def seconds(self) -> float:
        """The interval: dcgm-exporter's default until it is known."""
        if not self.known:
            return DEFAULT_INTERVAL_SECONDS
        import statistics  # noqa: PLC0415  1 MB, only for hosts with a dcgm-exporter

        return statistics.median(self._seen)

    @property
    def known(self) -> bool:
        """Whether enough changes were seen."""
        return len(self._seen) >= _INTERVALS_NEEDED

    @property
    def stale_seconds(self) -> float:
        """Age from which a sample counts as no longer collected."""
        return _STALE_INTERVALS * max(self.seconds, 2 * _POLL_SECONDS)

    def looked(self, at_seconds: float, *, changed: bool) -> None:
        """Record one scrape."""
        if not changed:
            self._looked_since_change = True
            return
        if self._changed_at is not None:
            if self.known and not self._looked_since_change and self.seconds > 2 * _POLL_SECONDS:
                # The change came earlier than expected: it may have happened long ago.
                self._seen.clear()
            else:
                self._seen = [*self._seen, at_seconds - self._changed_at][-_INTERVALS_KEPT:]
        self._changed_at = at_seconds
        self._looked_since_change = False

    def forget(self) -> None:
        """After an outage the next change does not show the interval."""
        self._changed_at = None

    def next_look(self, now: float) -> float:
        """Seconds to wait: until shortly before the next change, and then in short steps."""
        if not self.known or self._changed_at is None:
            waited = now - (self._changed_at if self._changed_at is not None else self._began)
            return _POLL_SECONDS if waited < 2 * self.seconds else _QUIET_POLL_SECONDS
        step = min(max(self.seconds / 10, _POLL_SECONDS_MIN), _POLL_SECONDS)
        expected = self._changed_at + self.seconds - _EARLY_SECONDS
        return max(step, expected - now)


class DeviceWindows:
    """The windows of one device. Not thread-safe."""

    def __init__(self, *, tells_clock: bool = True) -> None:
        """`tells_clock`: the device has so many SMs that cycles of one and of all differ at any clock."""
        self.open_since: float | None = None
        self._tells_clock = tells_clock
        self._sample: DeviceSample | None = None
        self._alive_at: float | None = None

    def observe(
        self, sample: DeviceSample, at_seconds: float, interval_seconds: float
    ) -> tuple[bool, tuple[ActivityWindow, ...]]:
        """Take the device's sample of one scrape: whether it is new, and the windows it closed.

        Only profiling fields distinguish samples: others may be refreshed more often for another of
        DCGM's clients. An idle GPU's do not change: while its other fields do, its zeros count.
        """
        before, opened = self._sample, self.open_since
        if before is None or not _same(before, sample):
            self._sample = sample
            self._alive_at = at_seconds
            self.open_since = at_seconds
            closed = _closed(before, opened, sample, at_seconds, interval_seconds)
            if not self._tells_clock:
                closed = tuple(replace(window, sm_cycles=None) for window in closed)
            return before is not None, closed
        if before.others == sample.others:
            return False, ()
        self._sample = sample
        if not sample.idle:
            return False, ()
        self._alive_at = at_seconds
        if opened is None:
            self.open_since = at_seconds
        elif at_seconds - opened >= 2 * interval_seconds:
            # One interval stays open: the next sample is the mean over it.
            self.open_since = opened + interval_seconds
            return False, (_window(sample, opened, self.open_since),)
        return False, ()

    def expire(
        self, now: float, stale_seconds: float, utilization: float | None
    ) -> ActivityWindow | None:
        """Give up a window that nothing will close; its time is known only coarsely."""
        if self.open_since is None or self.fresh(now, stale_seconds):
            return None
        opened, self.open_since = self.open_since, None
        return ActivityWindow(COARSE_SOURCE, opened, now, graphics=utilization)

    def abandon(self, now: float) -> ActivityWindow | None:
        """Start over with the next sample; the time of the open window is unknown."""
        opened, self.open_since, self._sample = self.open_since, None, None
        return None if opened is None else ActivityWindow(COARSE_SOURCE, opened, now)

    def restart(self) -> None:
        """Drop the open window: some of its time was not watched."""
        self.open_since = None

    def fresh(self, now: float, stale_seconds: float) -> bool:
        """Whether a new sample was seen lately."""
        return self._alive_at is not None and now - self._alive_at <= stale_seconds


def _same(before: DeviceSample, now: DeviceSample) -> bool:
    return (
        before.activities == now.activities
        and before.bytes_per_second == now.bytes_per_second
        and before.totals == now.totals
    )


def _closed(
    before: DeviceSample | None,
    opened: float | None,
    sample: DeviceSample,
    at_seconds: float,
    interval_seconds: float,
) -> tuple[ActivityWindow, ...]:
    """The windows that end with a new sample."""
    if opened is None or not sample.known:
        return ()
    counted = {} if before is None else _counted(before, sample, at_seconds - opened)
    if counted:
        return (_window(sample, opened, at_seconds, counted),)
    if not sample.activities:
        return ()
    if before is not None and before.idle and at_seconds - opened > 1.5 * interval_seconds:
        middle = at_seconds - interval_seconds
        return _window(before, opened, middle), _window(sample, middle, at_seconds)
    return (_window(sample, opened, at_seconds),)


def _window(
    sample: DeviceSample, start: float, end: float, counted: Mapping[str, float] | None = None
) -> ActivityWindow:
    values = {name: rate * (end - start) for name, rate in sample.bytes_per_second.items()}
    values.update(sample.activities)
    values.update(counted or {})
    return ActivityWindow(SOURCE, start, end, **values)


def _counted(before: DeviceSample, now: DeviceSample, seconds: float) -> dict[str, float]:
    """What the device counted between two samples, as values of a window; empty if nothing."""
    if not (before.counts_cycles and now.counts_cycles):
        return {}
    grown = {name: total - before.totals.get(name, total) for name, total in now.totals.items()}
    elapsed = grown.pop(ELAPSED)
    if elapsed <= 0 or min(grown.values(), default=0.0) < 0:
        return {}  # the device was reset in between
    counted: dict[str, float] = {}
    for name, value in grown.items():
        if name not in before.totals:
            continue
        if name.endswith("_bytes"):
            counted[name] = value
        elif value <= elapsed * _SHARE_MAX:
            counted[name] = min(value / elapsed, 1.0)
    if _CLOCKS[0] <= elapsed / seconds <= _CLOCKS[1]:
        counted["sm_cycles"] = elapsed
    return counted
