"""The exporter itself: its version and configuration, and the health of each device and source."""

import platform
from collections.abc import Iterator

from exporter import REVISION, VERSION
from exporter.accounting.device import TICK_DURATION_BOUNDS
from exporter.device_state import UNKNOWN, DeviceState
from exporter.metrics.device import XID_ERRORS_TOTAL, XID_LAST_TIMESTAMP_SECONDS
from exporter.metrics.family import Sample, Subject
from exporter.metrics.rows import ByKey, ByLabel, HistogramRow, Rows, Samples, Value
from exporter.state import ReloadStatus, State


SUBJECT = Subject("The exporter itself")

BUILD_INFO = SUBJECT.gauge(
    "flopwatch_build_info",
    labels=("version", "python_version", "revision"),
    per_device=False,
    help="Version of the exporter, always 1.",
    interpretation="Which version runs where.",
)
GPU_UP = SUBJECT.gauge(
    "flopwatch_gpu_up",
    help="Whether the device answered its last tick in time, 1 or 0.",
    interpretation=(
        '0: the device is lost or hung, or the driver is not loaded. gpu="unknown" until the '
        "driver has answered for the first time."
    ),
)
SOURCE_UP = SUBJECT.gauge(
    "flopwatch_source_up",
    labels=("source",),
    help="Whether the source delivers data for this device, 1 or 0.",
    interpretation="Which counters the FLOPS of this device come from.",
)
SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS = SUBJECT.gauge(
    "flopwatch_source_last_success_timestamp_seconds",
    labels=("source",),
    help="Unix time of the source's last successful reading.",
    interpretation="When data was last read. Data older than a few ticks is not exported.",
)
SOURCE_ERRORS_TOTAL = SUBJECT.counter(
    "flopwatch_source_errors_total",
    unit="errors",
    labels=("source", "reason"),
    help="Failed or refused readings by source and reason.",
    interpretation="Which call fails, and how.",
)
SOURCE_FIELD_MISSING = SUBJECT.gauge(
    "flopwatch_source_field_missing",
    labels=("source", "field"),
    help=(
        "Data that the source does not provide for this device, always 1. dcgm: a field that "
        "FLOPS or the time split need. nvml: a capability that the driver does not offer. "
        "Absent if nothing is missing."
    ),
    interpretation=(
        "dcgm: the fields to add to the counters file of dcgm-exporter (-f, "
        "DCGM_EXPORTER_COLLECTORS). nvml: what this driver or GPU does not report."
    ),
)
SOURCE_HUNG = SUBJECT.gauge(
    "flopwatch_source_hung",
    help="Whether a driver call has exceeded its deadline without returning, 1 or 0.",
    interpretation="1: the driver is stuck. Other devices are not affected.",
)
TICK_DURATION_SECONDS = SUBJECT.histogram(
    "flopwatch_tick_duration_seconds",
    buckets=TICK_DURATION_BOUNDS,
    help="Duration of a sampling tick.",
    interpretation="Grows when the driver is slow.",
)
TICKS_MISSED_TOTAL = SUBJECT.counter(
    "flopwatch_ticks_missed_total",
    unit="ticks",
    help="Ticks that did not start on time because the previous tick took too long.",
    interpretation="The next window is longer. No data is lost unless the device was hung or lost.",
)
SERIES = SUBJECT.gauge(
    "flopwatch_series",
    unit="series",
    per_device=False,
    help="Number of series in this exposition.",
    interpretation="The load on Prometheus.",
)
SERIES_DROPPED_TOTAL = SUBJECT.counter(
    "flopwatch_series_dropped_total",
    unit="series",
    per_device=False,
    help="Series dropped because of limits.series, one per series and exposition.",
    interpretation="Raise limits.series, or find the label with too many values.",
)
LOG_LINES_DROPPED_TOTAL = SUBJECT.counter(
    "flopwatch_log_lines_dropped_total",
    unit="lines",
    per_device=False,
    help="Log lines dropped because standard error was not read in time.",
    interpretation="Grows when the reader of the log is stuck. Sampling and scrapes continue.",
)
CONFIG_LAST_RELOAD_SUCCESSFUL = SUBJECT.gauge(
    "flopwatch_config_last_reload_successful",
    per_device=False,
    help="Whether the last load of the configuration succeeded, 1 or 0.",
    interpretation="0: the previous configuration is still active.",
)
CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS = SUBJECT.gauge(
    "flopwatch_config_last_reload_success_timestamp_seconds",
    per_device=False,
    help="Unix time of the last successful load of the configuration.",
    interpretation="When the active configuration was loaded.",
)


