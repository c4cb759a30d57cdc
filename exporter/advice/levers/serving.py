"""How the engine serves: its batch, prefix cache, gaps between kernels, replicas, tensor-parallel size."""

import math
from dataclasses import replace

from exporter.advice.prediction import (
    FULL_CACHE,
    USABLE_CACHE,
    Inapplicable,
    Interval,
    Lever,
    Prediction,
    WorkloadWindow,
    outcome,
    percent,
    waits,
)
from exporter.advice.step import (
    Change,
    Step,
    margin,
    slowest,
    step_of,
    throughput_ratio,
    with_batch,
)
from exporter.inference.models.cost import stored_weight_bytes


# Doubling the batch is one cautious step for an operator; latency rises with it.
_LARGEST_FACTOR = 2.0
# The default limit of tokens per pass in engines is 2048 or more: passes that are nearly that full
# have no room for more requests.
_PREFILL_BOUND_TOKENS = 1200.0
# The new batch size may suit the kernels' tiles better or worse.
_OTHERWISE = 0.02


def _predict_larger_batch(window: WorkloadWindow) -> Prediction:
    running = window.running_requests
    if not running or running < 1:
        raise Inapplicable("the number of running requests is not known")
    if not waits(window):
        raise Inapplicable("no requests wait: the batch already covers the demand")
    usage = window.cache_usage_ratio
    if usage is None:
        raise Inapplicable("the engine does not report its KV cache usage")
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
            f"a pass computes {today.prefill_tokens:.0f} prompt tokens: prefill limits the batch, "
            "not the limit on requests"
        )
    capacity = _with_larger_batch(today, target / running)
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


def _with_larger_batch(today: Step, factor: float) -> Interval:
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


