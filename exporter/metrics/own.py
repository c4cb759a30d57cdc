"""The exporter itself."""

from exporter.metrics.family import Family, MetricType


GAUGE, COUNTER, HISTOGRAM = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM

BUILD_INFO = Family(
    name="flopwatch_build_info",
    type=GAUGE,
    unit="",
    labels=("version", "python_version", "revision"),
    per_device=False,
    help="Version of this exporter, always 1.",
    interpretation="Which version runs where.",
)
GPU_UP = Family(
    name="flopwatch_gpu_up",
    type=GAUGE,
    unit="",
    help="1 when the device answered its last tick in time, else 0.",
    interpretation='0: lost, hung, or the driver is gone. gpu="unknown" while the driver has not answered yet.',
)
SOURCE_UP = Family(
    name="flopwatch_source_up",
    type=GAUGE,
    unit="",
    labels=("source",),
    help="1 when the source delivers for this device, 0 when it fails or is not available.",
    interpretation="Which counters stand behind the FLOPS of this device.",
)
SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS = Family(
    name="flopwatch_source_last_success_timestamp_seconds",
    type=GAUGE,
    unit="seconds",
    labels=("source",),
    help="Unix time of the source's last successful reading.",
    interpretation="Data older than a few ticks is not exported; this says since when.",
)
SOURCE_ERRORS_TOTAL = Family(
    name="flopwatch_source_errors_total",
    type=COUNTER,
    unit="errors",
    labels=("source", "reason"),
    help="Failed or refused readings by source and reason.",
    interpretation="Which call fails, and how.",
)
SOURCE_FIELD_MISSING = Family(
    name="flopwatch_source_field_missing",
    type=GAUGE,
    unit="",
    labels=("source", "field"),
    help="1 for each field that the source does not give for this device and that FLOPS or the time's "
    "states need; absent where nothing is missing.",
    interpretation="Which lines to add to the counters file of dcgm-exporter (-f, DCGM_EXPORTER_COLLECTORS).",
)
SOURCE_HUNG = Family(
    name="flopwatch_source_hung",
    type=GAUGE,
    unit="",
    help="1 while a driver call has not returned for longer than the deadline.",
    interpretation="The driver is stuck; other devices go on.",
)
TICK_DURATION_SECONDS = Family(
    name="flopwatch_tick_duration_seconds",
    type=HISTOGRAM,
    unit="seconds",
    help="Time that one sampling tick took.",
    interpretation="Grows when the driver is slow.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
TICKS_MISSED_TOTAL = Family(
    name="flopwatch_ticks_missed_total",
    type=COUNTER,
    unit="ticks",
    help="Ticks that did not start on time because the one before took too long.",
    interpretation="The next window is longer: nothing is lost unless the device was hung or gone.",
)
SERIES = Family(
    name="flopwatch_series",
    type=GAUGE,
    unit="series",
    per_device=False,
    help="Series in this exposition.",
    interpretation="What this exporter costs your Prometheus.",
)
SERIES_DROPPED_TOTAL = Family(
    name="flopwatch_series_dropped_total",
    type=COUNTER,
    unit="series",
    per_device=False,
    help="Series left out because of limits.series, one per series and exposition.",
    interpretation="Raise limits.series, or find out what multiplies.",
)
CONFIG_LAST_RELOAD_SUCCESSFUL = Family(
    name="flopwatch_config_last_reload_successful",
    type=GAUGE,
    unit="",
    per_device=False,
    help="1 when the last load of the configuration succeeded.",
    interpretation="0: the old configuration is still in force.",
)
CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS = Family(
    name="flopwatch_config_last_reload_success_timestamp_seconds",
    type=GAUGE,
    unit="seconds",
    per_device=False,
    help="Unix time of the last successful load of the configuration.",
    interpretation="Since when the configuration in force is in force.",
)

FAMILIES = (
    BUILD_INFO,
    GPU_UP,
    SOURCE_UP,
    SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS,
    SOURCE_ERRORS_TOTAL,
    SOURCE_FIELD_MISSING,
    SOURCE_HUNG,
    TICK_DURATION_SECONDS,
    TICKS_MISSED_TOTAL,
    SERIES,
    SERIES_DROPPED_TOTAL,
    CONFIG_LAST_RELOAD_SUCCESSFUL,
    CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS,
)
