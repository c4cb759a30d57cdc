"""Probe results per device: collected by the scheduler, read as a frozen snapshot."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from probes.gates import Reason
from probes.judgement import Contention, Judgement
from probes.protocol import KernelInfo, Outcome
from probes.sizing import is_model_gemm


# A value is stale after this many cycles of its kernel, that is, once a turn was clearly missed. If
# the budget does not cover all kernels, they take turns, so each has its own cycle: the time
# between its last two values.
STALE_CYCLES: Final = 2.5
# In intervals: a gate may hold a device back for a few; beyond the limit no value is shown.
STALE_INTERVALS_MIN: Final = 5
STALE_INTERVALS_MAX: Final = 15
# Outcomes of a run that did not finish by itself.
FAILURES: Final = frozenset({"error", "timeout", "out_of_memory"})
_DAY_SECONDS: Final = 86_400.0

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class ProbeResults:
    """One device's probe results; mappings hold only known values."""

    device: str
    """The `gpu` label."""
    uuid: str
    flops: Mapping[str, float]
    """By precision, FLOP/s."""
    efficiency_ratio: Mapping[str, float]
    """By precision."""
    sm_clock_hertz: float | None
    bandwidth_bytes_per_second: Mapping[tuple[str, str], float]
    """By path and peer's `gpu` label; "" where the path has no peer."""
    launch_latency_seconds: float | None
    baseline_ratio: Mapping[str, float]
    """By kernel."""
    tenant_busy_ratio: tuple[float, float] | None
    """Low and high bound."""
    mismatches: Mapping[str, int]
    """By kernel; 0 for those that were checked and always right."""
    runs: Mapping[tuple[str, Outcome], int]
    """By kernel and outcome."""
    skips: Mapping[Reason, int]
    gpu_seconds: float
    last_success_seconds: Mapping[str, float]
    """Unix time, by kernel."""
    worker_restarts: int
    worker_memory_bytes: int | None
    """None while no worker has the device open."""
    worker_pid: int | None
    instance: str | None = None
    """The `mig` label, of a MIG instance."""
    flops_max: Mapping[str, float] = field(default_factory=dict)
    """By precision, the highest FLOP/s accepted since the start."""
    bandwidth_max_bytes_per_second: float | None = None
    """The highest rate of the device-memory copy since the start."""
    clock_max_hertz: float | None = None
    """The highest clock of a probe since the start."""
    failures_in_a_row: Mapping[str, int] = field(default_factory=dict)
    """Failed runs since the last accepted one, by kernel; of those that ever failed."""
    coverage_ratio: float | None = None
    """Of the served models' matrix products, those that were probed in the last day. None: none are known."""

    def without_values(self) -> "ProbeResults":
        """A copy without measured values, for a device that does not answer now.

        Counters and the times of the last successes stay.
        """
        return replace(
            self,
            flops={},
            efficiency_ratio={},
            sm_clock_hertz=None,
            bandwidth_bytes_per_second={},
            launch_latency_seconds=None,
            baseline_ratio={},
            tenant_busy_ratio=None,
            coverage_ratio=None,
        )


@dataclass(frozen=True, slots=True)
class ProbesSnapshot:
    """All devices' probe results at one moment."""

    running: bool
    """Whether probes are on at all: enabled, and torch is there."""
    paused: bool
    devices: tuple[ProbeResults, ...] = ()


@dataclass(slots=True)
class Value:
    """A gauge's value, its time (monotonic), and the time since the previous value."""

    number: float
    at: float
    cycle: float | None = None

    def fresh(self, now: float, interval: float) -> bool:
        """Whether it is still valid at `now`, if the device has a turn every `interval`."""
        most = STALE_INTERVALS_MAX * interval
        if self.cycle is None:
            return now - self.at <= most
        least = STALE_INTERVALS_MIN * interval
        return now - self.at <= min(max(STALE_CYCLES * self.cycle, least), most)


def _next(before: Value | None, number: float, now: float) -> Value:
    """The value after `before`, or the first one."""
    return Value(number, now, None if before is None else now - before.at)