def _after_larger_batch(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    if not before.running_requests or not now.running_requests:
        raise Inapplicable("the number of running requests is not known")
    return _with_larger_batch(step_of(before), now.running_requests / before.running_requests)


LARGER_BATCH = Lever(
    name="larger_batch",
    title="Larger batch",
    predict=_predict_larger_batch,
    variable=lambda window: window.running_requests,
    after=_after_larger_batch,
)


_LEAST_HIT_LOSS = 0.05


def _predict_prefix_cache(window: WorkloadWindow) -> Prediction:
    hits, best = window.cache_hit_ratio, window.best_cache_hit_ratio
    if hits is None:
        raise Inapplicable("the engine does not report cache hits")
    if best is None:
        raise Inapplicable("there is no earlier hit rate to compare with yet")
    if best - hits < _LEAST_HIT_LOSS:
        raise Inapplicable(f"the hit rate of {hits:.0%} is close to its best of the last week")
    today = step_of(window)
    capacity = _with_hits(today, hits, Interval(best - 0.1 * (best - hits), best))
    evidence = (
        f"{hits:.0%} of the prompt tokens come from the prefix cache, {best:.0%} at its best; "
        f"a pass computes {today.prefill_tokens:.0f} prompt tokens and "
        f"{today.decode_tokens:.0f} decoded ones: {percent(capacity)} at the best rate"
    )
    action = (
        "find out what changed: prompt templates that vary near the start, routing that no longer "
        "keeps a session on one replica, a smaller KV cache, --no-enable-prefix-caching"
    )
    return outcome(
        window, "restore_prefix_cache", capacity, evidence=evidence, action=action, target=best
    )


def _with_hits(today: Step, hits: float, wanted: Interval) -> Interval:
    changes = []
    for best in wanted:
        left = (1.0 - best) / (1.0 - hits) if hits < 1 else 1.0
        computed = today.prefill_tokens * left
        moved = (today.prefill_tokens - computed) / today.prompts if today.prompts else 0.0
        step = replace(
            today, prefill_tokens=computed, cached_per_prompt=today.cached_per_prompt + moved
        )
        changes.append(Change(step))
    return throughput_ratio(today, changes)


def _after_prefix_cache(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    hits, reached = before.cache_hit_ratio, now.cache_hit_ratio
    if hits is None or reached is None:
        raise Inapplicable("the engine does not report cache hits")
    return _with_hits(step_of(before), hits, Interval(reached, reached))


RESTORE_PREFIX_CACHE = Lever(
    name="restore_prefix_cache",
    title="Restore the prefix cache",
    predict=_predict_prefix_cache,
    # The miss ratio: a hit ratio change from 0.1 to 0.2 matters little, one from 0.8 to 0.9 much.
    variable=lambda w: None if w.cache_hit_ratio is None else 1.0 - w.cache_hit_ratio,
    after=_after_prefix_cache,
)


# Share of the gaps that remains with CUDA graphs and scheduling ahead of the pass.
_REMAINING_GAPS = (0.1, 0.4)
_LEAST_GAP_SHARE = 0.03


def _predict_launch_gaps(window: WorkloadWindow) -> Prediction:
    if not waits(window):
        raise Inapplicable("no requests wait: gaps cannot be distinguished from a lack of requests")
    today = step_of(window)
    share = today.gap_seconds / today.seconds
    if share < _LEAST_GAP_SHARE:
        raise Inapplicable(f"kernels run for {1 - share:.0%} of the time")
    capacity = throughput_ratio(today, [Change(today, gap_factor=left) for left in _REMAINING_GAPS])
    evidence = (
        f"requests wait, but no kernel runs for {share:.0%} of the time "
        f"({1e3 * today.gap_seconds:.1f} ms of each {1e3 * today.seconds:.1f} ms pass): "
        f"{percent(capacity)} with most of the gaps removed"
    )
    action = (
        "enable CUDA graphs (vLLM: no --enforce-eager) and asynchronous scheduling "
        "(vLLM: --async-scheduling), and give the engine's process its own core"
    )
    return outcome(window, "fewer_launch_gaps", capacity, evidence=evidence, action=action)


FEWER_LAUNCH_GAPS = Lever(
    name="fewer_launch_gaps", title="Fewer launch gaps", predict=_predict_launch_gaps
)


# The remaining replicas must be able to serve this much more than today's mean.
_HEADROOM = 1.3


def _predict_release(window: WorkloadWindow) -> Prediction:
    if waits(window):
        raise Inapplicable("requests wait: no capacity is idle")
    if window.replicas < 2:
        raise Inapplicable("this is the only engine of the model on this host")
    usage, running = window.cache_usage_ratio, window.running_requests
    if not running or not usage:
        raise Inapplicable("running requests or KV cache usage are not known, or no requests run")
    today = step_of(window)
    largest = USABLE_CACHE / usage
    reach = (
        throughput_ratio(today, [Change(with_batch(today, largest), produced=largest)]).low
        / _HEADROOM
    )
    needed = min(window.replicas, max(1, -int(-window.replicas // max(1.0, reach))))
    released = window.replicas - needed
    if released < 1:
        raise Inapplicable("every replica is needed for the current load with 30 % headroom")
    cost = needed / window.replicas
    evidence = (
        f"no requests wait; each of {window.replicas} replicas runs {running:.1f} requests and uses "
        f"{usage:.0%} of its KV cache; {needed} can serve the same load with 30 % headroom"
    )
    most = math.ceil(_HEADROOM * running * window.replicas / needed)
    action = (
        f"stop {released} of {window.replicas} replicas, or send them other traffic; the rest must "
        f"allow {most} concurrent requests (vLLM: --max-num-seqs)"
    )
    one = Interval(1.0, 1.0)
    return Prediction(
        "release_idle", one, Interval(cost, cost), one, evidence, action, float(needed)
    )


RELEASE_IDLE = Lever(name="release_idle", title="Release idle capacity", predict=_predict_release)


# Another size of the tensor-parallel group: fewer GPUs send less, more GPUs share the weights.
# Smaller: two engines on half of the GPUs each. Larger: two engines of this host become one.
# Memory that engines reserve for activations and graphs.
_USABLE_MEMORY = 0.9
# Kernels of another shape reach a different share of the roofline.
_OTHER_KERNELS = 0.05
# One all-reduce of few tokens over NVLink: from 4 us with two GPUs to about 20 us with eight
# (NCCL's published all_reduce_perf results on DGX A100 and H100).
_LATENCY_SECONDS = (4e-6, 20e-6)
# Partial sums are exchanged in 16 bits, after attention and after the feed-forward part.
_EXCHANGED_BYTES, _EXCHANGES_PER_LAYER = 2.0, 2
_LARGEST_GROUP = 8


def _predict_tensor_parallel(window: WorkloadWindow) -> Prediction:
    """The better of the two sizes next to today's, as far as they can be predicted."""
    group = window.tensor_parallel
    if window.gpu_count != group:
        raise Inapplicable(
            "the engine combines tensor parallelism with another kind of parallelism"
        )
    found: list[Prediction] = []
    reasons: list[str] = []
    for predict in (_smaller_group, _larger_group):
        try:
            found.append(predict(window, step_of(window), group))
        except Inapplicable as reason:
            reasons.append(str(reason))
    if not found:
        raise Inapplicable("; ".join(dict.fromkeys(reasons)))
    return max(found, key=lambda each: each.capacity.middle)


def _smaller_group(window: WorkloadWindow, today: Step, group: int) -> Prediction:
    if group < 2 or group % 2:
        raise Inapplicable(
            "the model runs on one GPU" if group < 2 else f"{group} GPUs cannot be split in half"
        )
    if not today.link_seconds_per_token:
        raise Inapplicable("the traffic between the GPUs is not known")
    _check_memory(window, today, group // 2)
    half = with_batch(_of_size(today, group, group // 2), 0.5)
    capacity = margin(
        throughput_ratio(
            today,
            [Change(half, excess_factor=factor) for factor in _shorter_hops(group, group // 2)],
        ),
        _OTHER_KERNELS,
    )
    links = today.link_seconds_per_token * today.tokens / today.seconds
    evidence = (
        f"at least {links:.0%} of the time is spent on the links between {group} GPUs; two engines on "
        f"{group // 2} each send less and read the weights twice: {percent(capacity)}"
    )
    action = f"serve two replicas with --tensor-parallel-size {group // 2}"
    target = float(group // 2)
    return outcome(
        window, "tensor_parallel", capacity, evidence=evidence, action=action, target=target
    )


def _larger_group(window: WorkloadWindow, today: Step, group: int) -> Prediction:
    if window.replicas < 2:
        raise Inapplicable("a larger group needs a second engine of the model on this host")
    if 2 * group > _LARGEST_GROUP:
        raise Inapplicable(f"a group of {2 * group} GPUs does not fit on one host")
    whole = with_batch(_of_size(today, group, 2 * group), 2.0)
    capacity = margin(
        throughput_ratio(today, _with_larger_group(whole, group, 2 * group, produced=1.0)),
        _OTHER_KERNELS,
    )
    share = today.parts()["weights"] / today.seconds
    evidence = (
        f"two engines read the weights once each ({share:.0%} of the time); one on {2 * group} GPUs "
        f"reads them once for both and exchanges partial sums over the links: {percent(capacity)}"
    )
    action = f"serve one engine with --tensor-parallel-size {2 * group} instead of two"
    target = float(2 * group)
    return outcome(
        window, "tensor_parallel", capacity, evidence=evidence, action=action, target=target
    )


def _check_memory(window: WorkloadWindow, today: Step, group: int) -> None:
    """Raise Inapplicable unless weights and today's KV cache fit on a group of this size."""
    size, usage = slowest(window).memory_size_bytes, window.cache_usage_ratio
    if size is None or usage is None:
        raise Inapplicable("the memory used by weights and KV cache is not known")
    running = window.running_requests or today.decode_tokens
    needed = stored_weight_bytes(today.model) / group + running * today.cache_bytes_per_decode
    if needed > _USABLE_MEMORY * size:
        raise Inapplicable(
            f"on {group} GPUs, weights and today's KV cache need {needed / 1e9:.0f} GB of "
            f"each GPU's {size / 1e9:.0f} GB"
        )


def _of_size(today: Step, group: int, size: int) -> Step:
    """The step on a group of another size. In a ring each GPU sends 2 (n - 1) / n of the data."""
    volume = ((size - 1) / size) / ((group - 1) / group) if group > 1 else 0.0
    link = today.link_seconds_per_token * volume
    return replace(today, tensor_parallel=size, link_seconds_per_token=link)


def _shorter_hops(group: int, size: int) -> tuple[float, ...]:
    """Factors on the time above the roofline: unchanged, or shorter with the hops' latency."""
    if size >= group:
        return (1.0,)
    return (1.0, 0.4 if size == 1 else 0.6)


def _with_larger_group(step: Step, group: int, size: int, *, produced: float) -> list[Change]:
    """The changes with a larger group: a different link volume, and more or slower exchanges."""
    exchanges = _EXCHANGES_PER_LAYER * step.model.layer_count
    low, high = _LATENCY_SECONDS
    if group > 1:
        if not step.link_seconds_per_token:
            raise Inapplicable("the traffic between the GPUs is not known")
        latencies: tuple[float, ...] = (0.0, high - low)
        return [
            Change(step, produced=produced, added_seconds=exchanges * each) for each in latencies
        ]
    rate = step.rates.link_bytes_per_second
    if rate is None:
        raise Inapplicable(
            "neither a probe nor a data sheet gives the speed of the links between the GPUs"
        )
    sent = exchanges * _EXCHANGED_BYTES * step.model.hidden_size * 2.0 * (size - 1) / size
    step = replace(step, link_seconds_per_token=sent / rate)
    return [
        Change(step, produced=produced, added_seconds=exchanges * latency)
        for latency in _LATENCY_SECONDS
    ]


def _after_tensor_parallel(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    """One engine on a different number of GPUs, with its batch there."""
    group, size = before.tensor_parallel, now.tensor_parallel
    if now.gpu_count != size or not before.running_requests or not now.running_requests:
        raise Inapplicable("the number of running requests or the kind of parallelism is not known")
    today = step_of(before)
    batch = now.running_requests / before.running_requests
    step = with_batch(_of_size(today, group, size), batch)
    if size < group:
        if group > 1 and not today.link_seconds_per_token:
            raise Inapplicable("the traffic between the GPUs is not known")
        changes = [
            Change(step, produced=batch, excess_factor=each) for each in _shorter_hops(group, size)
        ]
    else:
        changes = _with_larger_group(step, group, size, produced=batch)
    return margin(throughput_ratio(today, changes), _OTHER_KERNELS)


TENSOR_PARALLEL = Lever(
    name="tensor_parallel",
    title="Another tensor-parallel size",
    predict=_predict_tensor_parallel,
    variable=lambda window: float(window.tensor_parallel),
    after=_after_tensor_parallel,
)
