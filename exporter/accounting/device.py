"""The accounts of one device: readings in, counters and last-tick gauges out.

Counters never decrease, even if the device restarts its own.

Time is accounted in windows that tile it: a window starts where the last one ended, so that no
span is counted twice; a span longer than the caller's limit was not watched and is left out.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from exporter.accounting.flop import PipeWork, count_flop
from exporter.accounting.peaks import Peaks
from exporter.accounting.time_split import (
    EVENT_REASONS,
    REACHABLE_BANDWIDTH,
    STATE_NAMES,
    ClockWindow,
    split_time,
    summarise_clocks,
)
from exporter.readings import ActivityWindow, ClockSample, DeviceIdentity, FastReading


# A window based on NVML's utilization alone: graphics activity is known, and nothing more detailed.
COARSE_SOURCE = "nvml"
# FLOP that a processor counted itself (Linux perf events).
PERF_SOURCE = "perf"
# Upper bounds of the buckets of the histograms that the exporter keeps: shares of the peak, and seconds.
TICK_UTILIZATION_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TICK_DURATION_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# The links whose bytes NVML counts.
NVML_TRAFFIC = (
    "pcie_receive_bytes",
    "pcie_transmit_bytes",
    "nvlink_receive_bytes",
    "nvlink_transmit_bytes",
)
_TRAFFIC = (*NVML_TRAFFIC, "c2c_receive_bytes", "c2c_transmit_bytes")
# One tick has a handful, a minute of DCGM's a few hundred; a bound for windows that never close.
_CLOCK_SAMPLES_MAX = 256
# Windows are timed by two clock readings around a driver call: an overlap of a microsecond is rounding.
_OVERLAP_TOLERANCE_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class HistogramValue:
    """A histogram at one instant. `counts` has one entry per bound and one for +Inf, not cumulative."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Counters:
    """All counters of one device at one instant. None: never read."""

    flop: Mapping[tuple[PipeWork, str], float] = field(default_factory=dict)
    state_seconds: Mapping[str, float] = field(default_factory=dict)
    dram_bytes: Mapping[str, float] = field(default_factory=dict)
    event_reason_seconds: Mapping[str, float] = field(default_factory=dict)
    energy_joules: float | None = None
    module_energy_joules: float | None = None
    pcie_receive_bytes: float | None = None
    pcie_transmit_bytes: float | None = None
    nvlink_receive_bytes: float | None = None
    nvlink_transmit_bytes: float | None = None
    c2c_receive_bytes: float | None = None
    c2c_transmit_bytes: float | None = None
    tick_utilization: Mapping[str, HistogramValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LastWindow:
    """The last accounted window, for the gauges. FLOP/s and ratios by precision."""

    activity: ActivityWindow
    clock: ClockWindow
    achieved_flops: Mapping[str, float] = field(default_factory=dict)
    flops_utilization: Mapping[str, float] = field(default_factory=dict)


class DeviceAccounts:
    """Keeps the accounts of one device. Used by one thread."""

    def __init__(self, identity: DeviceIdentity, peaks: Peaks) -> None:
        self._identity = identity
        self._peaks = peaks
        self._accounted_until: float | None = None
        self._last_fast_at: float | None = None
        self._watched_since: float | None = None
        self._utilization = 0.0
        self._utilizations = 0
        self._clocks: list[ClockSample] = []
        self._clock_stride = 1
        self._clocks_passed = 0
        self._flop: dict[tuple[PipeWork, str], float] = {}
        self._states: dict[str, float] = {}
        self._dram: dict[str, float] = {}
        self._reason_counters = {name: DeviceCounter() for name in EVENT_REASONS}
        self._slow_counters: dict[tuple[str, str], DeviceCounter] = {}
        self._energy = DeviceCounter()
        self._module_energy = DeviceCounter()
        self._traffic = {name: SpanCounter() for name in _TRAFFIC}
        self._ticks: dict[str, Histogram] = {}

    def revalue(self, identity: DeviceIdentity, peaks: Peaks) -> None:
        """Use this identity and these peaks from now on; counters are kept."""
        self._identity = identity
        self._peaks = peaks

    def observe_clock(self, sample: ClockSample) -> None:
        """Take one sample of the clock; the samples of a window give its mean clock."""
        self._clocks_passed += 1
        if self._clocks_passed < self._clock_stride:
            return
        self._clocks_passed = 0
        self._clocks.append(sample)
        if len(self._clocks) > _CLOCK_SAMPLES_MAX:
            # Thin out all of them and keep not only the newest: the mean is of the whole window.
            del self._clocks[1::2]
            self._clock_stride *= 2

    def observe(
        self,
        fast: FastReading,
        window: ActivityWindow | None,
        *,
        precision: str | None,
        max_window_seconds: float,
        window_started_seconds: float | None = None,
        reachable_bandwidth: float = REACHABLE_BANDWIDTH,
    ) -> LastWindow | None:
        """Account one tick and return the window that it closed, if any.

        `window` is the activity window that ended with this tick; `window_started_seconds` the
        start of the one now open, so that the time it will cover is not accounted for coarsely.
        Time that no window covers, now or later, is accounted for by utilization alone.
        """
        self._watch(fast, max_window_seconds)
        self._energy.follow(fast.energy_joules)
        self._module_energy.follow(fast.module_energy_joules)
        self._follow_reasons(fast, max_window_seconds)
        last: LastWindow | None = None
        if window is None:
            window = self._coarse_window(fast, window_started_seconds)
        elif self._is_new(window, max_window_seconds):
            before = self._coarse_window(fast, window.start_seconds)
            if before is not None and before.seconds > _OVERLAP_TOLERANCE_SECONDS:
                self._account(before, precision, reachable_bandwidth)
        else:
            window = None
        if window is not None:
            last = self._account(window, precision, reachable_bandwidth)
        self._follow_traffic(fast, last.activity if last else None)
        self._last_fast_at = fast.at_seconds
        return last

    def forget_open_spans(self) -> None:
        """After a gap (device lost, call hung): start over and count nothing of the gap."""
        self._last_fast_at = None
        self._forget_utilization()
        self._clocks.clear()
        self._clock_stride = 1

    def counters(self) -> Counters:
        """The current counters."""
        return Counters(
            flop=dict(self._flop),
            state_seconds=dict(self._states),
            dram_bytes=dict(self._dram),
            event_reason_seconds={
                name: counter.value
                for name, counter in self._reason_counters.items()
                if counter.value is not None
            },
            energy_joules=self._energy.value,
            module_energy_joules=self._module_energy.value,
            tick_utilization={name: ticks.value() for name, ticks in self._ticks.items()},
            **{name: counter.value for name, counter in self._traffic.items()},
        )

    def without_falls(self, slow: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a SlowReading just read, with their counters as they may be shown.

        The device's own counters restart at a reset; none is shown below its earlier value.
        """
        shown = dict(slow)
        for name in ("ecc_errors", "nvlink_errors", "c2c_errors"):
            if name in slow:
                shown[name] = {
                    kind: self._never_falling((name, kind), reading)
                    for kind, reading in slow[name].items()
                }
        if slow.get("pcie_replays") is not None:
            replays = slow["pcie_replays"]
            shown["pcie_replays"] = self._never_falling(("pcie_replays", ""), replays)
        return shown

    def _never_falling(self, key: tuple[str, str], reading: float) -> float:
        counter = self._slow_counters.setdefault(key, DeviceCounter())
        counter.follow(reading)
        return reading if counter.value is None else counter.value

    def _watch(self, fast: FastReading, max_window_seconds: float) -> None:
        """Note since when no tick was missed: each followed the last closely enough."""
        before = self._last_fast_at
        if before is None or fast.at_seconds - before > max_window_seconds:
            self._watched_since = fast.at_seconds
            self._forget_utilization()
        elif fast.gpu_utilization is not None:
            self._utilization += fast.gpu_utilization
            self._utilizations += 1

    def _forget_utilization(self) -> None:
        self._utilization, self._utilizations = 0.0, 0

    def _coarse_window(
        self, fast: FastReading, open_since_seconds: float | None
    ) -> ActivityWindow | None:
        """Account for the time that no activity window covers, by NVML's utilization alone.

        Mostly it is the last tick's; more where a window that was open has been given up.
        """
        if self._watched_since is None:
            return None
        start = self._watched_since
        if self._accounted_until is not None:
            start = max(start, self._accounted_until)
        end = fast.at_seconds
        if open_since_seconds is not None:
            end = min(end, open_since_seconds)
        if end <= start:
            return None
        seen = self._utilizations
        mean = self._utilization / seen if seen else None
        return ActivityWindow(COARSE_SOURCE, start, end, graphics=mean)

    def _is_new(self, window: ActivityWindow, max_window_seconds: float) -> bool:
        """Whether the window is short enough to have been watched, and was not counted before."""
        if not 0 < window.seconds <= max_window_seconds:
            return False
        done = self._accounted_until
        return done is None or window.start_seconds >= done - _OVERLAP_TOLERANCE_SECONDS

    def _account(
        self, window: ActivityWindow, precision: str | None, reachable_bandwidth: float
    ) -> LastWindow:
        identity, peaks = self._identity, self._peaks
        clock = summarise_clocks(
            self._clocks, window.start_seconds, window.end_seconds, identity.sm_clock_max_hertz
        )
        if window.sm_cycles is not None:
            clock = replace(clock, mean_hertz=window.sm_cycles / window.seconds)
        split = split_time(
            window, clock, identity.sm_clock_max_hertz, reachable_bandwidth=reachable_bandwidth
        )
        for state in STATE_NAMES:
            seconds = getattr(split, state)
            # Devices on which every state is known have no `unresolved`.
            if seconds or state != "unresolved" or state in self._states:
                self._states[state] = self._states.get(state, 0.0) + seconds
        achieved: dict[str, float] = {}
        utilization: dict[str, float] = {}
        if precision is not None and window.source != COARSE_SOURCE:
            for work, flop in count_flop(window, peaks, precision, clock.mean_hertz).items():
                key = (work, window.source)
                self._flop[key] = self._flop.get(key, 0.0) + flop
                if work.pipe == "tensor":
                    achieved[work.precision] = flop / window.seconds
            utilization = {
                name: flops / peaks.flops[name]
                for name, flops in achieved.items()
                if peaks.flops.get(name)
            }
            if precision in utilization:
                ticks = self._ticks.get(precision)
                if ticks is None:
                    ticks = self._ticks[precision] = Histogram(TICK_UTILIZATION_BOUNDS)
                ticks.observe(utilization[precision])
        if window.dram is not None and peaks.dram_bytes_per_second is not None:
            moved = window.dram * peaks.dram_bytes_per_second * window.seconds
            self._dram[window.source] = self._dram.get(window.source, 0.0) + moved
        self._accounted_until = window.end_seconds
        self._forget_utilization()
        self._drop_clocks_before(window.end_seconds)
        return LastWindow(window, clock, achieved, utilization)

    def _drop_clocks_before(self, at_seconds: float) -> None:
        """Keep the last sample before the instant: it is the next window's left edge."""
        keep = 0
        for position, sample in enumerate(self._clocks):
            if sample.at_seconds <= at_seconds:
                keep = position
        del self._clocks[:keep]
        self._clock_stride = 1

    def _follow_reasons(self, fast: FastReading, max_window_seconds: float) -> None:
        for name, seconds in fast.event_reason_seconds.items():
            if name in self._reason_counters:
                self._reason_counters[name].follow(seconds)
        if fast.event_reasons is None or self._last_fast_at is None:
            return
        elapsed = fast.at_seconds - self._last_fast_at
        if not 0 < elapsed <= max_window_seconds:
            return
        for name, bit in EVENT_REASONS.items():
            counter = self._reason_counters[name]
            if not counter.followed:  # the device has no counter: by its mask, tick by tick
                counter.add(elapsed if fast.event_reasons & bit else 0.0)

    def _follow_traffic(self, fast: FastReading, window: ActivityWindow | None) -> None:
        for name, traffic in self._traffic.items():
            # NVML itself has no counter of C2C.
            reading: float | None = getattr(fast, name, None)
            if reading is not None:
                traffic.follow(reading, fast.at_seconds)
            moved: float | None = getattr(window, name) if window is not None else None
            if window is not None and moved is not None:
                traffic.add(moved, window.start_seconds, window.end_seconds)


class DeviceCounter:
    """Follows a counter of the device, and stays monotonic when the device restarts it.

    The first reading is the value, unless something was added before; then it is only the base of
    the next one. A reading below the last one means that the device was reset or the driver
    reloaded: what it counted meanwhile was not seen and is not counted.
    """

    __slots__ = ("_last", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self._last: float | None = None

    @property
    def followed(self) -> bool:
        """Whether the device has ever reported its counter."""
        return self._last is not None

    def add(self, amount: float) -> None:
        """Add an amount known from elsewhere, as long as the device does not count itself."""
        self.value = (self.value or 0.0) + amount

    def follow(self, reading: float | None) -> None:
        """Take the device's next reading; None changes nothing."""
        if reading is None:
            return
        if self.value is None:
            self.value = reading
        elif self._last is not None and reading > self._last:
            self.value += reading - self._last
        self._last = reading


class SpanCounter:
    """A counter with two sources that come and go: the device's own, and sums over spans of time.

    It never falls, and no instant is counted twice: what the device's counter has covered is
    deducted from a span, and after a span the device's next reading is only a new base.
    """

    __slots__ = ("_counted_until", "_last", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self._last: float | None = None
        self._counted_until = -inf

    def follow(self, reading: float, at_seconds: float) -> None:
        """Take the device's own counter as of an instant."""
        if self.value is None:
            self.value = reading
            self._counted_until = at_seconds
        elif self._last is not None:
            self.value += max(0.0, reading - self._last)
            self._counted_until = at_seconds
        self._last = reading

    def add(self, amount: float, start_seconds: float, end_seconds: float) -> None:
        """Add the amount of a span, spread evenly over it."""
        begin = max(start_seconds, self._counted_until)
        if end_seconds <= begin:
            return
        share = (end_seconds - begin) / (end_seconds - start_seconds)
        self.value = (self.value or 0.0) + share * amount
        self._counted_until = end_seconds
        self._last = None


class Histogram:
    """Counts observations by upper bound."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation; a value equal to a bound belongs to that bound's bucket."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def value(self) -> HistogramValue:
        """The histogram as it is now."""
        return HistogramValue(self._bounds, tuple(self._counts), self._total)
