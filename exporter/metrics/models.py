"""The served models: what they are, what they computed, and how much of the peak that is."""

from collections.abc import Iterator

from exporter.inference.snapshot import (
    WASTE_CAUSES,
    ModelSnapshot,
    WorkloadSnapshot,
    WorkloadsSnapshot,
)
from exporter.metrics.family import (
    MIG_LABEL,
    Family,
    Label,
    Labels,
    Sample,
    Subject,
    by_label,
    optional,
)
from exporter.metrics.rows import Samples


SUBJECT = Subject("Models", per_device=False)

MODEL_INFO = SUBJECT.gauge(
    "flopwatch_model_info",
    labels=("workload", "model", "engine", "precision"),
    help="Served model, always 1.",
    interpretation="Join it to add the model to a query by workload.",
)
WORKLOAD_GPU_INFO = SUBJECT.gauge(
    "flopwatch_workload_gpu_info",
    labels=("workload",),
    per_device=True,
    help="GPU used by a workload, always 1.",
    interpretation="Join it to get from a model to its GPUs and back.",
)
WORKLOAD_UP = SUBJECT.gauge(
    "flopwatch_workload_up",
    labels=("workload",),
    help="Whether the last scrape of the engine's metrics endpoint succeeded, 1 or 0.",
    interpretation="0: the engine is down or its address is wrong.",
)
MODEL_FLOP_TOTAL = SUBJECT.counter(
    "flopwatch_model_flop_total",
    unit="FLOP",
    labels=("workload", "model", "phase"),
    help=(
        "Model FLOPs by phase: tokens x FLOPs per token, computed from the model's configuration."
    ),
    interpretation="Useful work, without padding, recomputation and rejected drafts.",
)
MODEL_DRAM_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_model_dram_bytes_total",
    labels=("workload", "model"),
    help=(
        "Bytes of weights and KV cache that the served tokens required, computed from the "
        "model's configuration."
    ),
    interpretation="Minimum memory traffic.",
)
MODEL_PHASE_DRAM_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_model_phase_dram_bytes_total",
    unit="bytes",
    labels=("workload", "model", "phase"),
    help=(
        "Bytes of flopwatch_model_dram_bytes_total by phase: prefill, decode. A pass with prompts in it "
        "counts for prefill."
    ),
    interpretation="Bytes and FLOPs of a phase give its minimum time, and so its share of the cost.",
)
MODEL_TOKENS_TOTAL = SUBJECT.counter(
    "flopwatch_model_tokens_total",
    unit="tokens",
    labels=("workload", "model", "phase"),
    help="Tokens computed by phase: prefill (without prefix-cache hits), decode.",
    interpretation="Throughput.",
)
MODEL_FLOPS_UTILIZATION_RATIO = SUBJECT.gauge(
    "flopwatch_model_flops_utilization_ratio",
    labels=("workload", "model"),
    help="MFU: ratio of model FLOP/s to the summed peak of the workload's GPUs, last window.",
    interpretation="The share of the peak that became tokens.",
)
MODEL_BANDWIDTH_UTILIZATION_RATIO = SUBJECT.gauge(
    "flopwatch_model_bandwidth_utilization_ratio",
    labels=("workload", "model"),
    help=(
        "MBU: ratio of model bytes/s to the summed theoretical bandwidth of the workload's GPUs, "
        "last window."
    ),
    interpretation="High MBU with low MFU indicates decode at small batch.",
)
WORKLOAD_ERRORS_TOTAL = SUBJECT.counter(
    "flopwatch_workload_errors_total",
    unit="errors",
    labels=("workload", "reason"),
    help="Failed scrapes of the engine's metrics endpoint by reason.",
    interpretation="Why flopwatch_workload_up is 0.",
)
WORKLOAD_MALFORMED_LINES_TOTAL = SUBJECT.counter(
    "flopwatch_workload_malformed_lines_total",
    unit="lines",
    labels=("workload",),
    help=(
        "Malformed lines of the engine's exposition, and values too large to be true. The other "
        "lines are used."
    ),
    interpretation="The engine, or a proxy in front of it, corrupts its metrics.",
)
WORKLOAD_LAST_SUCCESS_TIMESTAMP_SECONDS = SUBJECT.gauge(
    "flopwatch_workload_last_success_timestamp_seconds",
    labels=("workload",),
    help="Unix time of the last successful scrape of the engine.",
    interpretation="When the engine last answered.",
)
MODEL_DESCRIBED = SUBJECT.gauge(
    "flopwatch_model_described",
    labels=("workload", "model"),
    help=(
        "Whether the model's config.json was found and understood, 1 or 0. At 0 its FLOPs are "
        "absent."
    ),
    interpretation="0: set `model` of the workload. The log names what is missing.",
)
MODEL_PARAMETERS = SUBJECT.gauge(
    "flopwatch_model_parameters",
    unit="parameters",
    labels=("workload", "model", "kind"),
    help=(
        "Parameters computed from the model's config.json: all of them (total) or those used by "
        "a token (active)."
    ),
    interpretation="Shows whether the right file was found.",
)
MODEL_WEIGHT_BYTES = SUBJECT.gauge(
    "flopwatch_model_weight_bytes",
    labels=("workload", "model"),
    help=(
        "Size of all weights as stored, including quantization, computed from the model's "
        "config.json."
    ),
    interpretation=(
        "The memory that one replica needs on its GPUs, and the bytes read in each dense forward "
        "pass."
    ),
)
MODEL_ENGINE_FLOP_TOTAL = SUBJECT.counter(
    "flopwatch_model_engine_flop_total",
    unit="FLOP",
    labels=("workload", "model"),
    help=("FLOPs as estimated by the engine (vLLM with --enable-mfu-metrics), over all its GPUs."),
    interpretation="A cross-check of flopwatch_model_flop_total. vLLM does not halve causal attention.",
)
MODEL_REQUESTS = SUBJECT.gauge(
    "flopwatch_model_requests",
    unit="requests",
    labels=("workload", "model", "state"),
    help="Requests in the engine by state, running or waiting, last scrape.",
    interpretation=(
        "Demand. Lower throughput at the same queue length is a fault; at a shorter one it is "
        "less traffic."
    ),
)
MODEL_CACHED_TOKENS_TOTAL = SUBJECT.counter(
    "flopwatch_model_cached_tokens_total",
    unit="tokens",
    labels=("workload", "model", "origin"),
    help=(
        "Prompt tokens that needed no FLOPs here by origin: local (this server's prefix cache) or "
        "external (another server or a shared cache). Absent where the engine does not report them."
    ),
    interpretation="A fall at the same traffic: the prefix cache stopped working, and prompts are recomputed.",
)
MODEL_REJECTED_TOKENS_TOTAL = SUBJECT.counter(
    "flopwatch_model_rejected_tokens_total",
    unit="tokens",
    labels=("workload", "model"),
    help="Draft tokens of speculative decoding that were verified and rejected.",
    interpretation="Work that produced no output.",
)
MODEL_WASTED_FLOP_TOTAL = SUBJECT.counter(
    "flopwatch_model_wasted_flop_total",
    unit="FLOP",
    labels=("workload", "model", "cause"),
    help=(
        "Wasted FLOP by cause, estimated from what the engine counts: preemption (tokens "
        "computed again), rejected_drafts (without the draft model), lost_cache_hits (prompt "
        "tokens that the prefix cache usually has, computed while it had collapsed; they are "
        "part of flopwatch_model_flop_total). A cause that the engine does not count is absent."
    ),
    interpretation=(
        "The part of the difference between executed and useful work that the engine explains."
    ),
)
MODEL_WASTE_COUNTED = SUBJECT.gauge(
    "flopwatch_model_waste_counted",
    labels=("workload", "model", "cause"),
    help="Whether the FLOP wasted by this cause are known, 1 or 0.",
    interpretation=(
        "0: the engine does not count it; it is part of flopwatch_workload_unexplained_flop_ratio."
    ),
)
MODEL_PREEMPTIONS_TOTAL = SUBJECT.counter(
    "flopwatch_model_preemptions_total",
    unit="preemptions",
    labels=("workload", "model"),
    help="Requests that the engine preempted. It computes their tokens again.",
    interpretation="The KV cache is too small for the batch.",
)
MODEL_KV_CACHE_USAGE_RATIO = SUBJECT.gauge(
    "flopwatch_model_kv_cache_usage_ratio",
    labels=("workload", "model"),
    help="Share of the engine's KV cache in use, last scrape.",
    interpretation="Near 1 the batch cannot grow: quantize the cache, shorten contexts, or add GPUs.",
)
WORKLOAD_PHASE_INFO = SUBJECT.gauge(
    "flopwatch_workload_phase_info",
    labels=("workload", "role"),
    help=(
        "Role of the engine in a prefill/decode split, always 1: prefill, decode or both. Absent "
        "where neither the engine nor its command line says it."
    ),
    interpretation="A decode server computes no prompts.",
)
MODEL_CONTEXT_TOKENS = SUBJECT.gauge(
    "flopwatch_model_context_tokens",
    unit="tokens",
    labels=("workload", "model"),
    help="Mean context of a decoded token, reported by the engine or estimated.",
    interpretation="Determines attention's share of the work and the cache traffic per token.",
)


