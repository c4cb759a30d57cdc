"""Shows a model's books: ratios to the peaks of its GPUs, and the precision it is served in."""

from collections.abc import Iterable, Sequence

from exporter.inference.account import ModelBooks
from exporter.inference.config import WorkloadConfig
from exporter.inference.models.memory import stored_weight_bytes
from exporter.inference.models.parameters import count_parameters
from exporter.inference.snapshot import GpuRef, ModelSnapshot
from exporter.state import State


def present(
    config: WorkloadConfig,
    books: ModelBooks,
    gpus: Sequence[GpuRef],
    state: State,
    gpus_per_engine: int,
) -> ModelSnapshot:
    """Return what is shown of one model. A ratio needs the peaks of all of its GPUs."""
    reading, description, cost = books.reading, books.description, books.shown_cost
    window, seconds = books.window_cost, books.window_seconds
    counts = count_parameters(description) if description else None
    precision = precision_of(config, books, gpus, state)
    flops = window.flops / seconds if window and seconds else None
    bandwidth = window.dram_bytes / seconds if window and seconds else None
    estimate = None if reading.engine_flops is None else books.engine_flop * gpus_per_engine
    return ModelSnapshot(
        model=reading.model or _model_name(config),
        precision=precision,
        prefill_tokens=None if reading.computed_tokens is None else books.prefill_tokens,
        decode_tokens=None if reading.generated_tokens is None else books.decode_tokens,
        prefill_flop=cost.prefill_flops if description else None,
        decode_flop=cost.decode_flops if description else None,
        dram_bytes=cost.dram_bytes if description else None,
        engine_flop=estimate,
        flops_utilization=_ratio(flops, _peak(gpus, precision, state)),
        bandwidth_utilization=_ratio(bandwidth, _sum(_bandwidth(state, gpu) for gpu in gpus)),
        running_requests=reading.running_requests,
        waiting_requests=reading.waiting_requests,
        cache_usage_ratio=reading.cache_usage_ratio,
        decode_context_tokens=books.progress.context,
        parameters=counts.total if counts else None,
        active_parameters=counts.active if counts else None,
        weight_bytes=stored_weight_bytes(description) if description else None,
        problem=books.problem,
        assumptions=description.assumptions if description else (),
    )


def precision_of(
    config: WorkloadConfig, books: ModelBooks, gpus: Sequence[GpuRef], state: State
) -> str | None:
    """Return the precision of the matrix products: what was said, if the GPUs have such a unit.

    The configuration is believed; else the engine, then the model's file. A GPU without the unit
    (fp8 weights on Ampere) expands weights to the model's own data type before it multiplies.
    """
    if config.precision is not None:
        return config.precision
    description = books.description
    said = [books.reading.precision]
    said += [description.compute_precision, description.data_type] if description else []
    candidates = [precision for precision in said if precision is not None]
    for precision in candidates:
        if _peak(gpus, precision, state) is not None:
            return precision
    return candidates[0] if candidates else None


def _peak(gpus: Sequence[GpuRef], precision: str | None, state: State) -> float | None:
    """FLOP/s of all these GPUs together; None unless each of them is known to have a peak."""
    if precision is None:
        return None
    devices = [state.find(gpu.uuid) for gpu in gpus]
    return _sum(
        device.peaks.flops.get(precision) if device and device.peaks else None for device in devices
    )


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
    """The sum; None if there is nothing to sum, or a part is not known."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total or None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
