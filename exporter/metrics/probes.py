"""What the micro-probes measured, and what they cost."""

from exporter.metrics.family import Family, MetricType


GAUGE, COUNTER, HISTOGRAM = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM

PROBE_FLOPS = Family(
    name="flopwatch_probe_flops",
    type=GAUGE,
    unit="FLOP/s",
    labels=("precision",),
    help="Last accepted GEMM measurement of the micro-probe.",
    interpretation="What the GPU could deliver now. 60-90 % of the data sheet is normal.",
)
PROBE_EFFICIENCY_RATIO = Family(
    name="flopwatch_probe_efficiency_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("precision",),
    help="FLOP per clock and SM that the probe reached over what is possible, at the SM clock measured during the probe.",
    interpretation="The hardware's health with the clock divided out: it should not move.",
)
PROBE_SM_CLOCK_HERTZ = Family(
    name="flopwatch_probe_sm_clock_hertz",
    type=GAUGE,
    unit="hertz",
    help="SM clock measured on the device during the last probe.",
    interpretation="Lower clock at the same efficiency is power or heat, not sick silicon.",
)
PROBE_BANDWIDTH_BYTES_PER_SECOND = Family(
    name="flopwatch_probe_bandwidth_bytes_per_second",
    type=GAUGE,
    unit="bytes/s",
    labels=("path", "peer"),
    help="Bandwidth that the probe measured by path: device (bytes read plus written), host_to_device, device_to_host, peer.",
    interpretation="Device memory, PCIe and NVLink as they are today.",
)
PROBE_LAUNCH_LATENCY_SECONDS = Family(
    name="flopwatch_probe_launch_latency_seconds",
    type=GAUGE,
    unit="seconds",
    help="Empty-kernel launch to completion, median of the last probe.",
    interpretation="Grows with a busy host, a busy GPU, or a deep power state.",
)
PROBE_BASELINE_RATIO = Family(
    name="flopwatch_probe_baseline_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("kernel",),
    help="Last accepted measurement over this device's own baseline for the same kernel and software versions.",
    interpretation="Below 0.95 the GPU became slower than it was.",
)
PROBE_LOWEST_BASELINE_RATIO = Family(
    name="flopwatch_probe_lowest_baseline_ratio",
    type=GAUGE,
    unit="ratio",
    help="Lowest flopwatch_probe_baseline_ratio of the device's GEMMs and its device copy.",
    interpretation="One number of a device's health, and what the alerts read: below 0.9 it became slower than it was.",
)
PROBE_TENANT_BUSY_RATIO = Family(
    name="flopwatch_probe_tenant_busy_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("bound",),
    help="Share of the GPU that other work took while the probe ran: lower and upper bound.",
    interpretation="How contended the measurement was.",
)
PROBE_MISMATCHES_TOTAL = Family(
    name="flopwatch_probe_mismatches_total",
    type=COUNTER,
    unit="results",
    labels=("kernel",),
    help="Probe results that were not bit for bit the expected ones.",
    interpretation="Silent data corruption. Drain the GPU.",
)
PROBE_WRONG_RESULTS_TOTAL = Family(
    name="flopwatch_probe_wrong_results_total",
    type=COUNTER,
    unit="results",
    help="Sum of flopwatch_probe_mismatches_total over the device's kernels.",
    interpretation="Silent data corruption, whichever kernel showed it.",
)
PROBE_RUNS_TOTAL = Family(
    name="flopwatch_probe_runs_total",
    type=COUNTER,
    unit="runs",
    labels=("kernel", "outcome"),
    help="Probe runs by outcome: ok, contended, throttled, mismatch, out_of_memory, timeout, error.",
    interpretation="Every run ends in exactly one outcome.",
)
PROBE_FAILURES_IN_A_ROW = Family(
    name="flopwatch_probe_failures_in_a_row",
    type=GAUGE,
    unit="runs",
    labels=("kernel",),
    help="Runs of this kernel that ended in an error, a timeout or out of memory since its last accepted one; of kernels that ever failed.",
    interpretation="Grows while a probe can no longer tell anything.",
)
PROBE_SKIPS_TOTAL = Family(
    name="flopwatch_probe_skips_total",
    type=COUNTER,
    unit="runs",
    labels=("reason",),
    help="Probe runs that a gate held back, by reason.",
    interpretation="Why there is no fresh probe result.",
)
PROBE_GPU_SECONDS_TOTAL = Family(
    name="flopwatch_probe_gpu_seconds_total",
    type=COUNTER,
    unit="seconds",
    help="GPU time that the probes took.",
    interpretation="What watching costs.",
)
PROBE_LAST_SUCCESS_TIMESTAMP_SECONDS = Family(
    name="flopwatch_probe_last_success_timestamp_seconds",
    type=GAUGE,
    unit="seconds",
    labels=("kernel",),
    help="Unix time of the last accepted probe of this kernel.",
    interpretation="How old the probe's word is.",
)
PROBE_NEWEST_SUCCESS_TIMESTAMP_SECONDS = Family(
    name="flopwatch_probe_newest_success_timestamp_seconds",
    type=GAUGE,
    unit="seconds",
    help="Unix time of the last accepted probe of the device, of its GEMMs and its device copy.",
    interpretation="Since when nothing is known of the device's speed.",
)
PROBE_WORKER_RESTARTS_TOTAL = Family(
    name="flopwatch_probe_worker_restarts_total",
    type=COUNTER,
    unit="restarts",
    help="Restarts of the probe worker after it died or was killed.",
    interpretation="Should stay at 0.",
)
PROBE_WORKER_MEMORY_BYTES = Family(
    name="flopwatch_probe_worker_memory_bytes",
    type=GAUGE,
    unit="bytes",
    help="Device memory that the probe worker holds; resident memory on a host processor.",
    interpretation="What the probes take from the server beside them.",
)

FAMILIES = (
    PROBE_FLOPS,
    PROBE_EFFICIENCY_RATIO,
    PROBE_SM_CLOCK_HERTZ,
    PROBE_BANDWIDTH_BYTES_PER_SECOND,
    PROBE_LAUNCH_LATENCY_SECONDS,
    PROBE_BASELINE_RATIO,
    PROBE_LOWEST_BASELINE_RATIO,
    PROBE_TENANT_BUSY_RATIO,
    PROBE_MISMATCHES_TOTAL,
    PROBE_WRONG_RESULTS_TOTAL,
    PROBE_RUNS_TOTAL,
    PROBE_FAILURES_IN_A_ROW,
    PROBE_SKIPS_TOTAL,
    PROBE_GPU_SECONDS_TOTAL,
    PROBE_LAST_SUCCESS_TIMESTAMP_SECONDS,
    PROBE_NEWEST_SUCCESS_TIMESTAMP_SECONDS,
    PROBE_WORKER_RESTARTS_TOTAL,
    PROBE_WORKER_MEMORY_BYTES,
)
