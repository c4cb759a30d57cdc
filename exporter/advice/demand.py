"""The effect of demand: more capacity raises throughput only if requests wait."""

from dataclasses import replace

from exporter.advice.prediction import Inapplicable, Interval, Prediction
from exporter.advice.step import Step
from exporter.advice.window import WorkloadWindow


# A queue that is empty for most of the window is not unmet demand.
LEAST_WAITING = 0.5
# From this usage on, requests wait for room in the KV cache rather than for a place in the batch.
FULL_CACHE = 0.88
# Engines reserve some room for the growth of running requests.
USABLE_CACHE = 0.95


def waits(window: WorkloadWindow) -> bool:
    """Whether requests waited during the window. Raises Inapplicable if that is not known."""
    if window.waiting_requests is None:
        raise Inapplicable("the engine does not tell how many requests wait")
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

    While requests wait, capacity becomes throughput and the cost per token falls with it. If none
    wait, throughput is set by the clients and does not change; the cost falls only if the freed GPU
    time is given to other work, hence an upper end of 1.
    """
    if waits(window):
        cost = Interval(1.0 / capacity.high, 1.0 / capacity.low)
        return Prediction(lever, capacity, cost, capacity, evidence, action, target)
    evidence += "; nobody waits, so this frees capacity and adds no throughput"
    cost = Interval(min(1.0, 1.0 / capacity.high), max(1.0, 1.0 / capacity.low))
    return Prediction(lever, Interval(1.0, 1.0), cost, capacity, evidence, action, target)


def percent(interval: Interval) -> str:
    """The interval as readable text: `+38 to +52 %`."""
    return f"{100 * (interval.low - 1):+.0f} to {100 * (interval.high - 1):+.0f} %"
