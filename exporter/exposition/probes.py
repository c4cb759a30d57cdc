"""Samples of the micro-probes."""

from collections.abc import Iterator, Mapping

from exporter.exposition.samples import Labels, by_label, optional
from exporter.metrics import probes
from exporter.metrics.family import MIG_LABEL, Sample
from probes.records import ProbeResults, ProbesSnapshot


def probe_samples(snapshot: ProbesSnapshot) -> Iterator[Sample]:
    """All samples of all probed devices."""
    for device in snapshot.devices:
        yield from _device_samples(device)


def summary_samples(
    labels: Labels,
    baseline_ratio: Mapping[str, float],
    mismatches: Mapping[str, int],
    last_success_seconds: Mapping[str, float],
) -> Iterator[Sample]:
    """What a device's kernels say together: a series a device, where rules would read one a kernel.

    Each argument is by kernel. Speed is judged by GEMMs and the device copy; host copies and launches depend on the host.
    """
    ratios = [ratio for kernel, ratio in baseline_ratio.items() if _judged(kernel)]
    yield from optional(probes.PROBE_LOWEST_BASELINE_RATIO, labels, min(ratios, default=None))
    wrong = sum(mismatches.values()) if mismatches else None
    yield from optional(probes.PROBE_WRONG_RESULTS_TOTAL, labels, wrong)
    times = [at for kernel, at in last_success_seconds.items() if _judged(kernel)]
    newest = max(times, default=None)
    yield from optional(probes.PROBE_NEWEST_SUCCESS_TIMESTAMP_SECONDS, labels, newest)


def _judged(kernel: str) -> bool:
    return kernel.startswith("gemm_") or kernel == "copy_device"


def _device_samples(device: ProbeResults) -> Iterator[Sample]:
    labels: Labels = (("gpu", device.device), ("uuid", device.uuid))
    if device.instance is not None:
        labels = (*labels, (MIG_LABEL, device.instance))
    yield from by_label(probes.PROBE_FLOPS, labels, "precision", device.flops)
    yield from by_label(probes.PROBE_EFFICIENCY_RATIO, labels, "precision", device.efficiency_ratio)
    yield from optional(probes.PROBE_SM_CLOCK_HERTZ, labels, device.sm_clock_hertz)
    for (path, peer), bandwidth in device.bandwidth_bytes_per_second.items():
        yield Sample(
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
        yield Sample(
            probes.PROBE_RUNS_TOTAL,
            (*labels, ("kernel", kernel), ("outcome", outcome)),
            float(count),
        )
    yield from by_label(probes.PROBE_FAILURES_IN_A_ROW, labels, "kernel", device.failures_in_a_row)
    for reason, count in device.skips.items():
        yield Sample(probes.PROBE_SKIPS_TOTAL, (*labels, ("reason", reason)), float(count))
    yield Sample(probes.PROBE_GPU_SECONDS_TOTAL, labels, device.gpu_seconds)
    yield from by_label(
        probes.PROBE_LAST_SUCCESS_TIMESTAMP_SECONDS, labels, "kernel", device.last_success_seconds
    )
    yield from summary_samples(
        labels, device.baseline_ratio, device.mismatches, device.last_success_seconds
    )
    yield Sample(probes.PROBE_WORKER_RESTARTS_TOTAL, labels, float(device.worker_restarts))
    memory = device.worker_memory_bytes
    yield from optional(
        probes.PROBE_WORKER_MEMORY_BYTES, labels, None if memory is None else float(memory)
    )
