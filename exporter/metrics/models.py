"""Useful FLOPS: the inference engines' tokens, turned into model FLOPs."""

from exporter.metrics.family import Family, MetricType


GAUGE, COUNTER, HISTOGRAM = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM

MODEL_INFO = Family(
    name="flopwatch_model_info",
    type=GAUGE,
    unit="",
    labels=("workload", "model", "engine", "precision"),
    per_device=False,
    help="A served model, always 1.",
    interpretation="Join it to name the model of a workload.",
)
WORKLOAD_GPU_INFO = Family(
    name="flopwatch_workload_gpu_info",
    type=GAUGE,
    unit="",
    labels=("workload",),
    help="A GPU of a workload, always 1.",
    interpretation="Join it to go from a model to its GPUs and back.",
)
WORKLOAD_UP = Family(
    name="flopwatch_workload_up",
    type=GAUGE,
    unit="",
    labels=("workload",),
    per_device=False,
    help="1 when the engine's metrics endpoint answered its last scrape.",
    interpretation="0: the engine is down or its address is wrong.",
)
MODEL_FLOP_TOTAL = Family(
    name="flopwatch_model_flop_total",
    type=COUNTER,
    unit="FLOP",
    labels=("workload", "model", "phase"),
    per_device=False,
    help="Model FLOPs by phase: tokens x FLOPs per token, from the model's configuration (analytic).",
    interpretation="Useful work, without padding, recompute and rejected drafts.",
)
MODEL_DRAM_BYTES_TOTAL = Family(
    name="flopwatch_model_dram_bytes_total",
    type=COUNTER,
    unit="bytes",
    labels=("workload", "model"),
    per_device=False,
    help="Bytes of weights and KV cache that the served tokens needed (analytic).",
    interpretation="The memory traffic that had to be.",
)
MODEL_TOKENS_TOTAL = Family(
    name="flopwatch_model_tokens_total",
    type=COUNTER,
    unit="tokens",
    labels=("workload", "model", "phase"),
    per_device=False,
    help="Tokens computed, by phase: prefill (without prefix-cache hits), decode.",
    interpretation="Throughput.",
)
MODEL_FLOPS_UTILIZATION_RATIO = Family(
    name="flopwatch_model_flops_utilization_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("workload", "model"),
    per_device=False,
    help="MFU: model FLOP/s over the summed peak of the workload's GPUs, last window.",
    interpretation="The share of the silicon's peak that became tokens.",
)
MODEL_BANDWIDTH_UTILIZATION_RATIO = Family(
    name="flopwatch_model_bandwidth_utilization_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("workload", "model"),
    per_device=False,
    help="MBU: model bytes/s over the summed theoretical bandwidth of the workload's GPUs, last window.",
    interpretation="High MBU with low MFU is decode at small batch.",
)

FAMILIES = (
    MODEL_INFO,
    WORKLOAD_GPU_INFO,
    WORKLOAD_UP,
    MODEL_FLOP_TOTAL,
    MODEL_DRAM_BYTES_TOTAL,
    MODEL_TOKENS_TOTAL,
    MODEL_FLOPS_UTILIZATION_RATIO,
    MODEL_BANDWIDTH_UTILIZATION_RATIO,
)
