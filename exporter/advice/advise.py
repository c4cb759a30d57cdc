"""All levers of one workload, best first, and the same as JSON for `flopwatch advise`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from exporter.advice.backtest import Record, Records
from exporter.advice.levers import LEVERS
from exporter.advice.prediction import Absent, Inapplicable, Interval, Prediction
from exporter.advice.window import Price, WorkloadWindow


API_VERSION: Final = 1
ADVICE_PATH: Final = "/api/v1/advice"


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
    return Advice(window, ranked(predictions), tuple(absent))


def ranked(predictions: Iterable[Prediction]) -> tuple[Prediction, ...]:
    """Sorted by cost per token at the middle of the interval, then by throughput."""
    return tuple(sorted(predictions, key=lambda p: (p.cost.middle, -p.gain.middle, p.lever)))


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
        tuple(_workload(advice, snapshot.records) for advice in snapshot.workloads)
    )


def _workload(advice: Advice, records: Records) -> WorkloadAdvice:
    window = advice.window
    return WorkloadAdvice(
        workload=window.workload,
        model=window.model,
        window_seconds=window.seconds,
        levers=tuple(_lever(each, advice, records) for each in advice.predictions),
        absent=advice.absent,
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
