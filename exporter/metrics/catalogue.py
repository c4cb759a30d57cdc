"""The catalogue: every metric family that the exporter can expose, declared once."""

from exporter.metrics import (
    device,
    gpu,
    holder_sources,
    holders,
    models,
    own,
    probes,
    workloads,
)
from exporter.metrics.family import Family


# Section title of the documentation, and its families, in the order in which they are exposed.
SECTIONS: tuple[tuple[str, tuple[Family, ...]], ...] = (
    ("What the GPU is, and where the FLOPS go", gpu.FAMILIES),
    ("The device's own counters", device.FAMILIES),
    ("Micro-probes", probes.FAMILIES),
    ("Models", (*models.FAMILIES, *workloads.FAMILIES)),
    ("Who holds the GPU", (*holders.FAMILIES, *holder_sources.FAMILIES)),
    ("The exporter itself", own.FAMILIES),
)

CATALOGUE: tuple[Family, ...] = tuple(
    family for _title, families in SECTIONS for family in families
)
BY_NAME: dict[str, Family] = {family.name: family for family in CATALOGUE}

PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp6", "fp4", "int8", "int4")
STATES = (
    "tensor",
    "memory",
    "stall",
    "underfill",
    "idle",
    "clock_power",
    "clock_thermal",
    "clock_other",
    "unresolved",
)
KERNELS = (
    "gemm_fp64",
    "gemm_fp32",
    "gemm_tf32",
    "gemm_fp16",
    "gemm_bf16",
    "gemm_fp8",
    "gemm_int8",
    "copy_device",
    "copy_host_to_device",
    "copy_device_to_host",
    "copy_peer",
    "launch",
)
