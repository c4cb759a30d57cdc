"""What a lever is given, the means of a workload over some minutes, and what it returns.

Nothing is guessed: a value that the exporter could not read is None, and a lever that needs it says
so instead of predicting.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from exporter.accounting.peaks import Peaks
from exporter.inference.models import ModelDescription


@dataclass(frozen=True, slots=True)
class GpuWindow:
    """One GPU of the workload. Activities are shares 0..1 of the window, at its actual clock.

    `clock_ratio` is the mean SM clock over its maximum, `clock_lost_to` the share of the missing
    clock by cause. `dram` is the share of the bandwidth. Probe results are the device's
    present rates in bytes/s and FLOP/s by precision; `fault` is the reason why it needs repair
    first, `shared_with` who else works on it: its time is then not the engine's alone.
    """

    gpu: str
    uuid: str
    name: str
    peaks: Peaks
    clock_ratio: float | None = None
    clock_lost_to: Mapping[str, float] = field(default_factory=dict)
    graphics: float | None = None
    dram: float | None = None
    reachable_bandwidth_bytes_per_second: float | None = None
    reachable_flops: Mapping[str, float] = field(default_factory=dict)
    link_bytes_per_second: float | None = None  # sent by this GPU, mean of the window
    reachable_link_bytes_per_second: float | None = None
    memory_size_bytes: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    power_limit_max_watts: float | None = None
    fault: str | None = None
    shared_with: str | None = None

    @property
    def title(self) -> str:
        """The name for display."""
        return "the processor" if self.gpu.startswith("cpu") else f"GPU {self.gpu}"


@dataclass(frozen=True, slots=True)
class Reference:
    """Medians of the probe results of healthy GPUs of the same product on this host."""

    devices: int
    bandwidth_bytes_per_second: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one GPU-hour."""

    per_gpu_hour: float
    currency: str


@dataclass(frozen=True, slots=True)
class WorkloadWindow:
    """One served model of one engine over `seconds`.

    Counts are totals of the window; `running_requests`, `waiting_requests` and `cache_usage_ratio`
    are means. `gpu_count` counts all GPUs that the engine uses, `gpus` are those visible on this
    host. `replicas` is the number of engines on this host that serve the same model, including this
    one.
    """

    workload: str
    model: str
    seconds: float
    gpus: tuple[GpuWindow, ...]
    gpu_count: int
    tensor_parallel: int = 1
    replicas: int = 1
    description: ModelDescription | None = None
    prefill_tokens: float | None = None
    cached_tokens: float | None = None
    decode_tokens: float | None = None
    prompts: float | None = None
    passes: float | None = None
    running_requests: float | None = None
    waiting_requests: float | None = None
    cache_usage_ratio: float | None = None
    decode_context: float | None = None
    useful_flops: float | None = None  # model FLOP/s, mean of the window
    # The best share of prompt tokens from the prefix cache in the last days.
    best_cache_hit_ratio: float | None = None
    reference: Reference | None = None
    price: Price | None = None

    @property
    def tokens(self) -> float:
        """Tokens produced in the window: the throughput that levers raise."""
        return self.decode_tokens or 0.0

    @property
    def cache_hit_ratio(self) -> float | None:
        """Share of the prompt tokens that came from the prefix cache."""
        if self.cached_tokens is None or self.prefill_tokens is None:
            return None
        total = self.cached_tokens + self.prefill_tokens
        return self.cached_tokens / total if total > 0 else None


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