def workload_samples(snapshot: WorkloadsSnapshot) -> Iterator[Sample]:
    """All samples of all workloads. For an engine that is down only that, and the reason."""
    for workload in snapshot.workloads:
        labels = (("workload", workload.name),)
        yield Sample(WORKLOAD_UP, labels, float(workload.up))
        yield from by_label(WORKLOAD_ERRORS_TOTAL, labels, "reason", workload.errors)
        yield Sample(WORKLOAD_MALFORMED_LINES_TOTAL, labels, float(workload.malformed_lines))
        yield from optional(
            WORKLOAD_LAST_SUCCESS_TIMESTAMP_SECONDS,
            labels,
            workload.last_success_timestamp_seconds,
        )
        if workload.up:
            yield from _served(workload)


WORKLOADS = Samples(workload_samples)


def _served(workload: WorkloadSnapshot) -> Iterator[Sample]:
    name: Label = ("workload", workload.name)
    for gpu in workload.gpus:
        labels: Labels = (("gpu", gpu.gpu), ("uuid", gpu.uuid))
        if gpu.mig is not None:
            labels = (*labels, (MIG_LABEL, gpu.mig))
        labels = (*labels, name)
        yield Sample(WORKLOAD_GPU_INFO, labels, 1.0)
    for role in sorted({model.role for model in workload.models if model.role}):
        yield Sample(WORKLOAD_PHASE_INFO, (name, ("role", role)), 1.0)
    for model in workload.models:
        labels = (name, ("model", model.model))
        info = (("engine", workload.engine), ("precision", model.precision or ""))
        yield Sample(MODEL_INFO, (*labels, *info), 1.0)
        yield from _work(model, labels)
        yield from _state(model, labels)


