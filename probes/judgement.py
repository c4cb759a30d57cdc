"""Judges measurements: contention, acceptance, clock-normalized efficiency, and the baseline.

A baseline is the best performance seen on a device, per kernel and software versions.

Pure functions. The standard library's statistics module is imported where it is used: it takes 1 MB,
which a daemon without probes should not pay for. T is the time that the timed runs took, W the time
that they would have taken alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from probes.facts import DeviceFacts
from probes.protocol import KernelInfo, Outcome, Result


# Hardware is judged by the median only if the probe had nearly all of the device.
SHARE_MIN: Final = 0.9
# Otherwise it is judged by its fastest runs, if at least this many are within this spread: runs
# that fit entirely into one time slice are undisturbed.
AGREEING_RUNS_MIN: Final = 3
AGREEING_SPREAD: Final = 0.03
# On a shared GPU, launches whose median is this far above the fastest have waited for a tenant's
# time slices; on an idle GPU they differ only by the host's jitter.
DISTURBED_LATENCY: Final = 2.0
# On a shared processor, a value below this share of the baseline is attributed to other programs:
# they use memory bandwidth and sibling threads, which the times of the probe's own threads do not
# show.
BESIDE_OTHERS_MIN: Final = 0.8
BUSY_UTILIZATION: Final = 0.1
# A GEMM that takes a processor core less time than this is too small to show its speed.
CPU_RUN_SECONDS_MIN: Final = 0.00005
# NVBench drops samples below this share of the clock.
CLOCK_SHARE_MIN: Final = 0.75

# With five rounds, one slow or lucky measurement does no harm.
BASELINE_WINDOW: Final = 5
SHAPE_LENGTH_MAX: Final = 3

# Plausible values in a state file: anything else means that it is corrupt.
_Size = Annotated[int, Meta(ge=1, le=2**40)]
_Shape = Annotated[tuple[_Size, ...], Meta(min_length=1, max_length=SHAPE_LENGTH_MAX)]
_Speed = Annotated[float, Meta(gt=0, le=1e18)]
Seconds = Annotated[float, Meta(ge=0, le=3600)]


@dataclass(frozen=True, slots=True)
class Contention:
    """The share of the device that other processes used while the probe ran."""

    intrinsic_seconds: float
    """W"""
    observed_seconds: float
    """T"""

    @property
    def share(self) -> float:
        """W/T, the probe's part of the device."""
        return self.intrinsic_seconds / self.observed_seconds

    @property
    def low(self) -> float:
        """Busy share of an open-loop tenant, whose work queues up independently: 1 − W/T."""
        return max(0.0, 1 - self.share)

    @property
    def high(self) -> float:
        """Busy share of a closed-loop tenant, which waits for its steps: T/W − 1, at most 1."""
        return min(1.0, max(0.0, 1 / self.share - 1))


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one result."""

    outcome: Outcome
    value: float | None
    """FLOP/s, bytes/s or seconds; None unless accepted."""
    normalised: float | None
    """The value a baseline is kept of: per clock for FLOP, else the value itself."""
    efficiency: float | None
    """FLOP per clock per SM reached over possible."""
    contention: Contention
    checked: bool
    """The result's bits were compared with something."""


def contention(
    run_seconds: Sequence[float], baseline_run_seconds: float | None, *, shared: bool
) -> Contention:
    """T and W of the timed runs.

    W comes from the fastest run. On a shared device, the baseline can make W smaller: if slices are
    shorter than a run, even the fastest run was interrupted.
    """
    intrinsic = min(run_seconds)
    if shared and baseline_run_seconds is not None:
        intrinsic = min(intrinsic, baseline_run_seconds)
    observed = sum(run_seconds)
    return Contention(min(intrinsic * len(run_seconds), observed), observed)


def undisturbed(result: Result) -> tuple[float, ...]:
    """The times of the runs in which no thread had to wait for another program."""
    if not result.preempted:
        return result.run_seconds
    return tuple(
        span for span, gone in zip(result.run_seconds, result.preempted, strict=True) if not gone
    )


def undisturbed_run(run_seconds: Sequence[float]) -> float | None:
    """Mean of the fastest runs that agree with each other; None if too few do."""
    import statistics

    if not run_seconds:
        return None
    fastest = min(run_seconds)
    agreeing = [span for span in run_seconds if span <= fastest * (1 + AGREEING_SPREAD)]
    return statistics.fmean(agreeing) if len(agreeing) >= AGREEING_RUNS_MIN else None


def efficiency(
    flops: float, clock_hertz: float | None, facts: DeviceFacts, precision: str, units: int
) -> float | None:
    """`flops` over the peak of `units` SMs at the measured clock."""
    rate = facts.flop_per_clock_per_sm.get(precision)
    if not rate or not clock_hertz or not units:
        return None
    return flops / (rate * units * clock_hertz)


def too_short(kernel: KernelInfo, result: Result, facts: DeviceFacts) -> bool:
    """Whether a processor GEMM is too small to show the speed of a core."""
    return (
        facts.kind == "cpu"
        and kernel.quantity == "flops"
        and min(result.run_seconds) < CPU_RUN_SECONDS_MIN
    )


