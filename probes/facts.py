"""Facts about a device that the daemon passes to the probes.

The probes never query the driver themselves. The facts come from the daemon's last readings, and a
device whose readings are not fresh has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


ComputeMode = Literal["default", "exclusive_process", "exclusive_thread", "prohibited"]


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """A process with a context on the device, including our own worker."""

    pid: int
    age_seconds: float
    """Since the process started, or since it was first seen here, whichever is known."""


@dataclass(frozen=True, slots=True)
class ModelGemm:
    """A matrix product of the served model on one device: `n` columns of weights, `k` deep."""

    precision: str
    n: int
    k: int

    @property
    def name(self) -> str:
        """The kernel's name in metrics and baselines."""
        return f"gemm_{self.precision}_{self.n}x{self.k}"

    @property
    def base(self) -> str:
        """The kernel that measures it."""
        return f"gemm_{self.precision}"


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device as the driver describes it now; None means unknown, never zero.

    The `precision` keys are those of the metrics: fp64 fp32 tf32 fp16 bf16 fp8 int8.
    """

    key: str
    """The `gpu` label: "0", "1", … or "cpu0"."""
    uuid: str
    name: str
    kind: Literal["cuda", "cpu"]
    peak_flops: Mapping[str, float] = field(default_factory=dict)
    """Dense data-sheet peak, FLOP/s."""
    flop_per_clock_per_sm: Mapping[str, float] = field(default_factory=dict)
    """Dense, FMA = 2; of the host processor: per core."""
    sm_count: int | None = None
    sm_clock_max_hertz: float | None = None
    peak_dram_bandwidth_bytes_per_second: float | None = None
    peak_pcie_bandwidth_bytes_per_second: float | None = None
    free_memory_bytes: int | None = None
    l2_bytes: int | None = None
    compute_mode: ComputeMode = "default"
    mig: bool = False
    """A GPU that is partitioned: it cannot be probed as one."""
    instance: str | None = None
    """The GPU instance's id, of a MIG instance; its `key` is that of its GPU."""
    gpu_uuid: str | None = None
    """The GPU's UUID, of a MIG instance."""
    processes: tuple[ProcessFacts, ...] = ()
    """Everybody with a context on the device, our own worker included."""
    clock_event_reasons: frozenset[str] = frozenset()
    """Active reasons by NVML's names in snake case, such as `sw_thermal_slowdown`."""
    utilization_ratio: float | None = None
    driver_version: str = ""
    model_gemms: tuple[ModelGemm, ...] = ()
    """The matrix products of the models that are served on the device."""
    headline_precision: str = ""
    """The precision that the device's FLOPS are shown in; its GEMM comes first."""
