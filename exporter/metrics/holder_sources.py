"""Families on the sources of holders themselves."""

from exporter.metrics.family import Family, MetricType


GAUGE, COUNTER = MetricType.GAUGE, MetricType.COUNTER

HOLDER_SOURCE_UP = Family(
    name="flopwatch_holder_source_up",
    type=GAUGE,
    unit="",
    labels=("source",),
    per_device=False,
    help="1 when the source (pod_resources, job_mapping, job_processes) answered its last reading, else 0. Absent where there is no such source.",
    interpretation="0: who holds the GPUs is not known, or will not be in half a minute.",
)
HOLDER_SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS = Family(
    name="flopwatch_holder_source_last_success_timestamp_seconds",
    type=GAUGE,
    unit="seconds",
    labels=("source",),
    per_device=False,
    help="Unix time of the source's last successful reading.",
    interpretation="An answer is shown for three intervals (30 s) without a newer one.",
)
HOLDER_SOURCE_ERRORS_TOTAL = Family(
    name="flopwatch_holder_source_errors_total",
    type=COUNTER,
    unit="errors",
    labels=("source", "reason"),
    per_device=False,
    help="Failed readings by source and reason.",
    interpretation="permission: the socket's folder is not mounted, or the daemon is not in its group.",
)
HOLDER_UNKNOWN_DEVICES = Family(
    name="flopwatch_holder_unknown_devices",
    type=GAUGE,
    unit="devices",
    per_device=False,
    help="Devices that are held, by pods or jobs, but that this exporter does not see.",
    interpretation="Above 0: a GPU is lost, or hidden from the exporter's container.",
)

FAMILIES = (
    HOLDER_SOURCE_UP,
    HOLDER_SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS,
    HOLDER_SOURCE_ERRORS_TOTAL,
    HOLDER_UNKNOWN_DEVICES,
)