def _is_others_doing(
    kernel: KernelInfo, result: Result, facts: DeviceFacts, value: float, baseline: float | None
) -> bool:
    """Whether a processor is slow because of other programs on it."""
    if facts.kind != "cpu" or kernel.quantity == "latency" or baseline is None:
        return False
    busy = facts.utilization_ratio is not None and facts.utilization_ratio > BUSY_UTILIZATION
    return busy and normalise(kernel, value, result.clock_hertz) < BESIDE_OTHERS_MIN * baseline


def _value(kernel: KernelInfo, result: Result, run_seconds: float) -> float:
    if kernel.quantity == "latency":
        return run_seconds
    return result.work_per_run / run_seconds


def normalise(kernel: KernelInfo, value: float, clock_hertz: float | None) -> float:
    """The figure that baselines compare: FLOP per clock if the clock is known, else the value."""
    if kernel.quantity == "flops" and clock_hertz:
        return value / clock_hertz
    return value


def baseline_run_seconds(
    kernel: KernelInfo, result: Result, baseline: float | None
) -> float | None:
    """Seconds of one run at this device's baseline, at the clock of `result`."""
    if baseline is None or kernel.quantity == "latency":
        return None
    per_second = baseline
    if kernel.quantity == "flops" and result.clock_hertz:
        per_second *= result.clock_hertz
    return result.work_per_run / per_second


def judge(
    kernel: KernelInfo,
    result: Result,
    facts: DeviceFacts,
    *,
    units: int,
    baseline: float | None,
    expected_digest: str | None,
    shared: bool,
) -> Judgement:
    """The verdict on `result`; `shared`: other processes use the device as well."""
    import statistics

    runs = result.run_seconds
    beside = contention(runs, baseline_run_seconds(kernel, result, baseline), shared=shared)
    if kernel.quantity == "latency":
        # A median of many launches; their jitter alone is no sign of a tenant.
        span: float | None = statistics.median(runs)
        if shared and facts.kind == "cuda" and span is not None:
            span = span if span <= DISTURBED_LATENCY * min(runs) else None
    elif facts.kind == "cpu" or beside.share < SHARE_MIN:
        # A processor is always shared: through its scheduler and, invisibly, with sibling threads.
        span = undisturbed_run(undisturbed(result))
        if too_short(kernel, result, facts):
            # Its size was chosen while other programs used the cores.
            span = None
    else:
        span = statistics.median(runs)
    wrong = (
        result.exact is False
        or not result.repeats_agree
        or (
            (expected_digest is not None and bool(result.digest))
            and result.digest != expected_digest
        )
    )
    slow_clock = (
        facts.kind == "cuda"
        and result.clock_hertz is not None
        and facts.sm_clock_max_hertz is not None
        and result.clock_hertz < CLOCK_SHARE_MIN * facts.sm_clock_max_hertz
    )
    value = None if span is None else _value(kernel, result, span)
    others = value is not None and _is_others_doing(kernel, result, facts, value, baseline)
    if others and kernel.quantity == "flops":
        value = None
    reached = (
        efficiency(value, result.clock_hertz, facts, kernel.label, units)
        if value is not None and kernel.quantity == "flops"
        else None
    )
    outcome: Outcome = "ok"
    if wrong:
        outcome = "mismatch"
    elif value is None:
        outcome = "contended"
    elif slow_clock:
        outcome = "throttled"
    checked = bool(result.digest) or result.exact is not None
    if outcome in ("mismatch", "contended") or value is None:
        return Judgement(outcome, None, None, None, beside, checked)
    if outcome == "throttled":
        # Efficiency is normalized by the clock: it separates throttling from slow silicon.
        return Judgement(outcome, None, None, reached, beside, checked)
    per_clock: float | None = normalise(kernel, value, result.clock_hertz)
    if others:
        # The bandwidth left by other programs is real, but says nothing about the memory itself.
        per_clock = None
    if facts.kind == "cuda" and kernel.quantity == "flops" and result.clock_hertz is None:
        # The clock is unknown for this run: FLOP/s cannot be compared with FLOP per clock.
        per_clock = None
    return Judgement(outcome, value, per_clock, reached, beside, checked)


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The best median of five this device has reached with this kernel and these versions."""

    versions: str
    shape: _Shape
    digest: str = ""
    """Of the first result's bits, which every later one must have."""
    best: _Speed | None = None
    recent: tuple[_Speed, ...] = ()
    higher_is_better: bool = True
    device_seconds: Seconds | None = None
    """What one run of the kernel last took: the next one's expected cost."""

    @property
    def value(self) -> float | None:
        """The reference: the best full window's median; before one is full, the median so far."""
        if self.best is not None:
            return self.best
        return _median(self.recent) if self.recent else None

    @property
    def established(self) -> bool:
        """Whether a full window was seen."""
        return self.best is not None

    def ratio(self, measured: float) -> float | None:
        """`measured` over the baseline; None without a baseline."""
        reference = self.value
        return measured / reference if reference else None

    def with_measurement(self, measured: float) -> "Baseline":
        """The baseline after one more accepted measurement."""
        recent = (*self.recent, measured)[-BASELINE_WINDOW:]
        best = self.best
        if len(recent) == BASELINE_WINDOW:
            median = _median(recent)
            better = max if self.higher_is_better else min
            best = median if best is None else better(best, median)
        return msgspec.structs.replace(self, recent=recent, best=best)


def _median(values: tuple[float, ...]) -> float:
    import statistics

    return statistics.median(values)
