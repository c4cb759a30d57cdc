"""The levers of a workload, best first, what became of earlier predictions, and both as JSON.

When only the variable of one lever changes (the batch, the clock, the precision after a restart, a
GPU replaced, the hit rate), the throughput that the old window predicts for the new value is
compared with the throughput after ten stable minutes. A comparison needs a queue before and after,
requests of about the same shape, and no other variable that moved; otherwise it is dropped and not
counted. Pure: windows and times are arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from exporter.advice.levers import LEVERS
from exporter.advice.prediction import (
    LEAST_WAITING,
    Absent,
    Inapplicable,
    Interval,
    Prediction,
    Price,
    WorkloadWindow,
)


API_VERSION: Final = 1
ADVICE_PATH: Final = "/api/v1/advice"
OUTCOMES = ("inside", "below", "above")
# A change that does not settle within an hour is ignored, as is one of an engine absent for so
# long.
_LONGEST_SECONDS = 3600.0
# Requests whose prompts, answers or contexts differ by more are a different workload.
_SIMILAR = 0.2
# Changing these also changes the batch: the lever's prediction covers it.
_CHANGES_THE_BATCH = frozenset({"kv_cache_fp8", "weights_fp8", "weights_fp4", "tensor_parallel"})
# Two windows of the same engine differ by this much even if nothing has changed.
_NOISE = 0.01
_WORKLOADS_MAX = 64


@dataclass(frozen=True, slots=True)
class Advice:
    """The predictions of one workload, best first, and the levers without one."""

    window: WorkloadWindow
    predictions: tuple[Prediction, ...]
    absent: tuple[Absent, ...]


def advise(window: WorkloadWindow) -> Advice:
    """Evaluate every lever on the window."""
    predictions: list[Prediction] = []
    absent: list[Absent] = []
    for lever in LEVERS.values():
        try:
            predictions.append(lever.predict(window))
        except Inapplicable as reason:
            absent.append(Absent(lever.name, str(reason)))
    # By cost per token at the middle of the interval, then by throughput.
    predictions.sort(key=lambda p: (p.cost.middle, -p.gain.middle, p.lever))
    return Advice(window, tuple(predictions), tuple(absent))


def best(advice: Advice) -> Prediction | None:
    """The first lever that is certain to help, if any."""
    for prediction in advice.predictions:
        if prediction.cost.high < 1.0 or prediction.gain.low > 1.0:
            return prediction
    return None


def best_sentence(advice: Advice) -> str | None:
    """The best lever as a readable sentence; None if no lever is certain to help."""
    first = best(advice)
    if first is None:
        return None
    title = LEVERS[first.lever].title.lower()
    return f"{advice.window.workload} ({advice.window.model}): {title}: {first.evidence}."


@dataclass(frozen=True, slots=True)
class Record:
    """The track record of a lever: counts by outcome, and the last signed error."""

    inside: int = 0
    below: int = 0
    above: int = 0
    last_error: float | None = None

    @property
    def total(self) -> int:
        """All comparisons."""
        return self.inside + self.below + self.above


# By workload, then by lever.
Records = Mapping[str, Mapping[str, Record]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A change under observation. `values`: the new variables, stable since `settled_seconds`."""

    before: WorkloadWindow
    began_seconds: float
    values: Mapping[str, float]
    settled_seconds: float


@dataclass(frozen=True, slots=True)
class Watch:
    """One watched workload: consecutive windows, oldest first, and a trial."""

    history: tuple[tuple[float, WorkloadWindow], ...] = ()
    trial: Trial | None = None

    def stale(self, at_seconds: float, stable_seconds: float) -> bool:
        """Whether its windows are too old for a comparison: the engine was absent for too long."""
        if self.trial is not None:
            compared_after = self.trial.before.seconds + stable_seconds
            return at_seconds - self.trial.began_seconds > _LONGEST_SECONDS + compared_after
        return not self.history or at_seconds - self.history[-1][0] > _LONGEST_SECONDS


