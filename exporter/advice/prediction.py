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
    """One option. Declared in `levers/`.

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


# A queue that is empty for most of the window is not unmet demand.
LEAST_WAITING = 0.5
# From this usage on, requests wait for room in the KV cache rather than for a place in the batch.
FULL_CACHE = 0.88
# Engines reserve some room for the growth of running requests.
USABLE_CACHE = 0.95


def waits(window: WorkloadWindow) -> bool:
    """Whether requests waited during the window. Raises Inapplicable if that is not known."""
    if window.waiting_requests is None:
        raise Inapplicable("the engine does not report how many requests wait")
    return window.waiting_requests >= LEAST_WAITING


def cache_is_full(window: WorkloadWindow) -> bool:
    """Whether the KV cache limits the batch."""
    usage = window.cache_usage_ratio
    return waits(window) and usage is not None and usage >= FULL_CACHE


def cache_room(window: WorkloadWindow, factor: float) -> Interval:
    """The growth of the running requests if the cache holds `factor` times as many tokens.

    1 unless the cache limits the batch now; never more than the waiting requests allow. The lower
    end allows for a batch limit that the exporter does not see.
    """
    if not cache_is_full(window) or not window.running_requests:
        return Interval(1.0, 1.0)
    running = window.running_requests
    most = (running + (window.waiting_requests or 0.0)) / running
    high = max(1.0, min(factor, most))
    return Interval(1.0 + 0.9 * (high - 1.0), high)


def outcome(
    window: WorkloadWindow,
    lever: str,
    capacity: Interval,
    *,
    evidence: str,
    action: str,
    target: float | None = None,
) -> Prediction:
    """The prediction for a lever that changes what the same GPUs can deliver.

    While requests wait, capacity becomes throughput and the cost per token falls with it. If none
    wait, throughput is set by the clients and does not change; the cost falls only if the freed GPU
    time is given to other work, hence an upper end of 1.
    """
    if waits(window):
        cost = Interval(1.0 / capacity.high, 1.0 / capacity.low)
        return Prediction(lever, capacity, cost, capacity, evidence, action, target)
    evidence += "; no requests wait, so this frees capacity but adds no throughput"
    cost = Interval(min(1.0, 1.0 / capacity.high), max(1.0, 1.0 / capacity.low))
    return Prediction(lever, Interval(1.0, 1.0), cost, capacity, evidence, action, target)


def percent(interval: Interval) -> str:
    """The interval as readable text: `+38 to +52 %`."""
    return f"{100 * (interval.low - 1):+.0f} to {100 * (interval.high - 1):+.0f} %"
