"""The track record: predictions from the window before a change, compared with the result.

When only the variable of one lever changes (the batch, the clock, the precision after a restart, a
GPU replaced, the hit rate), the throughput that the old window predicts for the new value is
compared with the throughput after ten stable minutes. A comparison needs a queue before and after,
requests of about the same shape, and no other variable that moved; otherwise it is dropped and not
counted. Pure: windows and times are arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import msgspec

from exporter.advice.levers import LEVERS
from exporter.advice.prediction import LEAST_WAITING, Inapplicable, Interval
from exporter.advice.window import WorkloadWindow
from exporter.inference.models.attention import (
    Attention,
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
)
from exporter.inference.models.mixers import RecurrentMixer


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

    def with_outcome(self, outcome: str, error: float) -> "Record":
        """The record with one more comparison."""
        counts = {name: getattr(self, name) + (name == outcome) for name in OUTCOMES}
        return Record(**counts, last_error=error)


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


def observe(
    watch: Watch,
    window: WorkloadWindow,
    at_seconds: float,
    stable_seconds: float,
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


def record(records: Records, comparison: Comparison) -> dict[str, dict[str, Record]]:
    """The records with one more comparison; the number of workloads is bounded."""
    changed = {workload: dict(levers) for workload, levers in records.items()}
    levers = changed.pop(comparison.workload, {})
    before = levers.get(comparison.lever, Record())
    levers[comparison.lever] = before.with_outcome(comparison.outcome, comparison.error)
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
class HitHistory:
    """The best prefix cache hit rate of each day in the last week."""

    by_day: Mapping[int, float] = field(default_factory=dict)

    def entered(self, hits: float, day: int) -> "HitHistory":
        """The history with the hit rate of a window on `day` (days of Unix time)."""
        kept = {each: best for each, best in self.by_day.items() if day - 7 <= each <= day}
        kept[day] = max(hits, kept.get(day, 0.0))
        return HitHistory(kept)

    @property
    def best(self) -> float | None:
        """The best hit rate of all days."""
        return max(self.by_day.values(), default=None)


# The kinds of attention by their fields: the state file has no names of classes.
_ATTENTION = {
    frozenset(field.name for field in fields(kind)): kind
    for kind in (GroupedAttention, LatentAttention, CompressedAttention, RecurrentMixer)
}


class SavedTrial(msgspec.Struct, frozen=True):
    """A trial for the state file, with times in Unix seconds: monotonic times end with the process.

    `window` has the fields of a WorkloadWindow.
    """

    workload: str
    model: str
    began_unix_seconds: float
    settled_unix_seconds: float
    values: dict[str, float]
    window: dict[str, Any]


def saved_trial(trial: Trial, clock_offset_seconds: float) -> SavedTrial:
    """The trial as data. The offset is Unix time minus the windows' clock."""
    return SavedTrial(
        workload=trial.before.workload,
        model=trial.before.model,
        began_unix_seconds=trial.began_seconds + clock_offset_seconds,
        settled_unix_seconds=trial.settled_seconds + clock_offset_seconds,
        values=dict(trial.values),
        window=msgspec.to_builtins(trial.before),
    )


def restored_trial(saved: SavedTrial, clock_offset_seconds: float) -> Trial:
    """The trial from saved data. Raises msgspec.ValidationError if the data is damaged.

    A trial without the model's description, as an earlier version saved it, cannot be compared.
    """
    if saved.window.get("description") is None:
        raise msgspec.ValidationError("the trial has no description of its model")
    return Trial(
        before=msgspec.convert(saved.window, WorkloadWindow, dec_hook=_attention),
        began_seconds=saved.began_unix_seconds - clock_offset_seconds,
        values=saved.values,
        settled_seconds=saved.settled_unix_seconds - clock_offset_seconds,
    )


def _attention(_expected: type, saved: Any) -> Attention:
    kind = _ATTENTION.get(frozenset(saved)) if isinstance(saved, dict) else None
    if kind is None:
        raise msgspec.ValidationError("a layer has an unknown kind of attention")
    attention: Attention = msgspec.convert(saved, kind)
    return attention
