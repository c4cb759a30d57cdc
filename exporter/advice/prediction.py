"""What a lever says: a prediction with its evidence, or why there is none."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from exporter.advice.window import WorkloadWindow


class Interval(NamedTuple):
    """A range in which a ratio is expected; 1.0 is no change."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The middle of the range."""
        return (self.low + self.high) / 2

    def holds(self, value: float) -> bool:
        """Whether the value lies in the range, its ends included."""
        return self.low <= value <= self.high


class Inapplicable(Exception):
    """A lever cannot be predicted for this workload; the message says why, in one sentence."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What pulling the lever would do to this workload.

    `gain` is the throughput over today's, `cost` the cost per token over today's. `capacity` is the
    throughput that the GPUs could deliver with unlimited demand; it equals `gain` while requests
    wait. `evidence` is a sentence with the numbers that the prediction rests on, `action` what to
    type or change. `target` is the value of the lever's variable for which this was predicted.
    """

    lever: str
    gain: Interval
    cost: Interval
    capacity: Interval
    evidence: str
    action: str
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """No prediction of this lever, and why."""

    lever: str
    reason: str


@dataclass(frozen=True, slots=True)
class Lever:
    """One option. Each file of `levers/` declares one as LEVER.

    `predict` raises Inapplicable where it cannot say. `variable` gives the value that the lever
    would change, for the back-test: a change of it by itself is a test of the prediction;
    `after` predicts the throughput ratio for a given new value of the variable from the old window.
    """

    name: str
    title: str
    predict: Callable[[WorkloadWindow], Prediction]
    variable: Callable[[WorkloadWindow], float | None] = field(default=lambda _window: None)
    after: Callable[[WorkloadWindow, WorkloadWindow], Interval] | None = None
    # Of several levers with the same variable: whether a change of it was this one's.
    concerns: Callable[[WorkloadWindow, WorkloadWindow], bool] = field(
        default=lambda _before, _now: True
    )
    # How far the variable must move, in relation, before it counts as a change.
    least_change: float = 0.15