@dataclass(frozen=True, slots=True)
class Comparison:
    """A back-test: the prediction and the outcome."""

    workload: str
    lever: str
    outcome: str
    error: float


def back_test(
    watch: Watch, window: WorkloadWindow, at_seconds: float, stable_seconds: float
) -> tuple[Watch, Comparison | None]:
    """Record the window that ended at `at_seconds`; windows may overlap.

    Windows may be missing for a while, as during an engine restart: the earlier state is kept.
    """
    if watch.stale(at_seconds, stable_seconds):
        watch = Watch()
    if watch.trial is not None:
        return _follow(watch.trial, window, at_seconds, stable_seconds)
    history = (*watch.history, (at_seconds, window))
    before = [each for at, each in history if at <= at_seconds - window.seconds]
    if before and _moved(variables(before[-1]), variables(window), 1.0):
        # Windows in between mix before and after: the trial starts with the next window.
        trial = Trial(before[-1], at_seconds, variables(window), at_seconds)
        return Watch(trial=trial), None
    oldest = at_seconds - 2 * window.seconds
    return Watch(history=tuple(each for each in history if each[0] >= oldest)), None


def variables(window: WorkloadWindow) -> dict[str, float]:
    """The variables of all levers that have one with a value in the window."""
    found = {name: lever.variable(window) for name, lever in LEVERS.items() if lever.after}
    return {name: value for name, value in found.items() if value is not None}


def recorded(records: Records, comparison: Comparison) -> dict[str, dict[str, Record]]:
    """The records with one more comparison; the number of workloads is bounded."""
    changed = {workload: dict(levers) for workload, levers in records.items()}
    levers = changed.pop(comparison.workload, {})
    before = levers.get(comparison.lever, Record())
    count = {comparison.outcome: getattr(before, comparison.outcome) + 1}
    levers[comparison.lever] = replace(before, last_error=comparison.error, **count)
    changed[comparison.workload] = levers
    while len(changed) > _WORKLOADS_MAX:
        del changed[next(iter(changed))]
    return changed


def _follow(
    trial: Trial, window: WorkloadWindow, at_seconds: float, stable_seconds: float
) -> tuple[Watch, Comparison | None]:
    values = variables(window)
    if _moved(trial.values, values, 0.5) or set(values) != set(trial.values):
        return Watch(trial=replace(trial, values=values, settled_seconds=at_seconds)), None
    # The whole window is within the stable time.
    if at_seconds - trial.settled_seconds < max(stable_seconds, window.seconds):
        return Watch(trial=trial), None
    return Watch(), _compare(trial.before, window)


def _compare(before: WorkloadWindow, now: WorkloadWindow) -> Comparison | None:
    """The comparison, or None if it would not be fair."""
    if any(gpu.shared_with or gpu.fault for window in (before, now) for gpu in window.gpus):
        return None
    moved = {
        name
        for name in _moved(variables(before), variables(now), 1.0)
        if LEVERS[name].concerns(before, now)
    }
    causes = moved - {"larger_batch"} if moved & _CHANGES_THE_BATCH else moved
    if len(causes) != 1 or not _similar(before, now):
        return None
    lever = LEVERS[causes.pop()]
    if lever.after is None:
        return None
    try:
        predicted = lever.after(before, now)
    except Inapplicable:
        return None
    measured = (now.tokens / now.seconds) / (before.tokens / before.seconds)
    outcome = "inside"
    if not Interval(predicted.low - _NOISE, predicted.high + _NOISE).holds(measured):
        outcome = "below" if measured < predicted.low else "above"
    error = predicted.middle / measured - 1.0
    return Comparison(now.workload, lever.name, outcome, error)


def _moved(before: Mapping[str, float], now: Mapping[str, float], share: float) -> set[str]:
    """The levers whose variable moved by at least `share` of its change threshold."""
    return {
        name
        for name in before.keys() & now.keys()
        if abs(now[name] - before[name])
        > share * LEVERS[name].least_change * max(abs(before[name]), 1e-9)
    }


