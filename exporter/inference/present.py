"""Presents a model's records: ratios to the peaks of its GPUs, and the served precision."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exporter.inference.account import ModelTotals
from exporter.inference.config import WorkloadConfig
from exporter.inference.models.description import ModelDescription
from exporter.inference.models.memory import stored_weight_bytes
from exporter.inference.models.parameters import count_parameters
from exporter.inference.snapshot import GpuRef, ModelSnapshot
from exporter.state import State


@dataclass(frozen=True, slots=True)
class Served:
    """One model that an engine currently serves.

    `passes` and `prompts` are cumulative like the counts of `shown`; `passes_missed` counts the
    scrapes whose passes were not known. `gpu_count` includes GPUs on other hosts.
    """

    workload: str
    engine: str
    shown: ModelSnapshot
    gpus: tuple[GpuRef, ...]
    gpu_count: int
    tensor_parallel: int
    description: ModelDescription | None = None
    passes: float = 0.0
    passes_missed: int = 0
    prompts: float = 0.0


@dataclass(frozen=True, slots=True)
class Split:
    """How an engine is distributed: GPUs per replica, total GPUs by its command line, role."""

    gpus_per_replica: int = 1
    launched_gpus: int | None = None
    role: str | None = None


def present(
    config: WorkloadConfig,
    totals: ModelTotals,
    gpus: Sequence[GpuRef],
    state: State,
    split: Split,
) -> ModelSnapshot:
    """Return the snapshot of one model. A ratio needs the peaks of all of its GPUs."""
    reading, description, cost = totals.reading, totals.description, totals.shown_cost
    window, seconds = totals.window_cost, totals.window_seconds
    counts = count_parameters(description) if description else None
    precision = precision_of(config, totals, gpus, state)
    prefilled = reading.computed_tokens is not None
    share = None if missing_gpus(config, state) else _share_here(config, totals, gpus, split)
    known = prefilled and window is not None
    flops = window.flop / seconds if window and known and seconds else None
    bandwidth = window.dram_bytes / seconds if window and known and seconds else None
    estimate = None if reading.engine_flop is None else totals.engine_flop * split.gpus_per_replica
    return ModelSnapshot(
        model=reading.model or _model_name(config),
        precision=precision,
        prefill_tokens=None if reading.computed_tokens is None else totals.prefill_tokens,
        decode_tokens=None if reading.generated_tokens is None else totals.decode_tokens,
        cached_tokens=None if reading.cached_tokens is None else totals.cached_tokens,
        external_tokens=None if reading.external_tokens is None else totals.external_tokens,
        cached_share=totals.cache_share.recent,
        usual_cached_share=totals.cache_share.usual,
        rejected_tokens=None if reading.draft_tokens is None else totals.rejected_tokens,
        preemptions=None if reading.preemptions is None else totals.preemptions,
        role=reading.role or split.role,
        prefill_flop=cost.prefill_flop if description and prefilled else None,
        decode_flop=cost.decode_flop if description else None,
        wasted_flop=totals.waste.known(
            reading,
            preemptions=totals.preemptions,
            usual_share_known=totals.cache_share.usual is not None,
        )
        if description and prefilled
        else {},
        all_gpus_here=share == 1.0,
        # A pass covers prompts and answers: without the prompts the bytes are not known.
        dram_bytes=cost.dram_bytes if description and prefilled else None,
        phase_bytes={"prefill": cost.prefill_bytes, "decode": cost.decode_bytes}
        if description and prefilled
        else {},
        engine_flop=estimate,
        flops_utilization=_ratio(flops, _whole(_peak(gpus, precision, state), share)),
        bandwidth_utilization=_ratio(
            bandwidth, _whole(_sum(_bandwidth(state, gpu) for gpu in gpus), share)
        ),
        running_requests=reading.running_requests,
        waiting_requests=reading.waiting_requests,
        cache_usage_ratio=reading.cache_usage_ratio,
        decode_context_tokens=totals.progress.context,
        parameters=counts.total if counts else None,
        active_parameters=counts.active if counts else None,
        weight_bytes=stored_weight_bytes(description) if description else None,
        problem=totals.problem,
        not_counted=description.not_counted if description else (),
    )


def missing_gpus(config: WorkloadConfig, state: State) -> tuple[int | str, ...]:
    """The engine's GPUs, as configured, that this host does not list. Their peaks are not known."""
    return tuple(key for key in dict.fromkeys(config.gpus) if state.find(key) is None)


def _share_here(
    config: WorkloadConfig, totals: ModelTotals, gpus: Sequence[GpuRef], split: Split
) -> float | None:
    """The share of the engine's GPUs on this host; None if the others are not known.

    `gpus_total` gives their total number and implies that they are all alike. Otherwise all GPUs
    that the engine uses must be on this host, as far as the engine, its command line or the
    configuration show.
    """
    if config.gpus_total:
        return min(1.0, len(gpus) / config.gpus_total)
    reading = totals.reading
    sizes = [
        reading.gpus,
        split.launched_gpus,
        (reading.tensor_parallel or 1) * (reading.pipeline_parallel or 1),
        (config.tensor_parallel or 1) * (config.pipeline_parallel or 1),
    ]
    most = max(size for size in sizes if size is not None)
    return 1.0 if most <= len(gpus) else None


def _whole(part: float | None, share: float | None) -> float | None:
    return part / share if part is not None and share else None


def precision_of(
    config: WorkloadConfig, totals: ModelTotals, gpus: Sequence[GpuRef], state: State
) -> str | None:
    """Return the precision of the matrix products: the stated one, if the GPUs support it.

    The configuration has priority, then the engine, then the model's file. A GPU without support
    (fp8 weights on Ampere) expands weights to the model's own data type before it multiplies, a
    processor to fp32.
    """
    if config.precision is not None:
        return config.precision
    description = totals.description
    stated = [totals.reading.precision]
    stated += [description.compute_precision, description.data_type] if description else []
    candidates = [precision for precision in stated if precision is not None]
    for precision in candidates:
        if _peak(gpus, precision, state) is not None:
            return precision
    if candidates and gpus and all(_on_processor(state, gpu) for gpu in gpus):
        return "fp32"
    return candidates[0] if candidates else None


def _peak(gpus: Sequence[GpuRef], precision: str | None, state: State) -> float | None:
    """FLOP/s of all these GPUs together; None unless each of them is known to have a peak."""
    if precision is None:
        return None
    devices = [state.find(gpu.uuid) for gpu in gpus]
    return _sum(
        device.peaks.flops.get(precision) if device and device.peaks else None for device in devices
    )


def _on_processor(state: State, gpu: GpuRef) -> bool:
    device = state.find(gpu.uuid)
    return device is not None and device.is_processor


def _bandwidth(state: State, gpu: GpuRef) -> float | None:
    device = state.find(gpu.uuid)
    return device.peaks.dram_bytes_per_second if device and device.peaks else None


def _model_name(config: WorkloadConfig) -> str:
    """A name for a model whose engine gives none: the folder of its file, else the workload."""
    if config.model is None:
        return config.name
    path = config.model.parent if config.model.name == "config.json" else config.model
    return path.name or config.name


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None if there is nothing to sum or a part is unknown."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total or None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