def own_samples(reload: ReloadStatus) -> Iterator[Sample]:
    """Version and configuration."""
    yield Sample(
        BUILD_INFO,
        (
            ("version", VERSION),
            ("python_version", platform.python_version()),
            ("revision", REVISION),
        ),
        1.0,
    )
    yield Sample(CONFIG_LAST_RELOAD_SUCCESSFUL, (), float(reload.successful))
    yield Sample(CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS, (), reload.last_success_unix_seconds)


OWN = Samples(own_samples)

LOG_ROWS = Rows[int](Value(LOG_LINES_DROPPED_TOTAL, lambda dropped: dropped))

# What is exported for a device in any condition.
HEALTH_ROWS = Rows[DeviceState](
    Value(GPU_UP, lambda device: device.up),
    Value(SOURCE_HUNG, lambda device: device.absent == "hung"),
    # An instance is sampled in its GPU's ticks.
    Value(
        TICKS_MISSED_TOTAL,
        lambda device: device.ticks_missed if device.identity.mig is None else None,
    ),
    HistogramRow(
        TICK_DURATION_SECONDS,
        lambda device: {} if device.tick_duration is None else {"": device.tick_duration},
    ),
    ByLabel(XID_ERRORS_TOTAL, "xid", lambda device: device.xids.counts),
    ByLabel(XID_LAST_TIMESTAMP_SECONDS, "xid", lambda device: device.xids.last_unix_seconds),
    ByLabel(
        SOURCE_UP,
        "source",
        lambda device: {source: health.up for source, health in device.sources.items()},
    ),
    ByLabel(
        SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS,
        "source",
        lambda device: {
            source: health.last_success_unix_seconds
            for source, health in device.sources.items()
            if health.last_success_unix_seconds is not None
        },
    ),
    ByKey(
        SOURCE_ERRORS_TOTAL,
        lambda key: (("source", key[0]), ("reason", key[1])),
        lambda device: {
            (source, reason): count
            for source, health in device.sources.items()
            for reason, count in health.errors.items()
        },
    ),
    ByKey(
        SOURCE_FIELD_MISSING,
        lambda key: (("source", key[0]), ("field", key[1])),
        lambda device: {
            (source, field): 1
            for source, health in device.sources.items()
            for field in health.missing_fields
        },
    ),
)


def _no_device_samples(state: State) -> Iterator[Sample]:
    labels = (("gpu", UNKNOWN), ("uuid", UNKNOWN))
    yield Sample(GPU_UP, labels, 0.0)
    yield Sample(SOURCE_HUNG, labels, float(state.hung))
    if state.driver_error is not None:
        reason = (("source", "nvml"), ("reason", state.driver_error))
        yield Sample(SOURCE_ERRORS_TOTAL, (*labels, *reason), 1.0)


# While there is no device, its absence is exported, so that it can be alerted on.
NO_DEVICE = Samples(_no_device_samples, key=lambda state: (state.hung, state.driver_error))

# Of the exposition itself: the number of its series, and of those dropped so far.
EXPOSITION_ROWS = Rows[tuple[int, int]](
    Value(SERIES, lambda counts: counts[0]),
    Value(SERIES_DROPPED_TOTAL, lambda counts: counts[1]),
)
