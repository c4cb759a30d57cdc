"""Lower precision: weights in fp8 or fp4, and the KV cache in fp8.

Fewer bytes per pass, faster products where the silicon supports them, and room for more requests.
"""

from dataclasses import replace

from exporter.advice.prediction import (
    Inapplicable,
    Interval,
    Lever,
    Prediction,
    WorkloadWindow,
    cache_is_full,
    cache_room,
    outcome,
    percent,
)
from exporter.advice.step import (
    Change,
    Step,
    reachable_flops,
    slowest,
    step_of,
    throughput_ratio,
    with_batch,
)
from exporter.inference.models import ModelDescription, WeightBytes
from exporter.inference.models.cost import stored_weight_bytes


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


def _predict_weights(
    window: WorkloadWindow, precision: str, value_bytes: float, action: str
) -> Prediction:
    """The prediction for linear layers in `precision`; `value_bytes` per weight include scales."""
    today = step_of(window)
    model = today.model
    lower = with_weights(model, value_bytes, precision)
    if stored_weight_bytes(lower) > 0.95 * stored_weight_bytes(model):
        raise Inapplicable(f"the weights are already stored in {precision} or less")
    capacity = _with_lower_weights(window, today, lower)
    parts = today.parts()
    before, after = today.weight_bytes, replace(today, model=lower).weight_bytes
    evidence = (
        f"a pass reads {before / 1e9:.1f} GB of weights at batch {today.decode_tokens:.0f} "
        f"({parts['weights'] / today.seconds:.0%} of the time), in {precision} "
        f"{after / 1e9:.1f} GB: {percent(capacity)}"
    )
    lever = f"weights_{precision}"
    return outcome(window, lever, capacity, evidence=evidence, action=action, target=value_bytes)


def _with_lower_weights(window: WorkloadWindow, today: Step, lower: ModelDescription) -> Interval:
    """Throughput with other weights, and the batch that the freed memory allows.

    On a processor only for passes of one request: llama.cpp's q8_0 kernels multiply request by
    request, so that two in a pass took 2.5 times as long as in bf16 (benchmarks/levers/engine.py).
    """
    if today.on_cpu and today.tokens > _ONE_REQUEST:
        raise Inapplicable(
            "several requests share a pass: on a processor, the kernel of the format decides whether "
            "they share one read of the weights"
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


def _weight_value_bytes(window: WorkloadWindow) -> float | None:
    """Bytes per weight of the linear layers; for a mixture of experts, of the experts."""
    model = window.description
    if model is None:
        return None
    mixture = any(group.mixture for group in model.layers)
    return model.weights.experts if mixture else model.weights.dense


def _reaches_four_bits(before: WorkloadWindow, now: WorkloadWindow) -> bool:
    """Whether the weights of either window take less than six bits: then the change is to fp4."""
    return any((_weight_value_bytes(each) or 2.0) < 6 / 8 for each in (before, now))


def _after_weights(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    """Throughput ratio for the weights of the later window."""
    if now.description is None:
        raise Inapplicable("the model is not described, so its FLOPs and bytes are not known")
    return _with_lower_weights(before, step_of(before), now.description)


WEIGHTS_FP8 = Lever(
    name="weights_fp8",
    title="Weights in fp8",
    predict=lambda window: _predict_weights(
        window,
        "fp8",
        1.0,
        "serve an fp8 checkpoint, or quantize at start (vLLM: --quantization fp8)",
    ),
    variable=_weight_value_bytes,
    after=_after_weights,
    concerns=lambda before, now: not _reaches_four_bits(before, now),
)


# Four bits per weight, and an 8-bit scale per 16 weights.
_FP4_BYTES = (4 + 8 / 16) / 8
WEIGHTS_FP4 = Lever(
    name="weights_fp4",
    title="Weights in fp4",
    predict=lambda window: _predict_weights(
        window,
        "fp4",
        _FP4_BYTES,
        "serve an NVFP4 checkpoint; compare its answers with today's first",
    ),
    variable=_weight_value_bytes,
    after=_after_weights,
    concerns=_reaches_four_bits,
)


# Attention kernels expand fp8 to bf16, which costs up to a tenth of the saved time.
_EXPANSION = (0.0, 0.15)


def _predict_cache(window: WorkloadWindow) -> Prediction:
    today = step_of(window)
    gpu = slowest(window)
    if "fp8" not in gpu.peaks.flops:
        raise Inapplicable(f"{gpu.title} ({gpu.name}) has no fp8 arithmetic")
    if today.model.cache_value_bytes <= 1.0:
        raise Inapplicable("the KV cache already uses 8 bits or less")
    capacity = _with_cache(window, today, 1.0)
    share = today.cache_bytes / today.rates.bytes_per_second / today.seconds
    full = ", and the full cache limits the batch" if cache_is_full(window) else ""
    evidence = (
        f"a pass reads {today.cache_bytes / 1e9:.1f} GB of KV cache at a context of "
        f"{today.context:.0f} tokens ({share:.0%} of the time){full}: {percent(capacity)}"
    )
    action = "store the KV cache in fp8 (vLLM, SGLang: --kv-cache-dtype fp8_e4m3 or fp8_e5m2)"
    return outcome(window, "kv_cache_fp8", capacity, evidence=evidence, action=action, target=1.0)


def _with_cache(window: WorkloadWindow, today: Step, value_bytes: float) -> Interval:
    factor = today.model.cache_value_bytes / value_bytes
    changes = []
    for lost in _EXPANSION:
        effective = value_bytes + lost * (today.model.cache_value_bytes - value_bytes)
        model = replace(today.model, cache_value_bytes=effective)
        changes += [
            Change(with_batch(replace(today, model=model), batch), produced=batch)
            for batch in cache_room(window, factor)
        ]
    return throughput_ratio(today, changes)


def _after_cache(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    if now.description is None:
        raise Inapplicable("the model is not described, so its FLOPs and bytes are not known")
    return _with_cache(before, step_of(before), now.description.cache_value_bytes)


KV_CACHE_FP8 = Lever(
    name="kv_cache_fp8",
    title="KV cache in fp8",
    predict=_predict_cache,
    variable=lambda w: None if w.description is None else w.description.cache_value_bytes,
    after=_after_cache,
)
