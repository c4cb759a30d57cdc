"""What demand makes of capacity: throughput rises only if somebody waits for it."""

from dataclasses import replace

from exporter.advice.prediction import Inapplicable, Interval, Prediction
from exporter.advice.step import Step
from exporter.advice.window import WorkloadWindow


# A queue that is empty for most of the window is no demand.
LEAST_WAITING = 0.5
# From this usage on, requests wait for room in the KV cache rather than for a place in the batch.
FULL_CACHE = 0.88
# Engines keep some room for the growth of running requests.
USABLE_CACHE = 0.95


def waits(window: WorkloadWindow) -> bool:
    """Whether requests waited through the window. Raises Inapplicable if the engine does not tell."""
    if window.waiting_requests is None:
        raise Inapplicable("the engine does not tell how many requests wait")
    return window.waiting_requests >= LEAST_WAITING


def cache_is_full(window: WorkloadWindow) -> bool:
    """Whether the batch is held down by the KV cache."""
    usage = window.cache_usage_ratio
    return waits(window) and usage is not None and usage >= FULL_CACHE


def cache_room(window: WorkloadWindow, factor: float) -> Interval:
    """How many times today's requests run once the cache holds `factor` times as many tokens.

    1 unless the cache holds the batch down now; never more than those that wait. The lower end
    allows for a limit on the batch that the exporter does not see.
    """
    if not cache_is_full(window) or not window.running_requests:
        return Interval(1.0, 1.0)
    running = window.running_requests
    most = (running + (window.waiting_requests or 0.0)) / running
    high = max(1.0, min(factor, most))
    return Interval(1.0 + 0.9 * (high - 1.0), high)


def with_batch(step: Step, factor: float) -> Step:
    """The step with `factor` times the running requests, and the prompts that feed them."""
    return replace(
        step,
        decode_tokens=step.decode_tokens * factor,
        prefill_tokens=step.prefill_tokens * factor,
        prompts=step.prompts * factor,
    )


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

    While requests wait, capacity becomes throughput and the cost per token falls with it. If nobody
    waits, the throughput is what the clients ask for and stays; the cost falls only as far as GPUs
    are given to others for the time that becomes free, hence an upper end of 1.
    """
    if waits(window):
        cost = Interval(1.0 / capacity.high, 1.0 / capacity.low)
        return Prediction(lever, capacity, cost, capacity, evidence, action, target)
    evidence += "; nobody waits, so this frees capacity and adds no throughput"
    cost = Interval(min(1.0, 1.0 / capacity.high), max(1.0, 1.0 / capacity.low))
    return Prediction(lever, Interval(1.0, 1.0), cost, capacity, evidence, action, target)


def percent(interval: Interval) -> str:
    """The interval as people read it: `+38 to +52 %`."""
    return f"{100 * (interval.low - 1):+.0f} to {100 * (interval.high - 1):+.0f} %"
