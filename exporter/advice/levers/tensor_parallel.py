"""A smaller tensor-parallel group: two engines on half of the GPUs each, with less on the links."""

from dataclasses import replace

from exporter.advice.demand import outcome, percent
from exporter.advice.prediction import Inapplicable, Lever, Prediction
from exporter.advice.step import Change, Step, margin, slowest, step_of, throughput_ratio
from exporter.advice.window import WorkloadWindow
from exporter.inference.models.memory import stored_weight_bytes


# Memory that engines leave to activations and graphs.
_USABLE_MEMORY = 0.9
# Kernels of another shape reach another share of the roofline.
_OTHERWISE = 0.05


def _predict(window: WorkloadWindow) -> Prediction:
    group = window.tensor_parallel
    if group < 2:
        raise Inapplicable("the model runs on one GPU")
    if window.gpu_count != group:
        raise Inapplicable("the engine combines tensor parallelism with another kind")
    today = step_of(window)
    if not today.link_seconds_per_token:
        raise Inapplicable("the traffic between the GPUs is not known")
    gpu = slowest(window)
    size, usage = gpu.memory_size_bytes, window.cache_usage_ratio
    if size is None or usage is None:
        raise Inapplicable("the memory that weights and KV cache take is not known")
    running = window.running_requests or today.decode_tokens
    needed = stored_weight_bytes(today.model) / (group / 2) + running * today.cache_bytes_per_decode
    if needed > _USABLE_MEMORY * size:
        raise Inapplicable(
            f"on {group // 2} GPUs, weights and today's KV cache need {needed / 1e9:.0f} GB of "
            f"each GPU's {size / 1e9:.0f} GB"
        )
    capacity = margin(throughput_ratio(today, _halved(today, group)), _OTHERWISE)
    links = today.link_seconds_per_token * today.tokens / today.seconds
    evidence = (
        f"at least {links:.0%} of the time goes to the links between {group} GPUs; two engines on "
        f"{group // 2} each send less and read the weights twice: {percent(capacity)}"
    )
    action = f"serve two replicas with --tensor-parallel-size {group // 2}"
    return outcome(
        window,
        "tensor_parallel",
        capacity,
        evidence=evidence,
        action=action,
        target=float(group // 2),
    )


def _halved(today: Step, group: int) -> list[Change]:
    """Two groups of half the size with half the requests each.

    A ring all-reduce sends 2 (n - 1) / n of its data per GPU; half the group has half the tokens.
    The latency of each all-reduce, which is part of the excess, falls with the number of hops or
    vanishes with the last of them.
    """
    half = group // 2
    volume = (2 * (half - 1) / half) / (2 * (group - 1) / group)
    step = replace(
        today,
        tensor_parallel=half,
        decode_tokens=today.decode_tokens / 2,
        prefill_tokens=today.prefill_tokens / 2,
        prompts=today.prompts / 2,
        other_bytes=today.other_bytes,
        link_seconds_per_token=today.link_seconds_per_token * volume,
    )
    fewer_hops = 0.4 if half == 1 else 0.6
    return [Change(step, excess_factor=factor) for factor in (1.0, fewer_hops)]


LEVER = Lever(name="tensor_parallel", title="Smaller tensor-parallel groups", predict=_predict)
