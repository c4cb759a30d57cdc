"""Families of the workloads beside those of the contract: why a number is missing, and queues."""

from exporter.metrics.family import Family, MetricType


GAUGE, COUNTER = MetricType.GAUGE, MetricType.COUNTER

WORKLOAD_ERRORS_TOTAL = Family(
    name="flopwatch_workload_errors_total",
    type=COUNTER,
    unit="errors",
    labels=("workload", "reason"),
    per_device=False,
    help="Failed scrapes of the engine's metrics endpoint by reason.",
    interpretation="Why flopwatch_workload_up is 0.",
)
WORKLOAD_MALFORMED_LINES_TOTAL = Family(
    name="flopwatch_workload_malformed_lines_total",
    type=COUNTER,
    unit="lines",
    labels=("workload",),
    per_device=False,
    help="Lines of the engine's exposition that are no samples; the others are used.",
    interpretation="The engine, or something between, garbles its metrics.",
)
WORKLOAD_LAST_SUCCESS_TIMESTAMP_SECONDS = Family(
    name="flopwatch_workload_last_success_timestamp_seconds",
    type=GAUGE,
    unit="seconds",
    labels=("workload",),
    per_device=False,
    help="Unix time of the last successful scrape of the engine.",
    interpretation="Since when an engine has been silent.",
)
MODEL_DESCRIBED = Family(
    name="flopwatch_model_described",
    type=GAUGE,
    unit="",
    labels=("workload", "model"),
    per_device=False,
    help="1 when the model's config.json was found and understood, else 0: FLOPs are then absent.",
    interpretation="0: set `model` of the workload; the log names what is missing.",
)
MODEL_PARAMETERS = Family(
    name="flopwatch_model_parameters",
    type=GAUGE,
    unit="parameters",
    labels=("workload", "model", "kind"),
    per_device=False,
    help="Parameters counted from the model's config.json, all (total) or met by a token (active).",
    interpretation="Whether the right file was found.",
)
MODEL_WEIGHT_BYTES = Family(
    name="flopwatch_model_weight_bytes",
    type=GAUGE,
    unit="bytes",
    labels=("workload", "model"),
    per_device=False,
    help="Bytes of all weights as stored, quantization included, from the model's config.json.",
    interpretation="What one replica takes from the memory of its GPUs, and reads in each dense pass.",
)
MODEL_ENGINE_FLOP_TOTAL = Family(
    name="flopwatch_model_engine_flop_total",
    type=COUNTER,
    unit="FLOP",
    labels=("workload", "model"),
    per_device=False,
    help="FLOPs by the engine's own estimate (vLLM with --enable-mfu-metrics), of all its GPUs.",
    interpretation="A second opinion on flopwatch_model_flop_total; vLLM does not halve causal attention.",
)
MODEL_REQUESTS = Family(
    name="flopwatch_model_requests",
    type=GAUGE,
    unit="requests",
    labels=("workload", "model", "state"),
    per_device=False,
    help="Requests that the engine runs (running) or holds in its queue (waiting), last scrape.",
    interpretation="Demand: throughput that falls at the same queue is a fault, not an ebb.",
)
MODEL_KV_CACHE_UTILIZATION_RATIO = Family(
    name="flopwatch_model_kv_cache_utilization_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("workload", "model"),
    per_device=False,
    help="Share of the engine's KV cache in use, last scrape.",
    interpretation="Near 1 the batch cannot grow: quantize the cache, shorten contexts, or add GPUs.",
)
MODEL_CONTEXT_TOKENS = Family(
    name="flopwatch_model_context_tokens",
    type=GAUGE,
    unit="tokens",
    labels=("workload", "model"),
    per_device=False,
    help="Mean context that a decoded token attends to; told by the engine or estimated.",
    interpretation="Attention's share of the work, and the cache traffic of each token.",
)

FAMILIES = (
    WORKLOAD_ERRORS_TOTAL,
    WORKLOAD_MALFORMED_LINES_TOTAL,
    WORKLOAD_LAST_SUCCESS_TIMESTAMP_SECONDS,
    MODEL_DESCRIBED,
    MODEL_PARAMETERS,
    MODEL_WEIGHT_BYTES,
    MODEL_ENGINE_FLOP_TOTAL,
    MODEL_REQUESTS,
    MODEL_KV_CACHE_UTILIZATION_RATIO,
    MODEL_CONTEXT_TOKENS,
)
