"""The size of the tensor-parallel group: fewer GPUs send less, more GPUs share the weights.

Smaller: two engines on half of the GPUs each. Larger: two engines of this host become one.
"""

from dataclasses import replace

from exporter.advice.prediction import Inapplicable, Interval, Lever, Prediction, outcome, percent
from exporter.advice.step import (
    Change,
    Step,
    margin,
    slowest,
    step_of,
    throughput_ratio,
    with_batch,
)
from exporter.advice.window import WorkloadWindow
from exporter.inference.models.cost import stored_weight_bytes


_LEVER = "tensor_parallel"
# Memory that engines reserve for activations and graphs.
_USABLE_MEMORY = 0.9
# Kernels of another shape reach a different share of the roofline.
_OTHERWISE = 0.05
# One all-reduce of few tokens over NVLink: from 4 us with two GPUs to about 20 us with eight
# (NCCL's published all_reduce_perf results on DGX A100 and H100).
_LATENCY_SECONDS = (4e-6, 20e-6)
# Partial sums are exchanged in 16 bits, after attention and after the feed-forward part.
_EXCHANGED_BYTES, _EXCHANGES_PER_LAYER = 2.0, 2
_LARGEST_GROUP = 8


def _predict(window: WorkloadWindow) -> Prediction:
    """The better of the two sizes next to today's, as far as they can be predicted."""
    group = window.tensor_parallel
    if window.gpu_count != group:
        raise Inapplicable(
            "the engine combines tensor parallelism with another kind of parallelism"
        )
    found: list[Prediction] = []
    reasons: list[str] = []
    for predict in (_smaller, _larger):
        try:
            found.append(predict(window, step_of(window), group))
        except Inapplicable as reason:
            reasons.append(str(reason))
    if not found:
        raise Inapplicable("; ".join(dict.fromkeys(reasons)))
    return max(found, key=lambda each: each.capacity.middle)


def _smaller(window: WorkloadWindow, today: Step, group: int) -> Prediction:
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
            today, [Change(half, excess_factor=factor) for factor in _hops(group, group // 2)]
        ),
        _OTHERWISE,
    )
    links = today.link_seconds_per_token * today.tokens / today.seconds
    evidence = (
        f"at least {links:.0%} of the time is spent on the links between {group} GPUs; two engines on "
        f"{group // 2} each send less and read the weights twice: {percent(capacity)}"
    )
    action = f"serve two replicas with --tensor-parallel-size {group // 2}"
    target = float(group // 2)
    return outcome(window, _LEVER, capacity, evidence=evidence, action=action, target=target)


def _larger(window: WorkloadWindow, today: Step, group: int) -> Prediction:
    if window.replicas < 2:
        raise Inapplicable("a larger group needs a second engine of the model on this host")
    if 2 * group > _LARGEST_GROUP:
        raise Inapplicable(f"a group of {2 * group} GPUs does not fit on one host")
    whole = with_batch(_of_size(today, group, 2 * group), 2.0)
    capacity = margin(
        throughput_ratio(today, _grown(whole, group, 2 * group, produced=1.0)), _OTHERWISE
    )
    share = today.parts()["weights"] / today.seconds
    evidence = (
        f"two engines read the weights once each ({share:.0%} of the time); one on {2 * group} GPUs "
        f"reads them once for both and exchanges partial sums over the links: {percent(capacity)}"
    )
    action = f"serve one engine with --tensor-parallel-size {2 * group} instead of two"
    target = float(2 * group)
    return outcome(window, _LEVER, capacity, evidence=evidence, action=action, target=target)


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


def _hops(group: int, size: int) -> tuple[float, ...]:
    """Factors on the time above the roofline: unchanged, or shorter with the hops' latency."""
    if size >= group:
        return (1.0,)
    return (1.0, 0.4 if size == 1 else 0.6)


def _grown(step: Step, group: int, size: int, *, produced: float) -> list[Change]:
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


def _after(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
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
        changes = [Change(step, produced=batch, excess_factor=each) for each in _hops(group, size)]
    else:
        changes = _grown(step, group, size, produced=batch)
    return margin(throughput_ratio(today, changes), _OTHERWISE)


LEVER = Lever(
    name=_LEVER,
    title="Another tensor-parallel size",
    predict=_predict,
    variable=lambda window: float(window.tensor_parallel),
    after=_after,
)
