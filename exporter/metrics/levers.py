"""The levers: what a change would gain, and how accurate such predictions have been."""

from collections import Counter
from collections.abc import Iterator

from exporter.advice.advise import OUTCOMES, AdviceSnapshot
from exporter.advice.prediction import Interval
from exporter.metrics.family import Family, Label, Sample, Subject
from exporter.metrics.rows import Samples


SUBJECT = Subject("Levers", per_device=False)

_LABELS = ("workload", "model", "lever", "bound")

LEVER_GAIN_RATIO = SUBJECT.gauge(
    "flopwatch_lever_gain_ratio",
    labels=_LABELS,
    help=(
        "Predicted ratio of the throughput after the change to the current throughput, lower and "
        "upper bound. 1 is no gain. Absent if it cannot be predicted."
    ),
    interpretation=(
        "What the change would bring. `flopwatch advise` prints the evidence and what to change."
    ),
)
LEVER_COST_RATIO = SUBJECT.gauge(
    "flopwatch_lever_cost_ratio",
    labels=_LABELS,
    help=(
        "Predicted ratio of the cost per token after the change to the current cost, lower and "
        "upper bound."
    ),
    interpretation=(
        "Below 1: tokens become cheaper. If the upper bound is 1 while no request waits, they "
        "become cheaper only if other work uses the freed time."
    ),
)
LEVER_BACKTESTS_TOTAL = SUBJECT.counter(
    "flopwatch_lever_backtests_total",
    unit="predictions",
    labels=("lever", "outcome"),
    help=(
        "Predictions compared with the measured result after somebody had made the change, by "
        "outcome: the result was inside the interval, below it or above it. Kept in the state "
        "file across restarts."
    ),
    interpretation=(
        "Track record of the advice. If most results are outside the interval, do not follow it."
    ),
)
LEVER_BACKTEST_ERROR_RATIO = SUBJECT.gauge(
    "flopwatch_lever_backtest_error_ratio",
    labels=("workload", "lever"),
    help=(
        "Signed error of the last comparison of a prediction with the result: the middle of the "
        "predicted interval divided by the measured ratio, minus 1."
    ),
    interpretation="Above 0: the prediction was too optimistic.",
)


def lever_samples(snapshot: AdviceSnapshot) -> Iterator[Sample]:
    """All samples of the levers."""
    for advice in snapshot.workloads:
        window = advice.window
        model = (("workload", window.workload), ("model", window.model))
        for prediction in advice.predictions:
            labels = (*model, ("lever", prediction.lever))
            yield from _bounds(LEVER_GAIN_RATIO, labels, prediction.gain)
            yield from _bounds(LEVER_COST_RATIO, labels, prediction.cost)
    counts: Counter[tuple[str, str]] = Counter()
    for levers in snapshot.records.values():
        for lever, record in levers.items():
            for outcome in OUTCOMES:
                counts[lever, outcome] += getattr(record, outcome)
    for (lever, outcome), count in sorted(counts.items()):
        counted = (("lever", lever), ("outcome", outcome))
        yield Sample(LEVER_BACKTESTS_TOTAL, counted, float(count))
    for workload, levers in snapshot.records.items():
        for lever, record in levers.items():
            if record.last_error is not None:
                named = (("workload", workload), ("lever", lever))
                yield Sample(LEVER_BACKTEST_ERROR_RATIO, named, record.last_error)


def _bounds(family: Family, labels: tuple[Label, ...], interval: Interval) -> Iterator[Sample]:
    yield Sample(family, (*labels, ("bound", "low")), interval.low)
    yield Sample(family, (*labels, ("bound", "high")), interval.high)


LEVER_SAMPLES: Samples[AdviceSnapshot] = Samples(lever_samples)