def _work(model: ModelSnapshot, labels: Labels) -> Iterator[Sample]:
    yield from _phases(MODEL_TOKENS_TOTAL, labels, model.prefill_tokens, model.decode_tokens)
    yield from _phases(MODEL_FLOP_TOTAL, labels, model.prefill_flop, model.decode_flop)
    yield from optional(MODEL_DRAM_BYTES_TOTAL, labels, model.dram_bytes)
    yield from by_label(MODEL_PHASE_DRAM_BYTES_TOTAL, labels, "phase", model.phase_bytes)
    for origin, tokens in (("local", model.cached_tokens), ("external", model.external_tokens)):
        yield from optional(MODEL_CACHED_TOKENS_TOTAL, (*labels, ("origin", origin)), tokens)
    yield from optional(MODEL_REJECTED_TOKENS_TOTAL, labels, model.rejected_tokens)
    yield from optional(MODEL_PREEMPTIONS_TOTAL, labels, model.preemptions)
    yield from by_label(MODEL_WASTED_FLOP_TOTAL, labels, "cause", model.wasted_flop)
    for cause in WASTE_CAUSES:
        counted = float(cause in model.wasted_flop)
        yield Sample(MODEL_WASTE_COUNTED, (*labels, ("cause", cause)), counted)
    yield from optional(MODEL_ENGINE_FLOP_TOTAL, labels, model.engine_flop)
    yield from optional(MODEL_FLOPS_UTILIZATION_RATIO, labels, model.flops_utilization)
    yield from optional(MODEL_BANDWIDTH_UTILIZATION_RATIO, labels, model.bandwidth_utilization)


def _state(model: ModelSnapshot, labels: Labels) -> Iterator[Sample]:
    yield Sample(MODEL_DESCRIBED, labels, float(model.problem is None))
    for kind, count in (("total", model.parameters), ("active", model.active_parameters)):
        yield from optional(MODEL_PARAMETERS, (*labels, ("kind", kind)), count)
    yield from optional(MODEL_WEIGHT_BYTES, labels, model.weight_bytes)
    for state, count in (("running", model.running_requests), ("waiting", model.waiting_requests)):
        yield from optional(MODEL_REQUESTS, (*labels, ("state", state)), count)
    yield from optional(MODEL_KV_CACHE_USAGE_RATIO, labels, model.cache_usage_ratio)
    yield from optional(MODEL_CONTEXT_TOKENS, labels, model.decode_context_tokens)


def _phases(
    family: Family, labels: Labels, prefill: float | None, decode: float | None
) -> Iterator[Sample]:
    for phase, value in (("prefill", prefill), ("decode", decode)):
        yield from optional(family, (*labels, ("phase", phase)), value)
