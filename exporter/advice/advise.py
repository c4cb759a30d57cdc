"""All levers of one workload, best first."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from exporter.advice.backtest import Records
from exporter.advice.levers import LEVERS
from exporter.advice.prediction import Absent, Inapplicable, Prediction
from exporter.advice.window import WorkloadWindow


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
