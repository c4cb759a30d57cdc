"""The device's own counters, as NVML gives them."""

from exporter.metrics.family import Family, MetricType


GAUGE, COUNTER, HISTOGRAM = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM

SM_CLOCK_HERTZ = Family(
    name="flopwatch_sm_clock_hertz",
    type=GAUGE,
    unit="hertz",
    help="SM clock, mean over the last tick.",
    interpretation="Below its maximum while busy: see flopwatch_clock_event for the reason.",
)
SM_CLOCK_MAX_HERTZ = Family(
    name="flopwatch_sm_clock_max_hertz",
    type=GAUGE,
    unit="hertz",
    help="Maximum SM clock (NVML).",
    interpretation="The clock at which flopwatch_gpu_seconds_total counts no clock loss.",
)
MEMORY_CLOCK_HERTZ = Family(
    name="flopwatch_memory_clock_hertz",
    type=GAUGE,
    unit="hertz",
    help="Memory clock (NVML).",
    interpretation="Falls in low performance states, and with it the memory bandwidth.",
)
CLOCK_EVENT_SECONDS_TOTAL = Family(
    name="flopwatch_clock_event_seconds_total",
    type=COUNTER,
    unit="seconds",
    labels=("reason",),
    help="Time for which a clock event reason held: the driver's own counters where it has them, else the reason bits integrated over ticks.",
    interpretation="What held the clock down, and for how long.",
)
CLOCK_EVENT = Family(
    name="flopwatch_clock_event",
    type=GAUGE,
    unit="",
    labels=("reason",),
    help="1 while the clock event reason holds, else 0 (NVML, last tick).",
    interpretation="Why the clock is what it is right now.",
)
POWER_WATTS = Family(
    name="flopwatch_power_watts",
    type=GAUGE,
    unit="watts",
    help="Power draw of the board (NVML; a 1 s mean on most GPUs).",
    interpretation="At the limit while clocks fall: power-capped.",
)
POWER_LIMIT_WATTS = Family(
    name="flopwatch_power_limit_watts",
    type=GAUGE,
    unit="watts",
    help="Enforced power limit (NVML).",
    interpretation="Below the model's default: somebody lowered it.",
)
MODULE_POWER_WATTS = Family(
    name="flopwatch_module_power_watts",
    type=GAUGE,
    unit="watts",
    help="Power draw of the module, Grace processor and GPU together (NVML, scope module). Every GPU of a module shows the same. Absent elsewhere.",
    interpretation="What the rack pays for; minus flopwatch_power_watts it is processor and its memory.",
)
MODULE_ENERGY_JOULES_TOTAL = Family(
    name="flopwatch_module_energy_joules_total",
    type=COUNTER,
    unit="joules",
    help="Energy of the module, Grace processor and GPU together, since the driver was loaded (NVML, scope module). Absent elsewhere.",
    interpretation="`rate()` is the module's power without aliasing. Take one GPU of each module.",
)
MODULE_POWER_LIMIT_WATTS = Family(
    name="flopwatch_module_power_limit_watts",
    type=GAUGE,
    unit="watts",
    help="Enforced power limit of the module, Grace processor and GPU together (NVML, scope module). Absent elsewhere.",
    interpretation="A module at its limit takes power from the GPU when the processor works.",
)
TEMPERATURE_CELSIUS = Family(
    name="flopwatch_temperature_celsius",
    type=GAUGE,
    unit="celsius",
    labels=("sensor",),
    help="Temperature by sensor: gpu, memory (NVML).",
    interpretation="Memory throttles from about 95, the GPU from about 85 degrees.",
)
MEMORY_SIZE_BYTES = Family(
    name="flopwatch_memory_size_bytes",
    type=GAUGE,
    unit="bytes",
    help="Device memory (NVML).",
    interpretation="The budget for weights and KV cache.",
)
MEMORY_USED_BYTES = Family(
    name="flopwatch_memory_used_bytes",
    type=GAUGE,
    unit="bytes",
    help="Device memory in use, without what the driver reserves (NVML).",
    interpretation="Inference servers take nearly all of it at start.",
)
MEMORY_FREE_BYTES = Family(
    name="flopwatch_memory_free_bytes",
    type=GAUGE,
    unit="bytes",
    help="Device memory free (NVML).",
    interpretation="Probes hold off when little is left.",
)
MEMORY_RESERVED_BYTES = Family(
    name="flopwatch_memory_reserved_bytes",
    type=GAUGE,
    unit="bytes",
    help="Device memory reserved by driver and firmware (NVML).",
    interpretation="Grows with ECC and page retirement.",
)
ENGINE_UTILIZATION_RATIO = Family(
    name="flopwatch_engine_utilization_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("engine",),
    help="Share of time in which the engine was busy: gpu, memory, encoder, decoder, jpeg, ofa (NVML).",
    interpretation="`gpu` is nvidia-smi's utilization: a kernel was resident, no more.",
)
ECC_ERRORS_TOTAL = Family(
    name="flopwatch_ecc_errors_total",
    type=COUNTER,
    unit="errors",
    labels=("kind",),
    help="ECC errors over the device's lifetime: corrected, uncorrected (NVML, aggregate).",
    interpretation="Any new uncorrected error deserves a look, a burst of corrected ones too.",
)
REMAPPED_ROWS = Family(
    name="flopwatch_remapped_rows",
    type=GAUGE,
    unit="rows",
    labels=("kind",),
    help="Memory rows remapped after errors: corrected, uncorrected (NVML; Ampere and newer).",
    interpretation="Grows as memory ages.",
)
ROW_REMAP_PENDING = Family(
    name="flopwatch_row_remap_pending",
    type=GAUGE,
    unit="",
    help="1 when a row remap waits for a GPU reset (NVML).",
    interpretation="Drain and reset the GPU at the next chance.",
)
ROW_REMAP_FAILED = Family(
    name="flopwatch_row_remap_failed",
    type=GAUGE,
    unit="",
    help="1 when a row could not be remapped (NVML).",
    interpretation="The vendor's criterion for replacing the board.",
)
RETIRED_PAGES = Family(
    name="flopwatch_retired_pages",
    type=GAUGE,
    unit="pages",
    labels=("kind",),
    help="Memory pages retired: single_bit, double_bit (NVML; before Ampere).",
    interpretation="Above 60 the vendor replaces the board.",
)
XID_ERRORS_TOTAL = Family(
    name="flopwatch_xid_errors_total",
    type=COUNTER,
    unit="errors",
    labels=("xid",),
    help="XID events since the exporter started, by code (NVML events).",
    interpretation="What the driver had to say: 48, 63, 64, 74, 79, 94, 95 are hardware; 13, 31, 43 are the application's.",
)
XID_LAST_TIMESTAMP_SECONDS = Family(
    name="flopwatch_xid_last_timestamp_seconds",
    type=GAUGE,
    unit="seconds",
    labels=("xid",),
    help="Unix time of the last XID event of this code.",
    interpretation="Line it up with what the server logged.",
)
PCIE_LINK_GENERATION = Family(
    name="flopwatch_pcie_link_generation",
    type=GAUGE,
    unit="",
    help="PCIe generation of the link now (NVML). Idle links train down.",
    interpretation="Below its maximum while busy: reseat or replace.",
)
PCIE_LINK_GENERATION_MAX = Family(
    name="flopwatch_pcie_link_generation_max",
    type=GAUGE,
    unit="",
    help="PCIe generation that GPU and slot can reach (NVML).",
    interpretation="The yardstick for flopwatch_pcie_link_generation.",
)
PCIE_LINK_WIDTH = Family(
    name="flopwatch_pcie_link_width",
    type=GAUGE,
    unit="lanes",
    help="PCIe lanes in use now (NVML).",
    interpretation="Below its maximum: lanes lost, half the bandwidth gone.",
)
PCIE_LINK_WIDTH_MAX = Family(
    name="flopwatch_pcie_link_width_max",
    type=GAUGE,
    unit="lanes",
    help="PCIe lanes that GPU and slot can use (NVML).",
    interpretation="The yardstick for flopwatch_pcie_link_width.",
)
PCIE_REPLAYS_TOTAL = Family(
    name="flopwatch_pcie_replays_total",
    type=COUNTER,
    unit="replays",
    help="PCIe replays, the device's own counter (NVML).",
    interpretation="A steady rate points to the slot, riser or cable.",
)
RECOVERY_ACTION = Family(
    name="flopwatch_recovery_action",
    type=GAUGE,
    unit="",
    labels=("action",),
    help="1 for the action that the driver recommends, 0 for the others (NVML).",
    interpretation="Anything but `none` needs a hand.",
)
TENSOR_STALL_RATIO = Family(
    name="flopwatch_tensor_stall_ratio",
    type=GAUGE,
    unit="ratio",
    help="Share of cycles in which the tensor pipe stalled, where the driver gives it (NVML MMA stall).",
    interpretation="High beside high tensor activity: operands arrive late.",
)
NVLINK_UP = Family(
    name="flopwatch_nvlink_up",
    type=GAUGE,
    unit="",
    labels=("link",),
    help="1 when the NVLink is active (NVML).",
    interpretation="A link down halves nothing at once, but slows every all-reduce.",
)
NVLINKS_UP = Family(
    name="flopwatch_nvlinks_up",
    type=GAUGE,
    unit="links",
    help="NVLinks that are active (NVML): the sum of flopwatch_nvlink_up.",
    interpretation="Fewer than on the GPUs beside it: a link is down.",
)
NVLINK_ERRORS_TOTAL = Family(
    name="flopwatch_nvlink_errors_total",
    type=COUNTER,
    unit="errors",
    labels=("kind",),
    help="NVLink errors over all links, the device's own counters (NVML field values).",
    interpretation="Replays and recoveries that grow mean a bad link or baseboard.",
)
C2C_UP = Family(
    name="flopwatch_c2c_up",
    type=GAUGE,
    unit="",
    labels=("link",),
    help="1 when the C2C link to the Grace processor is active (NVML). Absent without C2C.",
    interpretation="A link down takes its share of the bandwidth to the processor's memory.",
)
C2C_LOW_POWER = Family(
    name="flopwatch_c2c_low_power",
    type=GAUGE,
    unit="",
    labels=("link",),
    help="1 while the C2C link is in its low power state (NVML, newer drivers).",
    interpretation="Links may rest when nothing moves; one that rests under load is slow.",
)
C2C_ERRORS_TOTAL = Family(
    name="flopwatch_c2c_errors_total",
    type=COUNTER,
    unit="errors",
    labels=("kind",),
    help="C2C errors over all links: crc, replay, replay_back_to_back; the device's own counters (NVML, newer drivers).",
    interpretation="Replays that grow mean a bad module.",
)
PERFORMANCE_STATE = Family(
    name="flopwatch_performance_state",
    type=GAUGE,
    unit="",
    help="Performance state, 0 is the fastest (NVML).",
    interpretation="Busy and not 0: clocks are held down.",
)
FAN_SPEED_RATIO = Family(
    name="flopwatch_fan_speed_ratio",
    type=GAUGE,
    unit="ratio",
    help="Intended fan speed (NVML), where the board has fans.",
    interpretation="1 and hot: cooling is at its end.",
)
COMPUTE_MODE_INFO = Family(
    name="flopwatch_compute_mode_info",
    type=GAUGE,
    unit="",
    labels=("mode",),
    help="Compute mode, always 1: default, exclusive_process or prohibited (NVML).",
    interpretation="Probes skip GPUs that are exclusive and in use.",
)
MIG_MODE = Family(
    name="flopwatch_mig_mode",
    type=GAUGE,
    unit="",
    help="1 when MIG is on (NVML).",
    interpretation="Instances then have series of their own.",
)
PROCESSES = Family(
    name="flopwatch_processes",
    type=GAUGE,
    unit="processes",
    help="Processes with a compute context (NVML).",
    interpretation="More than the server expects: somebody shares the GPU.",
)
PROCESS_MEMORY_BYTES = Family(
    name="flopwatch_process_memory_bytes",
    type=GAUGE,
    unit="bytes",
    labels=("pid", "process"),
    help="Device memory by process (NVML). Off by default: one series per process.",
    interpretation="Who holds the memory.",
)

