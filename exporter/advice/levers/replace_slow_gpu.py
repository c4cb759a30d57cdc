"""Replace a slow GPU: one that is slower than its siblings holds back its whole group."""

from dataclasses import replace

from exporter.advice.demand import outcome, percent
from exporter.advice.prediction import Inapplicable, Interval, Lever, Prediction
from exporter.advice.step import Change, slowest, step_of, throughput_ratio
from exporter.advice.window import GpuWindow, Reference, WorkloadWindow


# Healthy GPUs of one product differ by 5 % (mamf-finder) to 8 % (SC'22, arXiv 2208.11035).
_SLOW = 0.93
_FEWEST_SIBLINGS = 3


def _predict(window: WorkloadWindow) -> Prediction:
    reference = window.reference
    if reference is None or reference.devices < _FEWEST_SIBLINGS:
        raise Inapplicable("fewer than three GPUs of this product have probe results to compare")
    today = step_of(window)
    gpu = slowest(window)
    memory, compute = speed_of(gpu, reference)
    if min(memory, compute) >= _SLOW:
        raise Inapplicable("every GPU of this workload is as fast as its siblings")
    rates = replace(
        today.rates,
        bytes_per_second=today.rates.bytes_per_second / memory,
        linear_flops=today.rates.linear_flops / compute,
        attention_flops=today.rates.attention_flops / compute,
    )
    worst = min(memory, compute)
    changes = [Change(replace(today, rates=rates), excess_factor=factor) for factor in (1.0, worst)]
    capacity = throughput_ratio(today, changes)
    evidence = (
        f"{gpu.title} reaches {memory:.0%} of its siblings' memory bandwidth and {compute:.0%} "
        f"of their FLOPS, and {len(window.gpus) - 1} others wait for it: {percent(capacity)}"
    )
    action = f"move the workload off {gpu.title} ({gpu.uuid}) and open a ticket for it"
    return outcome(window, "replace_slow_gpu", capacity, evidence=evidence, action=action)


def speed_of(gpu: GpuWindow, reference: Reference) -> tuple[float, float]:
    """Memory and compute speed over the siblings' medians, at most 1; 1 if not measured."""
    memory = compute = 1.0
    if gpu.reachable_bandwidth_bytes_per_second and reference.bandwidth_bytes_per_second:
        memory = gpu.reachable_bandwidth_bytes_per_second / reference.bandwidth_bytes_per_second
    shares = [
        value / reference.flops[name]
        for name, value in gpu.reachable_flops.items()
        if reference.flops.get(name)
    ]
    if shares:
        compute = min(shares)
    return min(1.0, memory), min(1.0, compute)


def _variable(window: WorkloadWindow) -> float | None:
    """The speed of the slowest GPU, which rises when that GPU is replaced."""
    if window.reference is None:
        return None
    return min((min(speed_of(gpu, window.reference)) for gpu in window.gpus), default=None)


def _after(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    if {gpu.uuid for gpu in before.gpus} == {gpu.uuid for gpu in now.gpus}:
        raise Inapplicable("the GPUs are the same as before")
    return _predict(before).capacity


LEVER = Lever(
    name="replace_slow_gpu",
    title="Replace a slow GPU",
    predict=_predict,
    variable=_variable,
    after=_after,
    least_change=0.05,
)
