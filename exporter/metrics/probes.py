"""What the micro-probes measured, and what they cost."""

from collections.abc import Iterator, Mapping

from exporter.metrics.family import MIG_LABEL, Labels, Sample, Subject, by_label, optional
from exporter.metrics.rows import Samples
from probes.records import ProbeResults


SUBJECT = Subject("Micro-probes")

PROBE_FLOPS = SUBJECT.gauge(
    "flopwatch_probe_flops",
    labels=("precision",),
    help="FLOP/s of the last accepted GEMM micro-probe.",
    interpretation="What the GPU could deliver now. 60-90 % of the data sheet is normal.",
)
PROBE_EFFICIENCY_RATIO = SUBJECT.gauge(
    "flopwatch_probe_efficiency_ratio",
    labels=("precision",),
    help=(
        "Ratio of the FLOP per clock and SM reached by the probe to the peak rate, at the SM "
        "clock measured during the probe."
    ),
    interpretation="Hardware health independent of the clock: it should be constant.",
)
PROBE_SM_CLOCK_HERTZ = SUBJECT.gauge(
    "flopwatch_probe_sm_clock_hertz",
    help="SM clock measured on the device during the last probe.",
    interpretation=(
        "A lower clock at the same efficiency is caused by power or heat, not by faulty silicon."
    ),
)
PROBE_BANDWIDTH_BYTES_PER_SECOND = SUBJECT.gauge(
    "flopwatch_probe_bandwidth_bytes_per_second",
    labels=("path", "peer"),
    help=(
        "Bandwidth measured by the probe, by path: device (bytes read plus written), "
        "host_to_device, device_to_host, peer."
    ),
    interpretation="Reachable bandwidth of device memory, PCIe and NVLink.",
)
PROBE_LAUNCH_LATENCY_SECONDS = SUBJECT.gauge(
    "flopwatch_probe_launch_latency_seconds",
    help="Time from launch to completion of an empty kernel, median of the last probe.",
    interpretation="Grows with a busy host, a busy GPU or a deep power state.",
)
PROBE_BASELINE_RATIO = SUBJECT.gauge(
    "flopwatch_probe_baseline_ratio",
    labels=("kernel",),
    help=(
        "Ratio of the last accepted measurement to this device's own baseline for the same "
        "kernel and software versions."
    ),
    interpretation="Below 0.95 the GPU is slower than it was.",
)
PROBE_LOWEST_BASELINE_RATIO = SUBJECT.gauge(
    "flopwatch_probe_lowest_baseline_ratio",
    help="Lowest flopwatch_probe_baseline_ratio of the device's GEMMs and its device copy.",
    interpretation=(
        "The health of a device in one number, as the alerts read it: below 0.9 it is slower "
        "than it was."
    ),
)
PROBE_TENANT_BUSY_RATIO = SUBJECT.gauge(
    "flopwatch_probe_tenant_busy_ratio",
    labels=("bound",),
    help="Share of the GPU used by other work while the probe ran, lower and upper bound.",
    interpretation="How contended the measurement was.",
)
PROBE_MISMATCHES_TOTAL = SUBJECT.counter(
    "flopwatch_probe_mismatches_total",
    unit="results",
    labels=("kernel",),
    help="Probe results that differ from the expected bits.",
    interpretation="Silent data corruption. Drain the GPU.",
)
PROBE_WRONG_RESULTS_TOTAL = SUBJECT.counter(
    "flopwatch_probe_wrong_results_total",
    unit="results",
    help="Sum of flopwatch_probe_mismatches_total over the device's kernels.",
    interpretation="Silent data corruption in any kernel.",
)
PROBE_RUNS_TOTAL = SUBJECT.counter(
    "flopwatch_probe_runs_total",
    unit="runs",
    labels=("kernel", "outcome"),
    help=(
        "Probe runs by outcome: ok, contended, throttled, mismatch, out_of_memory, timeout, error."
    ),
    interpretation="Every run has exactly one outcome.",
)
PROBE_FAILURES_IN_A_ROW = SUBJECT.gauge(
    "flopwatch_probe_failures_in_a_row",
    unit="runs",
    labels=("kernel",),
    help=(
        "Consecutive runs of this kernel that ended in an error, a timeout or out of memory. "
        "Absent for kernels that never failed."
    ),
    interpretation="While it grows, the probe yields no results.",
)
PROBE_SKIPS_TOTAL = SUBJECT.counter(
    "flopwatch_probe_skips_total",
    unit="runs",
    labels=("reason",),
    help="Skipped probe runs by reason.",
    interpretation="Why there is no fresh probe result.",
)
PROBE_GPU_SECONDS_TOTAL = SUBJECT.counter(
    "flopwatch_probe_gpu_seconds_total",
    help="GPU time used by the probes.",
    interpretation="The cost of probing.",
)
PROBE_LAST_SUCCESS_TIMESTAMP_SECONDS = SUBJECT.gauge(
    "flopwatch_probe_last_success_timestamp_seconds",
    labels=("kernel",),
    help="Unix time of the last accepted probe of this kernel.",
    interpretation="Age of the latest result.",
)
PROBE_NEWEST_SUCCESS_TIMESTAMP_SECONDS = SUBJECT.gauge(
    "flopwatch_probe_newest_success_timestamp_seconds",
    help=("Unix time of the last accepted probe of the device, of its GEMMs and its device copy."),
    interpretation="Age of the latest result of any kernel.",
)
PROBE_COVERAGE_RATIO = SUBJECT.gauge(
    "flopwatch_probe_coverage_ratio",
    help=(
        "Share of the served models' matrix products (shape and precision) that were probed in the "
        "last day. Absent unless probes.shapes is auto and a described model is served."
    ),
    interpretation=(
        "Below 1 some products are not probed: the budget is too small, or torch or the device has no "
        "GEMM in their precision."
    ),
)
PROBE_WORKER_RESTARTS_TOTAL = SUBJECT.counter(
    "flopwatch_probe_worker_restarts_total",
    unit="restarts",
    help="Restarts of the probe worker after it died or was killed.",
    interpretation="Should stay at 0.",
)
PROBE_WORKER_MEMORY_BYTES = SUBJECT.gauge(
    "flopwatch_probe_worker_memory_bytes",
    help="Device memory held by the probe worker; on a host processor, its resident memory.",
    interpretation="The memory that probing takes from the server on the same GPU.",
)