def _similar(before: WorkloadWindow, now: WorkloadWindow) -> bool:
    """Whether requests waited in both windows and needed about the same work."""
    for window in (before, now):
        if not window.tokens or (window.waiting_requests or 0.0) < LEAST_WAITING:
            return False
    return all(
        _close(shape(before), shape(now))
        for shape in (
            lambda w: w.decode_context,
            lambda w: _each((w.prefill_tokens or 0.0) + (w.cached_tokens or 0.0), w.prompts),
            lambda w: _each(w.tokens, w.prompts),
        )
    )


def _each(total: float, count: float | None) -> float | None:
    return total / count if count else None


def _close(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is now
    return abs(now - before) <= _SIMILAR * max(before, 1e-9)


@dataclass(frozen=True, slots=True)
class AdviceSnapshot:
    """The advice for all workloads of the host, and the track record of the levers."""

    workloads: tuple[Advice, ...] = ()
    records: Records = field(default_factory=dict)


class Range(msgspec.Struct, frozen=True):
    """A predicted ratio over today's value."""

    low: float
    high: float


class TrackRecord(msgspec.Struct, frozen=True):
    """How many predictions of the lever held, for this workload and for the whole host."""

    held_here: int
    compared_here: int
    held: int
    compared: int


class LeverAdvice(msgspec.Struct, frozen=True):
    """One option, predicted. Savings: money per day at today's tokens, mid-range."""

    lever: str
    throughput: Range
    cost_per_token: Range
    capacity: Range
    evidence: str
    action: str
    record: TrackRecord
    useful_flops: Range | None = None
    saved_per_day: float | None = None
    currency: str | None = None


class WorkloadAdvice(msgspec.Struct, frozen=True):
    """One served model: options, best first."""

    workload: str
    model: str
    window_seconds: float
    levers: tuple[LeverAdvice, ...]
    absent: tuple[Absent, ...]


class AdviceDocument(msgspec.Struct, frozen=True):
    """All advice for this host."""

    workloads: tuple[WorkloadAdvice, ...] = ()
    api_version: int = API_VERSION


def document_of(snapshot: AdviceSnapshot) -> AdviceDocument:
    """The document of a snapshot."""
    return AdviceDocument(
        tuple(
            WorkloadAdvice(
                workload=advice.window.workload,
                model=advice.window.model,
                window_seconds=advice.window.seconds,
                levers=tuple(_lever(each, advice, snapshot.records) for each in advice.predictions),
                absent=advice.absent,
            )
            for advice in snapshot.workloads
        )
    )


def _lever(prediction: Prediction, advice: Advice, records: Records) -> LeverAdvice:
    window = advice.window
    flops, price = window.useful_flops, window.price
    return LeverAdvice(
        lever=prediction.lever,
        throughput=_range(prediction.gain),
        cost_per_token=_range(prediction.cost),
        capacity=_range(prediction.capacity),
        evidence=prediction.evidence,
        action=prediction.action,
        record=track_record(records, window.workload, prediction.lever),
        useful_flops=None if flops is None else _range(prediction.gain, flops),
        saved_per_day=None if price is None else _saved(price, window.gpu_count, prediction),
        currency=None if price is None else price.currency,
    )


def track_record(records: Records, workload: str, lever: str) -> TrackRecord:
    """The track record of the lever, for this workload and for the whole host."""
    here = records.get(workload, {}).get(lever, Record())
    every = [levers[lever] for levers in records.values() if lever in levers]
    return TrackRecord(
        held_here=here.inside,
        compared_here=here.total,
        held=sum(each.inside for each in every),
        compared=sum(each.total for each in every),
    )


def _saved(price: Price, gpus: int, prediction: Prediction) -> float:
    return 24.0 * price.per_gpu_hour * gpus * (1.0 - prediction.cost.middle)


def _range(interval: Interval, factor: float = 1.0) -> Range:
    return Range(interval.low * factor, interval.high * factor)
