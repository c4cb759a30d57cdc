"""MIG instances: their share of a GPU's peaks, and a GPU's activity from that of its instances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from exporter.accounting.peaks import PeakOverride, Peaks, find_peaks
from exporter.readings import SM_ACTIVITIES, ActivityWindow, DeviceIdentity


# Memory and its bandwidth are assigned in eighths of the GPU (quarters on smaller boards, which are
# eighths too). Source: MIG User Guide, tables of supported profiles.
_MEMORY_SLICES = 8


@dataclass(frozen=True, slots=True)
class InstanceShare:
    """An instance's shares of its GPU's SMs and memory bandwidth; None: not known."""

    sm: float
    memory: float | None


def instance_share(
    gpu: DeviceIdentity, gpu_sm_count: int | None, instance: DeviceIdentity
) -> InstanceShare | None:
    """The instance's shares of its GPU; None where the number of SMs of one of them is not known."""
    if not gpu_sm_count or not instance.sm_count:
        return None
    memory = memory_share(gpu.memory_size_bytes, instance.memory_size_bytes)
    return InstanceShare(instance.sm_count / gpu_sm_count, memory)


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


def whole_gpu_activities(
    parts: Sequence[tuple[Mapping[str, float | None], InstanceShare]],
) -> dict[str, float]:
    """A GPU's activities from those of all its instances; SMs and memory of no instance are idle.

    An activity that one instance does not report is unknown for the GPU, and left out.
    """
    whole: dict[str, float] = {}
    for name in parts[0][0] if parts else ():
        weighted = [
            value * weight
            for activities, share in parts
            if (value := activities.get(name)) is not None
            and (weight := share.memory if name == "dram" else share.sm) is not None
        ]
        if len(weighted) == len(parts):
            whole[name] = min(sum(weighted), 1.0)
    return whole


def whole_gpu_window(
    parts: Sequence[tuple[ActivityWindow, InstanceShare]],
) -> ActivityWindow | None:
    """The GPU's window from those of all its instances; None without any.

    For GPUs that answer for their instances but not for themselves.
    """
    if not parts:
        return None
    names = ("graphics", "dram", *SM_ACTIVITIES)
    activities = whole_gpu_activities(
        [({name: getattr(window, name) for name in names}, share) for window, share in parts]
    )
    first = parts[0][0]
    return ActivityWindow(
        first.source,
        first.start_seconds,
        first.end_seconds,
        **activities,
        # All SMs of a GPU share one clock; windows differ by the microseconds between samples.
        sm_cycles=first.sm_cycles,
    )
