"""Limits below which a device that was probed at full length is graded low.

The references are published measurements and acceptance limits: mamf-finder's sweeps and
gpu-fryer's (62 to 86.9 % of the data sheet on NVIDIA GPUs), DCGM's diagnostics (75 % of a measured
reference), gpu-fryer (10 % below the best GPU of a node), SuperBench (5 % below the node's own
baseline), Azure's node checks (PCIe).
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from probes.facts import DeviceFacts
from probes.judgement import Judgement
from probes.protocol import KernelInfo, Outcome


Grade = Literal["ok", "note", "low", "corrupt", "throttled", "contended", "failed"]
FAILING: Final[frozenset[Grade]] = frozenset({"low", "corrupt", "throttled", "failed"})

# DCGM fails a GPU below this share of its reference.
CRITICAL_SHARE: Final = 0.75
# The lowest share of the data-sheet peak that a sound NVIDIA GPU was seen to sustain in a GEMM:
# 1550 of 2500 TFLOP/s in bf16 on a GB200 (gpu-fryer). At the clock of the measurement it is higher.
GEMM_REFERENCE: Final = 0.62
# DCGM's reference for an H100's memory, as a share of the data sheet: 2.54 of 3.35 TB/s.
MEMORY_REFERENCE: Final = 0.76
# Azure's limits for pinned copies, by the link's own bandwidth in bytes/s per direction.
PCIE_LIMITS: Final = ((60e9, 48e9), (30e9, 21e9))
PCIE_SHARE: Final = 0.66
BASELINE_LOW: Final = 0.90
BASELINE_NOTE: Final = 0.95
SIBLING_LOW: Final = 0.90


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel's result on one device, graded; None if unknown."""

    gpu: str
    uuid: str
    name: str
    kernel: str
    quantity: str
    outcome: Outcome
    value: float | None
    """FLOP/s, bytes/s or seconds."""
    peak: float | None
    """Of the parts that the kernel used."""
    efficiency_ratio: float | None
    baseline_ratio: float | None
    sm_clock_hertz: float | None
    grade: Grade
    why: str = ""

    @property
    def peak_ratio(self) -> float | None:
        """The value over the data-sheet peak."""
        return None if not self.peak or self.value is None else self.value / self.peak


def peak_of(kernel: KernelInfo, facts: DeviceFacts, units: int) -> float | None:
    """The data-sheet figure; for a host processor, only of the cores that the probe uses."""
    if kernel.quantity == "flops":
        peak = facts.peak_flops.get(kernel.label)
        if peak is not None and facts.kind == "cpu" and facts.sm_count:
            return peak * min(1.0, units / facts.sm_count)
        return peak
    if kernel.label == "device":
        return facts.peak_dram_bandwidth_bytes_per_second
    if kernel.label in ("host_to_device", "device_to_host"):
        return facts.peak_pcie_bandwidth_bytes_per_second
    return None


def grade(
    kernel: KernelInfo,
    facts: DeviceFacts,
    judgement: Judgement,
    baseline_ratio: float | None,
    peak: float | None,
) -> tuple[Grade, str]:
    """The grade of a judged result, and why it is not `ok`."""
    if judgement.outcome == "mismatch":
        return "corrupt", "the result is not bit for bit the expected one"
    if judgement.outcome == "contended":
        return "contended", "others use the device: not judged"
    if judgement.outcome == "throttled":
        return "throttled", "the clock is below three quarters of its maximum"
    lowest = _limit(kernel, facts, peak)
    measured = judgement.efficiency if kernel.quantity == "flops" else judgement.value
    if lowest is not None and measured is not None and measured < lowest:
        what = "efficiency" if kernel.quantity == "flops" else "bandwidth"
        return "low", f"{what} below {_figure(lowest)}"
    if baseline_ratio is None:
        return "ok", ""
    speed = 1 / baseline_ratio if kernel.quantity == "latency" else baseline_ratio
    if speed < BASELINE_LOW:
        return "low", f"below {BASELINE_LOW:.0%} of its own baseline"
    if speed < BASELINE_NOTE:
        return "note", f"below {BASELINE_NOTE:.0%} of its own baseline"
    return "ok", ""


def compare_siblings(rows: Sequence[Row]) -> list[Row]:
    """The rows; those below the median of the same kernel on the same GPU model are marked low."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.value is not None and row.quantity != "latency":
            groups.setdefault((row.name, row.kernel), []).append(row.value)
    compared = []
    for row in rows:
        values = groups.get((row.name, row.kernel), [])
        median = statistics.median(values) if len(values) > 2 else None
        lags = (
            median is not None
            and row.value is not None
            and row.quantity != "latency"
            and row.value < SIBLING_LOW * median
        )
        if lags and row.grade in ("ok", "note"):
            compared.append(
                replace(row, grade="low", why=f"below {SIBLING_LOW:.0%} of this node's median")
            )
        else:
            compared.append(row)
    return compared


def _limit(kernel: KernelInfo, facts: DeviceFacts, peak: float | None) -> float | None:
    """The value below which a kernel is low on any device of its kind; None without such a limit.

    Host processors have none: their low precisions are often emulated, their memory is shared.
    """
    if facts.kind == "cpu" or kernel.quantity == "latency":
        return None
    if kernel.quantity == "flops":
        return CRITICAL_SHARE * GEMM_REFERENCE
    if peak is None:
        return None
    if kernel.label == "device":
        return CRITICAL_SHARE * MEMORY_REFERENCE * peak
    for link, lowest in PCIE_LIMITS:
        if peak >= link:
            return lowest
    return PCIE_SHARE * peak


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value / 1e9:.0f} GB/s"
