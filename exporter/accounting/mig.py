"""MIG instances: their share of a GPU's peaks, and a GPU's activity from that of its instances."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from exporter.accounting.peaks import PeakOverride, Peaks, find_peaks
from exporter.readings import SM_ACTIVITIES, ActivityWindow, DeviceIdentity


# Memory and its bandwidth are assigned in eighths of the GPU (quarters on smaller boards, which are
# eighths too). Source: MIG User Guide, tables of supported profiles.
_MEMORY_SLICES = 8


def memory_share(gpu_bytes: float | None, instance_bytes: float | None) -> float | None:
    """Share of the GPU's memory slices, and so of its bandwidth, that an instance has."""
    if not gpu_bytes or not instance_bytes:
        return None
    slices = round(_MEMORY_SLICES * instance_bytes / gpu_bytes)
    return min(max(slices, 1), _MEMORY_SLICES) / _MEMORY_SLICES


def instance_peaks(
    gpu: DeviceIdentity, instance: DeviceIdentity, override: PeakOverride | None = None
) -> Peaks:
    """Peaks of an instance: the GPU's by its share of the SMs and of the memory slices.

    Instances have no NVLink. Without an SM count there are no FLOP/s rather than wrong ones.
    `override` is what the configuration says of the whole GPU.
    """
    whole = find_peaks(gpu, override)
    memory = memory_share(gpu.memory_size_bytes, instance.memory_size_bytes)
    dram = whole.dram_bytes_per_second
    peaks = replace(
        whole,
        sm_count=instance.sm_count,
        nvlink_bytes_per_second=None,
        dram_bytes_per_second=dram * memory if dram is not None and memory is not None else None,
    )
    if instance.sm_count is None:
        return replace(peaks, flops={})
    if whole.sm_count is None:
        # A GPU in MIG mode does not report its SM count, so it has no FLOP/s to share.
        part = find_peaks(replace(gpu, sm_count=instance.sm_count))
        return replace(
            peaks, flops=part.flops, tensor_rate=part.tensor_rate, plain_rate=part.plain_rate
        )
    share = instance.sm_count / whole.sm_count
    return replace(peaks, flops={name: value * share for name, value in whole.flops.items()})


@dataclass(frozen=True, slots=True)
class InstanceWindow:
    """An instance's window, and the shares of the GPU's SMs and memory bandwidth that it is of."""

    window: ActivityWindow
    sm_share: float
    memory_share: float | None


def whole_gpu_window(parts: Sequence[InstanceWindow]) -> ActivityWindow | None:
    """The GPU's window from those of all its instances; SMs that no instance has are idle.

    For GPUs that answer for their instances but not for themselves. An activity that one instance
    does not report is unknown for the GPU. None without parts.
    """
    if not parts:
        return None
    first = parts[0].window
    shares: dict[str, float | None] = {}
    for name in ("graphics", *SM_ACTIVITIES):
        values = [(getattr(part.window, name), part.sm_share) for part in parts]
        known = [value * share for value, share in values if value is not None]
        shares[name] = sum(known) if len(known) == len(values) else None
    moved = [
        part.window.dram * part.memory_share
        for part in parts
        if part.window.dram is not None and part.memory_share is not None
    ]
    return ActivityWindow(
        first.source,
        first.start_seconds,
        first.end_seconds,
        **shares,
        dram=sum(moved) if len(moved) == len(parts) else None,
        # All SMs of a GPU share one clock; windows differ by the microseconds between samples.
        sm_cycles=first.sm_cycles,
    )
