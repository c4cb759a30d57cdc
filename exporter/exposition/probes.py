"""Points of the micro-probes."""

from collections.abc import Iterator

from exporter.exposition.points import Labels, by_label, optional
from exporter.metrics import probes
from exporter.metrics.family import MIG_LABEL, Point
from probes.records import DeviceSnapshot, ProbesSnapshot


def probe_points(snapshot: ProbesSnapshot) -> Iterator[Point]:
    """All points of all probed devices."""
    for device in snapshot.devices:
        yield from _device_points(device)


def _device_points(device: DeviceSnapshot) -> Iterator[Point]:
    labels: Labels = (("gpu", device.device), ("uuid", device.uuid))
    if device.instance is not None:
        labels = (*labels, (MIG_LABEL, device.instance))
    yield from by_label(probes.PROBE_FLOPS, labels, "precision", device.flops)
    yield from by_label(probes.PROBE_EFFICIENCY_RATIO, labels, "precision", device.efficiency_ratio)
    yield from optional(probes.PROBE_SM_CLOCK_HERTZ, labels, device.sm_clock_hertz)
    for (path, peer), bandwidth in device.bandwidth_bytes_per_second.items():
        yield Point(
            probes.PROBE_BANDWIDTH_BYTES_PER_SECOND,
            (*labels, ("path", path), ("peer", peer)),
            bandwidth,
        )
    yield from optional(probes.PROBE_LAUNCH_LATENCY_SECONDS, labels, device.launch_latency_seconds)
    yield from by_label(probes.PROBE_BASELINE_RATIO, labels, "kernel", device.baseline_ratio)
    if device.tenant_busy_ratio is not None:
        low, high = device.tenant_busy_ratio
        bounds = {"low": low, "high": high}
        yield from by_label(probes.PROBE_TENANT_BUSY_RATIO, labels, "bound", bounds)
    yield from by_label(probes.PROBE_MISMATCHES_TOTAL, labels, "kernel", device.mismatches)
    for (kernel, outcome), count in device.runs.items():
        yield Point(
            probes.PROBE_RUNS_TOTAL,
            (*labels, ("kernel", kernel), ("outcome", outcome)),
            float(count),
        )
    for reason, count in device.skips.items():
        yield Point(probes.PROBE_SKIPS_TOTAL, (*labels, ("reason", reason)), float(count))
    yield Point(probes.PROBE_GPU_SECONDS_TOTAL, labels, device.gpu_seconds)
    yield from by_label(
        probes.PROBE_LAST_SUCCESS_TIMESTAMP_SECONDS, labels, "kernel", device.last_success_seconds
    )
    yield Point(probes.PROBE_WORKER_RESTARTS_TOTAL, labels, float(device.worker_restarts))
    memory = device.worker_memory_bytes
    yield from optional(
        probes.PROBE_WORKER_MEMORY_BYTES, labels, None if memory is None else float(memory)
    )
