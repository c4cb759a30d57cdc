"""Weights in a lower precision: fewer bytes per pass, faster products where supported."""

from dataclasses import replace

from exporter.advice.demand import cache_room, outcome, percent, with_batch
from exporter.advice.prediction import Inapplicable, Interval, Prediction
from exporter.advice.step import (
    Change,
    Step,
    reachable_flops,
    slowest,
    step_of,
    throughput_ratio,
)
from exporter.advice.window import WorkloadWindow
from exporter.inference.models.description import ModelDescription, WeightBytes
from exporter.inference.models.memory import stored_weight_bytes


# The share of the doubled rate that kernels of the lower precision reach: relative to their peaks,
# fp8 GEMMs reach 0.88 to 0.98 of what bf16 GEMMs reach on H100 to B300 (mamf-finder).
_KERNEL_SHARE = (0.85, 1.0)
# Activations are quantized before each product: an extra pass over them.
_QUANTIZATION = (1.0, 1.03)
_ONE_REQUEST = 1.3


def with_weights(model: ModelDescription, value_bytes: float, precision: str) -> ModelDescription:
    """The model with its linear layers stored and multiplied in `precision`.

    Embedding, output head, router and norms are unchanged: quantizers leave them out.
    """
    weights = model.weights
    lower = WeightBytes(
        attention=min(weights.attention, value_bytes),
        dense=min(weights.dense, value_bytes),
        experts=min(weights.experts, value_bytes),
        shared_experts=min(weights.shared_experts, value_bytes),
        head=weights.head,
        other=weights.other,
    )
    return replace(model, weights=lower, compute_precision=precision)


def predict_weights(
    window: WorkloadWindow, lever: str, precision: str, value_bytes: float, action: str
) -> Prediction:
    """The prediction for linear layers in `precision`; `value_bytes` per weight include scales."""
    today = step_of(window)
    model = today.model
    lower = with_weights(model, value_bytes, precision)
    if stored_weight_bytes(lower) > 0.95 * stored_weight_bytes(model):
        raise Inapplicable(f"the weights are stored in {precision} or less already")
    capacity = capacity_with(window, today, lower)
    parts = today.parts()
    before, after = today.weight_bytes, replace(today, model=lower).weight_bytes
    evidence = (
        f"a pass reads {before / 1e9:.1f} GB of weights at batch {today.decode_tokens:.0f} "
        f"({parts['weights'] / today.seconds:.0%} of the time); {precision} leaves "
        f"{after / 1e9:.1f} GB: {percent(capacity)}"
    )
    return outcome(window, lever, capacity, evidence=evidence, action=action, target=value_bytes)


def capacity_with(window: WorkloadWindow, today: Step, lower: ModelDescription) -> Interval:
    """Throughput with other weights, and the batch that the freed memory allows.

    On a processor only for passes of one request: llama.cpp's q8_0 kernels multiply request by
    request, so that two in a pass took 2.5 times as long as in bf16 (benchmarks/levers/engine.py).
    """
    if today.on_cpu and today.tokens > _ONE_REQUEST:
        raise Inapplicable(
            "several requests share a pass on a processor, and it depends on the kernel of the "
            "format whether they share the reading of the weights"
        )
    gpu = slowest(window)
    rate = reachable_flops(gpu, lower.compute_precision)
    changes = []
    room = cache_room(window, _cache_factor(window, today, lower))
    for share in _KERNEL_SHARE:
        rates = replace(today.rates, linear_flops=max(today.rates.linear_flops, share * rate))
        for factor in room:
            step = with_batch(replace(today, model=lower, rates=rates), factor)
            changes += [Change(step, produced=factor, busy_factor=extra) for extra in _QUANTIZATION]
    return throughput_ratio(today, changes)


def _cache_factor(window: WorkloadWindow, today: Step, lower: ModelDescription) -> float:
    """The growth factor of the KV cache if it gets the freed weight memory."""
    usage, running = window.cache_usage_ratio, window.running_requests
    if not usage or not running:
        return 1.0
    cache = running * today.cache_bytes_per_decode / usage
    freed = stored_weight_bytes(today.model) - stored_weight_bytes(lower)
    return 1.0 + freed / today.tensor_parallel / cache if cache > 0 else 1.0


def weight_value_bytes(window: WorkloadWindow) -> float | None:
    """Bytes per weight of the linear layers; for a mixture of experts, of the experts."""
    model = window.description
    if model is None:
        return None
    mixture = any(group.mixture for group in model.layers)
    return model.weights.experts if mixture else model.weights.dense


def reaches_four_bits(before: WorkloadWindow, now: WorkloadWindow) -> bool:
    """Whether the weights of either window take less than six bits: then the change is to fp4."""
    return any((weight_value_bytes(each) or 2.0) < 6 / 8 for each in (before, now))


def after_weights(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    """Throughput ratio for the weights of the later window."""
    if now.description is None:
        raise Inapplicable("the model is not described, so its bytes and FLOPs are not known")
    return capacity_with(before, step_of(before), now.description)