@dataclass(slots=True)
class DeviceRecord:
    """One device's results, updated as they arrive. Guarded by its owner's lock."""

    device: str
    uuid: str
    instance: str | None = None
    flops: dict[str, Value] = field(default_factory=dict)
    efficiency: dict[str, Value] = field(default_factory=dict)
    clock: Value | None = None
    bandwidth: dict[tuple[str, str], Value] = field(default_factory=dict)
    latency: Value | None = None
    baseline_ratio: dict[str, Value] = field(default_factory=dict)
    flops_max: dict[str, float] = field(default_factory=dict)
    bandwidth_max: float | None = None
    clock_max: float | None = None
    busy_low: Value | None = None
    busy_high: Value | None = None
    mismatches: Counter[str] = field(default_factory=Counter)
    runs: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    failures_in_a_row: dict[str, int] = field(default_factory=dict)
    skips: Counter[Reason] = field(default_factory=Counter)
    gpu_seconds: float = 0.0
    last_success: dict[str, float] = field(default_factory=dict)
    worker_restarts: int = 0
    worker_memory_bytes: int | None = None
    worker_pid: int | None = None
    model_gemms: tuple[str, ...] = ()
    """Names of the products of the models that are served now."""

    def ended(self, kernel: str, outcome: Outcome) -> None:
        """Count a run of the kernel by its outcome."""
        self.runs[kernel, outcome] += 1
        if outcome in FAILURES:
            self.failures_in_a_row[kernel] = self.failures_in_a_row.get(kernel, 0) + 1

    def judged(
        self,
        kernel: KernelInfo,
        judgement: Judgement,
        ratio: float | None,
        peer: str,
        *,
        now: float,
        unix_time: float,
    ) -> None:
        """Record a judgement; `ratio` is relative to the baseline."""
        if judgement.outcome == "mismatch":
            self.mismatches[kernel.name] += 1
        elif judgement.checked:
            # Present at 0, so that the first mismatch is an increase.
            self.mismatches.setdefault(kernel.name, 0)
        of_a_model = is_model_gemm(kernel)
        if judgement.efficiency is not None and not of_a_model:
            before = self.efficiency.get(kernel.label)
            self.efficiency[kernel.label] = _next(before, judgement.efficiency, now)
        if judgement.value is None:
            return
        number, label = judgement.value, kernel.label
        if of_a_model:
            pass  # compared only with its own baseline: it says nothing about the precision
        elif kernel.quantity == "flops":
            self.flops[label] = _next(self.flops.get(label), number, now)
            self.flops_max[label] = max(number, self.flops_max.get(label, 0.0))
        elif kernel.quantity == "bandwidth":
            self.bandwidth[label, peer] = _next(self.bandwidth.get((label, peer)), number, now)
            if label == "device":
                self.bandwidth_max = max(number, self.bandwidth_max or 0.0)
        else:
            self.latency = _next(self.latency, number, now)
        if ratio is not None:
            before = self.baseline_ratio.get(kernel.name)
            self.baseline_ratio[kernel.name] = _next(before, ratio, now)
        self.last_success[kernel.name] = unix_time
        if kernel.name in self.failures_in_a_row:
            self.failures_in_a_row[kernel.name] = 0

    def contended(self, cycle: Contention, now: float) -> None:
        """Record the contention bracket of a whole cycle."""
        self.busy_low = _next(self.busy_low, cycle.low, now)
        self.busy_high = _next(self.busy_high, cycle.high, now)

    def clocked(self, hertz: float, now: float) -> None:
        """Record the SM clock during a run."""
        self.clock = _next(self.clock, hertz, now)
        self.clock_max = max(hertz, self.clock_max or 0.0)

    def coverage(self, unix_time: float) -> float | None:
        """The share of the served models' products probed within a day; None without products."""
        if not self.model_gemms:
            return None
        since = unix_time - _DAY_SECONDS
        seen = sum(self.last_success.get(name, 0.0) >= since for name in self.model_gemms)
        return seen / len(self.model_gemms)

    def snapshot(self, now: float, interval: float, *, unix_time: float = 0.0) -> ProbeResults:
        """A frozen copy without stale values. `interval` is the time between the device's turns."""

        def fresh(value: Value | None) -> float | None:
            return value.number if value is not None and value.fresh(now, interval) else None

        def all_fresh(values: Mapping[_Key, Value]) -> dict[_Key, float]:
            return {k: v.number for k, v in values.items() if v.fresh(now, interval)}

        low, high = fresh(self.busy_low), fresh(self.busy_high)
        return ProbeResults(
            device=self.device,
            uuid=self.uuid,
            flops=all_fresh(self.flops),
            efficiency_ratio=all_fresh(self.efficiency),
            sm_clock_hertz=fresh(self.clock),
            bandwidth_bytes_per_second=all_fresh(self.bandwidth),
            launch_latency_seconds=fresh(self.latency),
            baseline_ratio=all_fresh(self.baseline_ratio),
            tenant_busy_ratio=None if low is None or high is None else (low, high),
            mismatches=dict(self.mismatches),
            runs=dict(self.runs),
            skips=dict(self.skips),
            gpu_seconds=self.gpu_seconds,
            last_success_seconds=dict(self.last_success),
            worker_restarts=self.worker_restarts,
            worker_memory_bytes=self.worker_memory_bytes,
            worker_pid=self.worker_pid,
            instance=self.instance,
            flops_max=dict(self.flops_max),
            bandwidth_max_bytes_per_second=self.bandwidth_max,
            clock_max_hertz=self.clock_max,
            failures_in_a_row=dict(self.failures_in_a_row),
            coverage_ratio=self.coverage(unix_time),
        )