FAMILIES = (
    SM_CLOCK_HERTZ,
    SM_CLOCK_MAX_HERTZ,
    MEMORY_CLOCK_HERTZ,
    CLOCK_EVENT_SECONDS_TOTAL,
    CLOCK_EVENT,
    POWER_WATTS,
    POWER_LIMIT_WATTS,
    MODULE_POWER_WATTS,
    MODULE_ENERGY_JOULES_TOTAL,
    MODULE_POWER_LIMIT_WATTS,
    TEMPERATURE_CELSIUS,
    MEMORY_SIZE_BYTES,
    MEMORY_USED_BYTES,
    MEMORY_FREE_BYTES,
    MEMORY_RESERVED_BYTES,
    ENGINE_UTILIZATION_RATIO,
    ECC_ERRORS_TOTAL,
    REMAPPED_ROWS,
    ROW_REMAP_PENDING,
    ROW_REMAP_FAILED,
    RETIRED_PAGES,
    XID_ERRORS_TOTAL,
    XID_LAST_TIMESTAMP_SECONDS,
    PCIE_LINK_GENERATION,
    PCIE_LINK_GENERATION_MAX,
    PCIE_LINK_WIDTH,
    PCIE_LINK_WIDTH_MAX,
    PCIE_REPLAYS_TOTAL,
    RECOVERY_ACTION,
    TENSOR_STALL_RATIO,
    NVLINK_UP,
    NVLINKS_UP,
    NVLINK_ERRORS_TOTAL,
    C2C_UP,
    C2C_LOW_POWER,
    C2C_ERRORS_TOTAL,
    PERFORMANCE_STATE,
    FAN_SPEED_RATIO,
    COMPUTE_MODE_INFO,
    MIG_MODE,
    PROCESSES,
    PROCESS_MEMORY_BYTES,
)
