"""The result of a lever: a prediction with its evidence, or the reason why there is none."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from exporter.advice.window import WorkloadWindow


class Interval(NamedTuple):
    """The expected range of a ratio; 1.0 means no change."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The middle of the range."""
        return (self.low + self.high) / 2

    def holds(self, value: float) -> bool:
        """Whether the value is in the range, including its ends."""
        return self.low <= value <= self.high


class Inapplicable(Exception):
    """A lever cannot be predicted for this workload; the message says why, in one sentence."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted effect of the lever on this workload.

    `gain` is the throughput over today's, `cost` the cost per token over today's. `capacity` is the
    throughput that the GPUs could deliver with unlimited demand; it equals `gain` while requests
    wait. `evidence` is a sentence with the numbers behind the prediction, `action` is the command
    or change. `target` is the value of the lever's variable for which the prediction was made.
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

    `predict` raises Inapplicable if it cannot predict. `variable` gives the value that the lever
    would change, for the back-test: if only that value changes, the prediction can be tested.
    `after` predicts the throughput ratio for a given new value of the variable from the old window.
    """

    name: str
    title: str
    predict: Callable[[WorkloadWindow], Prediction]
    variable: Callable[[WorkloadWindow], float | None] = field(default=lambda _window: None)
    after: Callable[[WorkloadWindow, WorkloadWindow], Interval] | None = None
    # For levers that share a variable: whether a change of it belongs to this lever.
    concerns: Callable[[WorkloadWindow, WorkloadWindow], bool] = field(
        default=lambda _before, _now: True
    )
    # The relative move of the variable that counts as a change.
    least_change: float = 0.15
