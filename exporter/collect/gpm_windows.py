"""Turns GPM samples of one GPU or MIG instance into activity windows.

`gpm_cycles` counts SM cycles since boot (drivers of the 595 branch and newer); it is used where a
live trial shows that the counter runs at the SM clock. `gpm` knows percentages of each window.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import structlog

from exporter.collect.nvml import gpm
from exporter.collect.nvml.gpm import METRICS_GET, GpmSession, gpm_lock
from exporter.collect.nvml.library import (
    GONE,
    NotSupported,
    NvmlError,
)
from exporter.readings import ActivityWindow


log = structlog.get_logger(__name__)

PERCENT, CYCLES = "gpm", "gpm_cycles"
# NVML asks for more than 100 ms between samples ("internal sample refresh rate", nvml.h).
MIN_WINDOW_SECONDS = 0.1
# After the last call for the sample before, so that the windows are longer than that in any case.
_TRIAL_PAUSE_SECONDS = 0.102
_TRIAL_WINDOWS = 3
# A trial lasts longer while a counter of cycles has not kept time: the clock was rising, or this
# process was held up between a sample and its time.
_LONGEST_TRIAL_WINDOWS = 6
# A counter of SM cycles must run at the clock that NVML reports, within what the clock may move
# between two readings of it.
_CLOCK_TOLERANCE = 0.3
# GPUs idle at 5 % of their maximum clock or above (H100: 345 of 1980 MHz, GeForce: 180 of 2900).
_LOWEST_CLOCK_SHARE = 0.05
# No clock is this slow: a counter that moves less is stuck.
_STANDING_CLOCK_SHARE = 0.01
_MIB = 2**20
# GPM answers up to 100 %; rounding may exceed that slightly. More is a blank or garbage.
_PERCENT_MAX = 101.0
_RATE_MAX = 1e9  # MiB/s: no link is this fast
# These have no cycle counter of their own and stay percentages.
_PERCENT_BESIDE_CYCLES = (gpm.GRAPHICS, gpm.OCCUPANCY, gpm.DRAM)


@dataclass(slots=True)
class _Trial:
    """What the first windows showed: elapsed cycles by instant, and the clock at each, if known."""

    counts: list[tuple[float, float]] = field(default_factory=list)
    hertz: list[float | None] = field(default_factory=list)
    answered: bool = False
    failure: NvmlError | None = None
    # The last window: its start and end, the values at its end, and the cycle counts at its start.
    span: tuple[float, float] | None = None
    values: Mapping[int, float] = field(default_factory=dict)
    cycles_before: Mapping[int, float] = field(default_factory=dict)


class GpmWindows:
    """Activity windows of one device. One thread owns it; GPM's lock is taken inside."""

    def __init__(
        self,
        sessions: Sequence[GpmSession],
        *,
        sm_count: int | None,
        max_hertz: float | None,
        on_implausible: Callable[[str], None],
        is_instance: bool = False,
        has_c2c: bool = False,
    ) -> None:
        """`sessions` are the ways to take samples, to be tried in turn.

        `has_c2c`: there is a C2C link, so its traffic is asked for.
        """
        self._rate_ids = (*gpm.RATE_IDS, *gpm.C2C_IDS) if has_c2c else gpm.RATE_IDS
        self._sessions = list(sessions)
        self._session = self._sessions[0]
        # An instance does not report its clock, and its GPU's may be read between two bursts of its
        # load.
        self._is_instance = is_instance
        self._sm_count = sm_count
        self._max_hertz = max_hertz
        self._on_implausible = on_implausible
        # SMs that the counters of cycles sum over, 1 for a mean; None without such counters.
        self._counted_sms: int | None = None
        self._cycles: Mapping[int, float] = {}
        self._after_gap = False
        self._trial = _Trial()

    @property
    def name(self) -> str:
        """The source's label: `gpm_cycles` where cycle counters are in use."""
        return PERCENT if self._counted_sms is None else CYCLES

    @property
    def open_since_seconds(self) -> float | None:
        """Start of the window that the next reading will close."""
        return None if self._after_gap else self._session.open_since_seconds

    def begin(self) -> None:
        """Take the first sample, with the first method that the device supports. Raises NvmlError."""
        self._trial = _Trial()
        while True:
            self._session = self._sessions[0]
            try:
                with gpm_lock():
                    self._session.open()
                    try:
                        self._session.sample()
                    except NvmlError:
                        self._session.close()
                        raise
            except NotSupported:
                if not self.take_next_session():
                    raise
            else:
                return

    def take_next_session(self) -> bool:
        """Give up the current method; whether there is another."""
        if len(self._sessions) == 1:
            return False
        self._sessions.pop(0)
        return True

    def close(self) -> None:
        """Free the samples."""
        try:
            with gpm_lock():
                self._session.close()
        except NvmlError:
            log.debug("gpm_samples_abandoned")

    def restart(self) -> None:
        """Forget the open window: the next reading only opens a new one."""
        self._after_gap = True
        self._trial.span = None

    def read(self) -> ActivityWindow | None:
        """Close the open window and open the next; None where it was not watched, or is too short.

        Right after a trial it is the trial's last window, so that there is no wait for another one.

        Raises NvmlError, also where no activity has a value; the window then stays open and the next
        reading covers it.
        """
        span, self._trial.span = self._trial.span, None
        if span is not None:
            if self._counted_sms is not None:
                self._cycles = self._trial.cycles_before
            return self._window(self._trial.values, *span)
        opened = self._session.open_since_seconds
        if opened is not None and time.monotonic() - opened < MIN_WINDOW_SECONDS:
            return None
        with gpm_lock():
            span = self._session.sample()
            if span is None:
                return None
            try:
                values = self._session.metrics(self._ids())
                self._require_activity(values)
            except NvmlError:
                self._session.undo_sample()
                raise
        if self._after_gap:
            self._after_gap = False
            self._cycles = values
            return None
        return self._window(values, *span)

    def try_window(self, read_clock_hertz: Callable[[], float | None]) -> None:
        """One window of the trial. Raises NvmlError."""
        with gpm_lock():
            span = self._session.sample()
            if span is None:
                return
            values = self._session.metrics((*gpm.PERCENT_IDS, *gpm.CYCLE_IDS))
        self._trial.span, self._trial.values = span, values
        self._trial.cycles_before = self._cycles
        self._trial.answered |= any(metric in values for metric in gpm.PERCENT_IDS)
        self._trial.failure = self._session.failure or self._trial.failure
        clock = read_clock_hertz()
        if gpm.SM_CYCLES_ELAPSED in values:
            self._trial.counts.append((span[1], values[gpm.SM_CYCLES_ELAPSED]))
            self._trial.hertz.append(clock)
            self._cycles = values

    def conclude(self) -> NvmlError | None:
        """End the trial: use the cycle counters if they kept time; None if GPM answered at all.

        Otherwise the reason: NotSupported without GPM, another error where it may answer later.
        """
        self._counted_sms = self._judged()
        if self._counted_sms is None:
            self._cycles = {}
        if self._trial.answered:
            return None
        self._trial.span = None
        self.close()
        return self._trial.failure or NotSupported(METRICS_GET, 3)

    @property
    def is_undecided(self) -> bool:
        """Whether the device counts cycles, but has not kept time in two windows in a row."""
        return bool(self._trial.counts) and self._judged() is None

    def _judged(self) -> int | None:
        """SMs that the counters sum over, by the last two windows of the trial."""
        counts, hertz = self._trial.counts[-3:], self._trial.hertz[-3:]
        known = [clock for clock in hertz if clock is not None]
        blind = len(known) < len(hertz)
        found = None if blind else counted_sms(counts, known, self._sm_count)
        if found is None and (blind or self._is_instance):
            found = counted_sms_in_range(counts, self._max_hertz, self._sm_count)
        return found

    def _require_activity(self, values: Mapping[int, float]) -> None:
        """Raise why there is no activity in a reading."""
        needed = gpm.PERCENT_IDS if self._counted_sms is None else (gpm.SM_CYCLES_ELAPSED,)
        if not any(metric in values for metric in needed):
            raise self._session.failure or NotSupported(METRICS_GET, 3)

    def _ids(self) -> tuple[int, ...]:
        if self._counted_sms is None:
            return (*gpm.PERCENT_IDS, *self._rate_ids)
        return (*_PERCENT_BESIDE_CYCLES, *self._rate_ids, *gpm.CYCLE_IDS)

    def _window(
        self, values: Mapping[int, float], start: float, end: float
    ) -> ActivityWindow | None:
        seconds = end - start
        shares: dict[str, float | None] = {}
        for name, metric in gpm.PERCENT_FIELDS.items():
            shares[name] = self._share(name, values.get(metric))
        sm_cycles = None
        if self._counted_sms is not None:
            previous, self._cycles = self._cycles, values
            counted = self._cycle_shares(previous, values, seconds)
            if counted is None:
                return None
            sm_cycles, cycle_shares = counted
            shares.update(cycle_shares)
        if all(share is None for share in shares.values()):
            return None
        traffic = self._traffic(values, seconds)
        return ActivityWindow(self.name, start, end, **shares, sm_cycles=sm_cycles, **traffic)

    def _traffic(self, values: Mapping[int, float], seconds: float) -> dict[str, float]:
        """Bytes over the links in a window, by name."""
        traffic: dict[str, float] = {}
        for name, metric in (*gpm.RATE_FIELDS.items(), *gpm.C2C_FIELDS.items()):
            rate = values.get(metric)
            if rate is None:
                continue
            if 0 <= rate < _RATE_MAX:
                traffic[name] = rate * _MIB * seconds
            else:
                self._on_implausible(f"gpm {name}")
        return traffic

    def _share(self, name: str, percent: float | None) -> float | None:
        if percent is None:
            return None
        if not 0 <= percent <= _PERCENT_MAX:
            self._on_implausible(f"gpm {name}")
            return None
        return min(percent, 100.0) / 100

    def _cycle_shares(
        self, previous: Mapping[int, float], values: Mapping[int, float], seconds: float
    ) -> tuple[float, dict[str, float]] | None:
        """Elapsed cycles of one SM, and activities as shares of them; None without a start."""
        assert self._counted_sms is not None
        before, now = previous.get(gpm.SM_CYCLES_ELAPSED), values.get(gpm.SM_CYCLES_ELAPSED)
        if before is None or now is None:
            return None
        elapsed = now - before
        possible = (self._max_hertz or 1e10) * seconds * self._counted_sms
        standing = _STANDING_CLOCK_SHARE * possible if self._max_hertz else 0.0
        if not standing < elapsed <= possible * (1 + _CLOCK_TOLERANCE):
            self._on_implausible("gpm sm_cycles_elapsed")
            return None
        shares: dict[str, float] = {}
        for name, metric in gpm.CYCLE_FIELDS.items():
            if metric not in values or metric not in previous:
                continue
            share = (values[metric] - previous[metric]) / elapsed
            if 0 <= share <= _PERCENT_MAX / 100:
                shares[name] = min(share, 1.0)
            else:
                self._on_implausible(f"gpm {name}_cycles_active")
        return elapsed / self._counted_sms, shares


