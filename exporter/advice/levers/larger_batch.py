"""A larger batch: the weights are read once per pass, however many requests share it."""

from exporter.advice.demand import FULL_CACHE, USABLE_CACHE, outcome, percent, waits, with_batch
from exporter.advice.prediction import Inapplicable, Interval, Lever, Prediction
from exporter.advice.step import Change, Step, margin, step_of, throughput_ratio
from exporter.advice.window import WorkloadWindow


# Doubling the batch is one cautious step for an operator; latency rises with it.
_LARGEST_FACTOR = 2.0
# The default limit of tokens per pass in engines is 2048 or more: passes that are nearly that full
# have no room for more requests.
_PREFILL_BOUND_TOKENS = 1200.0
# The new batch size may suit the kernels' tiles better or worse.
_OTHERWISE = 0.02


def _predict(window: WorkloadWindow) -> Prediction:
    running = window.running_requests
    if not running or running < 1:
        raise Inapplicable("the number of running requests is not known")
    if not waits(window):
        raise Inapplicable("nobody waits: the batch is as large as the demand")
    usage = window.cache_usage_ratio
    if usage is None:
        raise Inapplicable("the engine does not tell how full its KV cache is")
    if usage >= FULL_CACHE:
        raise Inapplicable(
            f"the KV cache is {usage:.0%} full: a larger limit would only cause preemptions"
        )
    waiting = window.waiting_requests or 0.0
    target = min(_LARGEST_FACTOR * running, running + waiting)
    if usage > 0:
        target = min(target, USABLE_CACHE * running / usage)
    target = float(int(target))
    if target < running + 1 or target < 1.1 * running:
        raise Inapplicable("too few requests wait, or too little KV cache is free")
    today = step_of(window)
    if (
        today.mixed_share * today.tokens > _PREFILL_BOUND_TOKENS
        and running < today.prefill_tokens / 4
    ):
        raise Inapplicable(
            f"a pass computes {today.prefill_tokens:.0f} prompt tokens: prefill holds the batch "
            "down, not the limit on requests"
        )
    capacity = _grown(today, target / running)
    parts = today.parts()
    evidence = (
        f"a pass reads {today.weight_bytes / 1e9:.1f} GB of weights for {running:.0f} requests "
        f"({parts['weights'] / today.seconds:.0%} of the time); {waiting:.0f} wait and the KV cache "
        f"is {usage:.0%} full: {percent(capacity)} with {target:.0f}"
    )
    action = f"raise the batch limit (vLLM: --max-num-seqs {target:.0f})"
    return outcome(
        window, "larger_batch", capacity, evidence=evidence, action=action, target=target
    )


def _grown(today: Step, factor: float) -> Interval:
    """Throughput with `factor` times the batch.

    The host's work between passes may or may not grow with the batch.
    """
    step = with_batch(today, factor)
    slower_host = 1.0 + 0.5 * max(0.0, factor - 1.0)
    changes = [
        Change(step, produced=factor, gap_factor=gap, excess_factor=excess)
        for gap in (1.0, slower_host)
        for excess in (1.0, 1.0 + 0.2 * (factor - 1.0))
    ]
    return margin(throughput_ratio(today, changes), _OTHERWISE)


def _after(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    if not before.running_requests or not now.running_requests:
        raise Inapplicable("the number of running requests is not known")
    return _grown(step_of(before), now.running_requests / before.running_requests)


LEVER = Lever(
    name="larger_batch",
    title="Larger batch",
    predict=_predict,
    variable=lambda window: window.running_requests,
    after=_after,
)
