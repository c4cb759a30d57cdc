"""Samples of the served models: what they are, what they computed, how much of the peak."""

from collections.abc import Iterator

from exporter.exposition.samples import Labels, by_label, optional
from exporter.inference.snapshot import ModelSnapshot, WorkloadSnapshot, WorkloadsSnapshot
from exporter.metrics import models
from exporter.metrics import workloads as more
from exporter.metrics.family import MIG_LABEL, Family, Label, Sample


def workload_samples(snapshot: WorkloadsSnapshot) -> Iterator[Sample]:
    """All samples of all workloads. Of an engine that is down only that, and why."""
    for workload in snapshot.workloads:
        labels = (("workload", workload.name),)
        yield Sample(models.WORKLOAD_UP, labels, float(workload.up))
        yield from by_label(more.WORKLOAD_ERRORS_TOTAL, labels, "reason", workload.errors)
        yield Sample(more.WORKLOAD_MALFORMED_LINES_TOTAL, labels, float(workload.malformed_lines))
        yield from optional(
            more.WORKLOAD_LAST_SUCCESS_TIMESTAMP_SECONDS,
            labels,
            workload.last_success_timestamp_seconds,
        )
        if workload.up:
            yield from _served(workload)


def _served(workload: WorkloadSnapshot) -> Iterator[Sample]:
    name: Label = ("workload", workload.name)
    for gpu in workload.gpus:
        labels: Labels = (("gpu", gpu.gpu), ("uuid", gpu.uuid))
        if gpu.mig is not None:
            labels = (*labels, (MIG_LABEL, gpu.mig))
        labels = (*labels, name)
        yield Sample(models.WORKLOAD_GPU_INFO, labels, 1.0)
    for model in workload.models:
        labels = (name, ("model", model.model))
        info = (("engine", workload.engine), ("precision", model.precision or ""))
        yield Sample(models.MODEL_INFO, (*labels, *info), 1.0)
        yield from _work(model, labels)
        yield from _state(model, labels)


def _work(model: ModelSnapshot, labels: Labels) -> Iterator[Sample]:
    yield from _phases(models.MODEL_TOKENS_TOTAL, labels, model.prefill_tokens, model.decode_tokens)
    yield from _phases(models.MODEL_FLOP_TOTAL, labels, model.prefill_flop, model.decode_flop)
    yield from optional(models.MODEL_DRAM_BYTES_TOTAL, labels, model.dram_bytes)
    yield from optional(more.MODEL_ENGINE_FLOP_TOTAL, labels, model.engine_flop)
    yield from optional(models.MODEL_FLOPS_UTILIZATION_RATIO, labels, model.flops_utilization)
    yield from optional(
        models.MODEL_BANDWIDTH_UTILIZATION_RATIO, labels, model.bandwidth_utilization
    )


def _state(model: ModelSnapshot, labels: Labels) -> Iterator[Sample]:
    yield Sample(more.MODEL_DESCRIBED, labels, float(model.problem is None))
    for kind, count in (("total", model.parameters), ("active", model.active_parameters)):
        yield from optional(more.MODEL_PARAMETERS, (*labels, ("kind", kind)), count)
    yield from optional(more.MODEL_WEIGHT_BYTES, labels, model.weight_bytes)
    for state, count in (("running", model.running_requests), ("waiting", model.waiting_requests)):
        yield from optional(more.MODEL_REQUESTS, (*labels, ("state", state)), count)
    yield from optional(more.MODEL_KV_CACHE_UTILIZATION_RATIO, labels, model.cache_usage_ratio)
    yield from optional(more.MODEL_CONTEXT_TOKENS, labels, model.decode_context_tokens)


def _phases(
    family: Family, labels: Labels, prefill: float | None, decode: float | None
) -> Iterator[Sample]:
    for phase, value in (("prefill", prefill), ("decode", decode)):
        yield from optional(family, (*labels, ("phase", phase)), value)