def counted_sms(
    counts: list[tuple[float, float]], hertz: list[float], sm_count: int | None
) -> int | None:
    """How many SMs the counts of elapsed cycles sum over: 1 for a mean, else all of them.

    `counts` are (monotonic seconds, cycles), `hertz` the clock read at each. None unless every step
    runs at the clock and all agree, or with fewer than two steps.
    """
    found: set[int] = set()
    steps = list(zip(counts, counts[1:], hertz[1:], strict=False))
    for (before, cycles_before), (after, cycles_after), clock in steps:
        expected = clock * (after - before)
        ratio = (cycles_after - cycles_before) / expected if expected > 0 else 0.0
        if abs(ratio - 1) <= _CLOCK_TOLERANCE:
            found.add(1)
        elif sm_count and abs(ratio / sm_count - 1) <= _CLOCK_TOLERANCE:
            found.add(sm_count)
        else:
            return None
    return found.pop() if len(steps) >= 2 and len(found) == 1 else None


def counted_sms_in_range(
    counts: list[tuple[float, float]], max_hertz: float | None, sm_count: int | None
) -> int | None:
    """Like `counted_sms` where no clock can be read: the count must run at a possible clock.

    The sum over the SMs of the smallest instance (14) at a GPU's lowest clock is above the highest
    clock of one SM, so mean and sum cannot be confused.
    """
    if not max_hertz or len(counts) < 3:
        return None
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(counts)]
    highest = max_hertz * (1 + _CLOCK_TOLERANCE)
    for sms in (1, sm_count or 1):
        if all(max_hertz * _LOWEST_CLOCK_SHARE <= rate / sms <= highest for rate in rates):
            return sms
    return None