def summary_samples(
    labels: Labels,
    baseline_ratio: Mapping[str, float],
    mismatches: Mapping[str, int],
    last_success_seconds: Mapping[str, float],
) -> Iterator[Sample]:
    """A device's kernels combined: one series per device, where rules would read one per kernel.

    Each argument is by kernel. Speed is judged by GEMMs and the device copy; host copies and launches depend on the host.
    """
    ratios = [ratio for kernel, ratio in baseline_ratio.items() if _judged(kernel)]
    yield from optional(PROBE_LOWEST_BASELINE_RATIO, labels, min(ratios, default=None))
    wrong = sum(mismatches.values()) if mismatches else None
    yield from optional(PROBE_WRONG_RESULTS_TOTAL, labels, wrong)
    times = [at for kernel, at in last_success_seconds.items() if _judged(kernel)]
    newest = max(times, default=None)
    yield from optional(PROBE_NEWEST_SUCCESS_TIMESTAMP_SECONDS, labels, newest)


def _judged(kernel: str) -> bool:
    return kernel.startswith("gemm_") or kernel == "copy_device"


def probe_samples(device: ProbeResults) -> Iterator[Sample]:
    """All samples of a probed device."""
    labels: Labels = (("gpu", device.device), ("uuid", device.uuid))
    if device.instance is not None:
        labels = (*labels, (MIG_LABEL, device.instance))
    yield from by_label(PROBE_FLOPS, labels, "precision", device.flops)
    yield from by_label(PROBE_EFFICIENCY_RATIO, labels, "precision", device.efficiency_ratio)
    yield from optional(PROBE_SM_CLOCK_HERTZ, labels, device.sm_clock_hertz)
    for (path, peer), bandwidth in device.bandwidth_bytes_per_second.items():
        yield Sample(
            PROBE_BANDWIDTH_BYTES_PER_SECOND,
            (*labels, ("path", path), ("peer", peer)),
            bandwidth,
        )
    yield from optional(PROBE_LAUNCH_LATENCY_SECONDS, labels, device.launch_latency_seconds)
    yield from by_label(PROBE_BASELINE_RATIO, labels, "kernel", device.baseline_ratio)
    if device.tenant_busy_ratio is not None:
        low, high = device.tenant_busy_ratio
        bounds = {"low": low, "high": high}
        yield from by_label(PROBE_TENANT_BUSY_RATIO, labels, "bound", bounds)
    yield from by_label(PROBE_MISMATCHES_TOTAL, labels, "kernel", device.mismatches)
    for (kernel, outcome), count in device.runs.items():
        yield Sample(
            PROBE_RUNS_TOTAL,
            (*labels, ("kernel", kernel), ("outcome", outcome)),
            float(count),
        )
    yield from by_label(PROBE_FAILURES_IN_A_ROW, labels, "kernel", device.failures_in_a_row)
    for reason, count in device.skips.items():
        yield Sample(PROBE_SKIPS_TOTAL, (*labels, ("reason", reason)), float(count))
    yield Sample(PROBE_GPU_SECONDS_TOTAL, labels, device.gpu_seconds)
    yield from by_label(
        PROBE_LAST_SUCCESS_TIMESTAMP_SECONDS, labels, "kernel", device.last_success_seconds
    )
    yield from summary_samples(
        labels, device.baseline_ratio, device.mismatches, device.last_success_seconds
    )
    yield from optional(PROBE_COVERAGE_RATIO, labels, device.coverage_ratio)
    yield Sample(PROBE_WORKER_RESTARTS_TOTAL, labels, float(device.worker_restarts))
    memory = device.worker_memory_bytes
    yield from optional(
        PROBE_WORKER_MEMORY_BYTES, labels, None if memory is None else float(memory)
    )


PROBES = Samples(probe_samples)
