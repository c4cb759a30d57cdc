"""The KV cache in fp8: half the bytes of each context, and room for twice as many requests."""

from dataclasses import replace

from exporter.advice.demand import cache_is_full, cache_room, outcome, percent, with_batch
from exporter.advice.prediction import Inapplicable, Interval, Lever, Prediction
from exporter.advice.step import Change, Step, slowest, step_of, throughput_ratio
from exporter.advice.window import WorkloadWindow


# Attention kernels expand fp8 to bf16, which costs up to a tenth of the saved time.
_EXPANSION = (0.0, 0.15)


def _predict(window: WorkloadWindow) -> Prediction:
    today = step_of(window)
    gpu = slowest(window)
    if "fp8" not in gpu.peaks.flops:
        raise Inapplicable(f"{gpu.title} ({gpu.name}) has no fp8 arithmetic")
    if today.model.cache_value_bytes <= 1.0:
        raise Inapplicable("the KV cache is stored in 8 bits or less already")
    capacity = _with_cache(window, today, 1.0)
    share = today.cache_bytes / today.rates.bytes_per_second / today.seconds
    full = ", and the full cache holds the batch down" if cache_is_full(window) else ""
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


def _after(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    if now.description is None:
        raise Inapplicable("the model is not described, so its bytes and FLOPs are not known")
    return _with_cache(before, step_of(before), now.description.cache_value_bytes)


LEVER = Lever(
    name="kv_cache_fp8",
    title="KV cache in fp8",
    predict=_predict,
    variable=lambda w: None if w.description is None else w.description.cache_value_bytes,
    after=_after,
)