def open_together(
    sources: Sequence[GpmWindows], read_clock_hertz: Callable[[], float | None]
) -> list[tuple[GpmWindows, NvmlError]]:
    """Open the sources in one trial, so that many cost no more time than one.

    Returns those that failed: NotSupported where there is no GPM. Raises what `read_clock_hertz`
    raises; the sources are closed then.
    """
    failures: list[tuple[GpmWindows, NvmlError]] = []
    waiting = list(sources)
    try:
        while waiting:
            on_trial = _begin(waiting, failures)
            for window in range(_LONGEST_TRIAL_WINDOWS):
                tried = [s for s in on_trial if window < _TRIAL_WINDOWS or s.is_undecided]
                if not tried:
                    break
                time.sleep(_TRIAL_PAUSE_SECONDS)
                for source in tried:
                    try:
                        source.try_window(read_clock_hertz)
                    except GONE:
                        raise
                    except NvmlError as error:
                        source.close()
                        on_trial.remove(source)
                        failures.append((source, error))
            waiting = []
            for source in on_trial:
                failure = source.conclude()
                if failure is None:
                    continue
                if isinstance(failure, NotSupported) and source.take_next_session():
                    waiting.append(source)
                else:
                    failures.append((source, failure))
    except NvmlError:
        for source in sources:
            source.close()
        raise
    return failures


def _begin(
    sources: Sequence[GpmWindows], failures: list[tuple[GpmWindows, NvmlError]]
) -> list[GpmWindows]:
    begun: list[GpmWindows] = []
    for source in sources:
        try:
            source.begin()
        except GONE:
            raise
        except NvmlError as error:
            failures.append((source, error))
        else:
            begun.append(source)
    return begun
