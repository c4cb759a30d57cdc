"""The device's own counters, as NVML reports them."""

from collections.abc import Callable, Iterator

from exporter.accounting.time_split import EVENT_REASONS
from exporter.device_state import DeviceState
from exporter.metrics.family import Sample, Subject, device_labels
from exporter.metrics.rows import ByLabel, Info, Rows, Samples, Value
from exporter.readings import DCGM_SOURCE, RECOVERY_ACTIONS, FastReading, SlowReading
from exporter.state import State


SUBJECT = Subject("The device's own counters")

SM_CLOCK_HERTZ = SUBJECT.gauge(
    "flopwatch_sm_clock_hertz",
    help="SM clock, mean over the last tick (NVML or GPM).",
    interpretation="Below the maximum while busy: see flopwatch_clock_event for the reason.",
)
SM_CLOCK_MAX_HERTZ = SUBJECT.gauge(
    "flopwatch_sm_clock_max_hertz",
    help="Maximum SM clock (NVML).",
    interpretation="At this clock flopwatch_gpu_seconds_total counts no clock loss.",
)
MEMORY_CLOCK_HERTZ = SUBJECT.gauge(
    "flopwatch_memory_clock_hertz",
    help="Memory clock (NVML).",
    interpretation="Drops in low performance states, and the memory bandwidth with it.",
)
CLOCK_EVENT_SECONDS_TOTAL = SUBJECT.counter(
    "flopwatch_clock_event_seconds_total",
    labels=("reason",),
    help=(
        "Time for which a clock event reason was active: the driver's own counters if it has "
        "them, else the reason bits integrated over ticks."
    ),
    interpretation="What held the clock down, and for how long.",
)
CLOCK_EVENT = SUBJECT.gauge(
    "flopwatch_clock_event",
    labels=("reason",),
    help="Whether the clock event reason is active, 1 or 0 (NVML, last tick).",
    interpretation="What holds the clock down now.",
)
POWER_WATTS = SUBJECT.gauge(
    "flopwatch_power_watts",
    help="Power draw of the board (NVML; a 1 s mean on most GPUs).",
    interpretation="At the limit while clocks drop: power-capped.",
)
POWER_LIMIT_WATTS = SUBJECT.gauge(
    "flopwatch_power_limit_watts",
    help="Enforced power limit (NVML).",
    interpretation="Below the default of the model: the limit was lowered on purpose.",
)
MODULE_POWER_WATTS = SUBJECT.gauge(
    "flopwatch_module_power_watts",
    help=(
        "Power draw of the module, Grace processor and GPU together (NVML, scope module). The "
        "same for every GPU of a module. Absent on other boards."
    ),
    interpretation=(
        "The power of the whole module. The difference from flopwatch_power_watts is the processor "
        "and its memory."
    ),
)
MODULE_ENERGY_JOULES_TOTAL = SUBJECT.counter(
    "flopwatch_module_energy_joules_total",
    help=(
        "Energy used by the module, Grace processor and GPU together, since the driver was "
        "loaded (NVML, scope module). Absent on other boards."
    ),
    interpretation="`rate()` is the module's mean power. Use one GPU of each module.",
)
MODULE_POWER_LIMIT_WATTS = SUBJECT.gauge(
    "flopwatch_module_power_limit_watts",
    help=(
        "Enforced power limit of the module, Grace processor and GPU together (NVML, scope "
        "module). Absent on other boards."
    ),
    interpretation="A module at its limit takes power from the GPU when the processor is busy.",
)
TEMPERATURE_CELSIUS = SUBJECT.gauge(
    "flopwatch_temperature_celsius",
    labels=("sensor",),
    help="Temperature by sensor: gpu, memory (NVML).",
    interpretation="The memory throttles from about 95 degrees, the GPU from about 85.",
)
MEMORY_SIZE_BYTES = SUBJECT.gauge(
    "flopwatch_memory_size_bytes",
    help="Size of the device memory (NVML).",
    interpretation="The budget for weights and KV cache.",
)
MEMORY_USED_BYTES = SUBJECT.gauge(
    "flopwatch_memory_used_bytes",
    help="Device memory in use, excluding memory reserved by the driver (NVML).",
    interpretation="Inference servers allocate nearly all of it at start.",
)
MEMORY_FREE_BYTES = SUBJECT.gauge(
    "flopwatch_memory_free_bytes",
    help="Free device memory (NVML).",
    interpretation="Probes are skipped when little is left.",
)
MEMORY_RESERVED_BYTES = SUBJECT.gauge(
    "flopwatch_memory_reserved_bytes",
    help="Device memory reserved by driver and firmware (NVML).",
    interpretation="Grows with ECC and page retirement.",
)
ENGINE_UTILIZATION_RATIO = SUBJECT.gauge(
    "flopwatch_engine_utilization_ratio",
    labels=("engine",),
    help=(
        "Share of time in which the engine was busy: gpu, memory, encoder, decoder, jpeg, ofa "
        "(NVML)."
    ),
    interpretation="`gpu` is the utilization shown by nvidia-smi: a kernel was resident, no more.",
)
ECC_ERRORS_TOTAL = SUBJECT.counter(
    "flopwatch_ecc_errors_total",
    unit="errors",
    labels=("kind",),
    help="ECC errors over the device's lifetime: corrected, uncorrected (NVML, aggregate).",
    interpretation="Investigate any new uncorrected error, and bursts of corrected ones.",
)
REMAPPED_ROWS = SUBJECT.gauge(
    "flopwatch_remapped_rows",
    unit="rows",
    labels=("kind",),
    help="Memory rows remapped after errors: corrected, uncorrected (NVML; Ampere and newer).",
    interpretation="Grows as the memory ages.",
)
ROW_REMAP_PENDING = SUBJECT.gauge(
    "flopwatch_row_remap_pending",
    help="Whether a row remap is pending until a GPU reset, 1 or 0 (NVML).",
    interpretation="1: drain and reset the GPU at the next opportunity.",
)
ROW_REMAP_FAILED = SUBJECT.gauge(
    "flopwatch_row_remap_failed",
    help="Whether a row remap has failed, 1 or 0 (NVML).",
    interpretation="1: meets the vendor's criterion for replacing the board.",
)
RETIRED_PAGES = SUBJECT.gauge(
    "flopwatch_retired_pages",
    unit="pages",
    labels=("kind",),
    help="Retired memory pages: single_bit, double_bit (NVML; before Ampere).",
    interpretation="Above 60 the vendor replaces the board.",
)
XID_ERRORS_TOTAL = SUBJECT.counter(
    "flopwatch_xid_errors_total",
    unit="errors",
    labels=("xid",),
    help="XID events since the exporter started, by code (NVML events).",
    interpretation=(
        "Driver errors: 48, 63, 64, 74, 79, 94 and 95 are caused by hardware; 13, 31 and 43 by "
        "the application."
    ),
)
XID_LAST_TIMESTAMP_SECONDS = SUBJECT.gauge(
    "flopwatch_xid_last_timestamp_seconds",
    labels=("xid",),
    help="Unix time of the last XID event of this code (NVML events).",
    interpretation="Compare it with the server's log.",
)
PCIE_LINK_GENERATION = SUBJECT.gauge(
    "flopwatch_pcie_link_generation",
    help="Current PCIe generation of the link (NVML). Idle links train down.",
    interpretation="Below the maximum while busy: reseat or replace the board.",
)
PCIE_LINK_GENERATION_MAX = SUBJECT.gauge(
    "flopwatch_pcie_link_generation_max",
    help="Highest PCIe generation that GPU and slot support (NVML).",
    interpretation="The reference for flopwatch_pcie_link_generation.",
)
PCIE_LINK_WIDTH = SUBJECT.gauge(
    "flopwatch_pcie_link_width",
    unit="lanes",
    help="PCIe lanes in use (NVML).",
    interpretation="Below the maximum: lanes are lost, and bandwidth with them.",
)
PCIE_LINK_WIDTH_MAX = SUBJECT.gauge(
    "flopwatch_pcie_link_width_max",
    unit="lanes",
    help="PCIe lanes that GPU and slot support (NVML).",
    interpretation="The reference for flopwatch_pcie_link_width.",
)
PCIE_REPLAYS_TOTAL = SUBJECT.counter(
    "flopwatch_pcie_replays_total",
    unit="replays",
    help="PCIe replays, the device's own counter (NVML).",
    interpretation="A steady rate points to the slot, riser or cable.",
)
RECOVERY_ACTION = SUBJECT.gauge(
    "flopwatch_recovery_action",
    labels=("action",),
    help=(
        "Recovery action recommended by the driver: 1 for the recommended action, 0 for the "
        "others (NVML)."
    ),
    interpretation="Anything but `none` requires operator action.",
)
TENSOR_STALL_RATIO = SUBJECT.gauge(
    "flopwatch_tensor_stall_ratio",
    help=(
        "Share of cycles in which the tensor pipe stalled (NVML MMA stall). Absent if the driver "
        "does not report it."
    ),
    interpretation="High together with high tensor activity: operands arrive late.",
)
NVLINK_UP = SUBJECT.gauge(
    "flopwatch_nvlink_up",
    labels=("link",),
    help="Whether the NVLink is active, 1 or 0 (NVML).",
    interpretation="A link that is down slows every all-reduce.",
)
NVLINKS_UP = SUBJECT.gauge(
    "flopwatch_nvlinks_up",
    unit="links",
    help="Number of active NVLinks (NVML): the sum of flopwatch_nvlink_up.",
    interpretation="Fewer than on the other GPUs of the host: a link is down.",
)
NVLINK_ERRORS_TOTAL = SUBJECT.counter(
    "flopwatch_nvlink_errors_total",
    unit="errors",
    labels=("kind",),
    help="NVLink errors over all links, the device's own counters (NVML field values).",
    interpretation="Growing replays and recoveries indicate a bad link or baseboard.",
)
C2C_UP = SUBJECT.gauge(
    "flopwatch_c2c_up",
    labels=("link",),
    help=(
        "Whether the C2C link to the Grace processor is active, 1 or 0 (NVML). Absent without C2C."
    ),
    interpretation="A link that is down reduces the bandwidth to the processor's memory.",
)
C2C_LOW_POWER = SUBJECT.gauge(
    "flopwatch_c2c_low_power",
    labels=("link",),
    help="Whether the C2C link is in its low-power state, 1 or 0 (NVML, newer drivers).",
    interpretation="Normal while no data moves. Under load, such a link is slow.",
)
C2C_ERRORS_TOTAL = SUBJECT.counter(
    "flopwatch_c2c_errors_total",
    unit="errors",
    labels=("kind",),
    help=(
        "C2C errors over all links: crc, replay, replay_back_to_back; the device's own counters "
        "(NVML, newer drivers)."
    ),
    interpretation="Growing replays indicate a bad module.",
)
PERFORMANCE_STATE = SUBJECT.gauge(
    "flopwatch_performance_state",
    help="Performance state, 0 is the fastest (NVML).",
    interpretation="Busy and not 0: clocks are held down.",
)
FAN_SPEED_RATIO = SUBJECT.gauge(
    "flopwatch_fan_speed_ratio",
    help="Intended fan speed (NVML). Absent on boards without fans.",
    interpretation="1 and hot: the cooling is at its limit.",
)
COMPUTE_MODE_INFO = SUBJECT.gauge(
    "flopwatch_compute_mode_info",
    labels=("mode",),
    help="Compute mode, always 1: default, exclusive_process or prohibited (NVML).",
    interpretation="Probes skip GPUs that are exclusive and in use.",
)
MIG_MODE = SUBJECT.gauge(
    "flopwatch_mig_mode",
    help="Whether MIG is enabled, 1 or 0 (NVML).",
    interpretation="The instances have series of their own.",
)
PROCESSES = SUBJECT.gauge(
    "flopwatch_processes",
    unit="processes",
    help="Number of processes with a compute context (NVML).",
    interpretation="More than the server starts: the GPU is shared.",
)
PROCESS_MEMORY_BYTES = SUBJECT.gauge(
    "flopwatch_process_memory_bytes",
    labels=("pid", "process"),
    help="Device memory by process (NVML). Off by default: one series per process.",
    interpretation="Which process holds the memory.",
)


def _sm_clock(device: DeviceState) -> float | None:
    """The mean clock of the window if it is known, else the sampled one."""
    last = device.last
    # A window of dcgm-exporter is older than this tick.
    if last is not None and last.activity.source != DCGM_SOURCE:
        mean = last.clock.mean_hertz
        if mean is not None:
            return mean
    return device.fast.sm_clock_hertz if device.fast else None


def _module_energy(device: DeviceState) -> float | None:
    """The energy, as long as the device answers for it."""
    if device.fast is None or device.fast.module_energy_joules is None:
        return None
    return device.counters.module_energy_joules


def _reason_bit(bit: int) -> Callable[[FastReading], float | None]:
    return lambda fast: None if fast.event_reasons is None else fast.event_reasons & bit != 0


def _recommended(code: int) -> Callable[[FastReading], float | None]:
    return lambda fast: None if fast.recovery_action is None else fast.recovery_action == code


DEVICE_ROWS = Rows[DeviceState](
    Value(SM_CLOCK_HERTZ, _sm_clock),
    Value(SM_CLOCK_MAX_HERTZ, lambda device: device.identity.sm_clock_max_hertz),
    Value(MODULE_ENERGY_JOULES_TOTAL, _module_energy),
    ByLabel(
        CLOCK_EVENT_SECONDS_TOTAL, "reason", lambda device: device.counters.event_reason_seconds
    ),
)
FAST_ROWS = Rows[FastReading](
    Value(MEMORY_CLOCK_HERTZ, lambda fast: fast.memory_clock_hertz),
    Value(POWER_WATTS, lambda fast: fast.power_watts),
    Value(MODULE_POWER_WATTS, lambda fast: fast.module_power_watts),
    Value(MEMORY_SIZE_BYTES, lambda fast: fast.memory_size_bytes),
    Value(MEMORY_USED_BYTES, lambda fast: fast.memory_used_bytes),
    Value(MEMORY_FREE_BYTES, lambda fast: fast.memory_free_bytes),
    Value(MEMORY_RESERVED_BYTES, lambda fast: fast.memory_reserved_bytes),
    Value(PERFORMANCE_STATE, lambda fast: fast.performance_state),
    Value(TENSOR_STALL_RATIO, lambda fast: fast.tensor_stall),
    Value(TEMPERATURE_CELSIUS, lambda fast: fast.temperature_celsius, sensor="gpu"),
    Value(TEMPERATURE_CELSIUS, lambda fast: fast.memory_temperature_celsius, sensor="memory"),
    Value(ENGINE_UTILIZATION_RATIO, lambda fast: fast.gpu_utilization, engine="gpu"),
    Value(ENGINE_UTILIZATION_RATIO, lambda fast: fast.memory_utilization, engine="memory"),
    *(Value(CLOCK_EVENT, _reason_bit(bit), reason=reason) for reason, bit in EVENT_REASONS.items()),
    *(
        Value(RECOVERY_ACTION, _recommended(code), action=action)
        for code, action in RECOVERY_ACTIONS.items()
    ),
)
SLOW_ROWS = Rows[SlowReading](
    Value(POWER_LIMIT_WATTS, lambda slow: slow.power_limit_watts),
    Value(MODULE_POWER_LIMIT_WATTS, lambda slow: slow.module_power_limit_watts),
    Value(ROW_REMAP_PENDING, lambda slow: slow.row_remap_pending),
    Value(ROW_REMAP_FAILED, lambda slow: slow.row_remap_failed),
    Value(PCIE_LINK_GENERATION, lambda slow: slow.pcie_link_generation),
    Value(PCIE_LINK_GENERATION_MAX, lambda slow: slow.pcie_link_generation_max),
    Value(PCIE_LINK_WIDTH, lambda slow: slow.pcie_link_width),
    Value(PCIE_LINK_WIDTH_MAX, lambda slow: slow.pcie_link_width_max),
    Value(PCIE_REPLAYS_TOTAL, lambda slow: slow.pcie_replays),
    Value(FAN_SPEED_RATIO, lambda slow: slow.fan_speed),
    Value(
        NVLINKS_UP,
        lambda slow: (
            sum(slow.nvlink_up.values()) if slow.nvlink_up and not slow.nvlinks_unknown else None
        ),
    ),
    Value(MIG_MODE, lambda slow: slow.mig_enabled),
    Value(
        PROCESSES,
        lambda slow: (
            None if slow.processes is None or slow.processes_incomplete else len(slow.processes)
        ),
    ),
    ByLabel(ENGINE_UTILIZATION_RATIO, "engine", lambda slow: slow.engine_utilization),
    ByLabel(ECC_ERRORS_TOTAL, "kind", lambda slow: slow.ecc_errors),
    ByLabel(REMAPPED_ROWS, "kind", lambda slow: slow.remapped_rows),
    ByLabel(RETIRED_PAGES, "kind", lambda slow: slow.retired_pages),
    ByLabel(NVLINK_UP, "link", lambda slow: slow.nvlink_up),
    ByLabel(NVLINK_ERRORS_TOTAL, "kind", lambda slow: slow.nvlink_errors),
    ByLabel(C2C_UP, "link", lambda slow: slow.c2c_up),
    ByLabel(C2C_LOW_POWER, "link", lambda slow: slow.c2c_low_power),
    ByLabel(C2C_ERRORS_TOTAL, "kind", lambda slow: slow.c2c_errors),
    Info(
        COMPUTE_MODE_INFO,
        lambda slow: None if slow.compute_mode is None else (("mode", slow.compute_mode),),
    ),
)


def process_samples(state: State, name_of: Callable[[int], str]) -> Iterator[Sample]:
    """Memory by process, of devices that answer. `name_of` gives the name of a process by its id."""
    for device in state.devices:
        if device.slow is None:
            continue
        labels = device_labels(device.identity)
        # A process may hold several contexts on one device.
        used: dict[int, int] = {}
        for process in device.slow.processes or ():
            if process.used_bytes is not None:
                used[process.pid] = used.get(process.pid, 0) + process.used_bytes
        for pid, used_bytes in used.items():
            yield Sample(
                PROCESS_MEMORY_BYTES,
                (*labels, ("pid", str(pid)), ("process", name_of(pid))),
                float(used_bytes),
            )


def process_memory(name_of: Callable[[int], str]) -> Samples[State]:
    """Memory by process, read again for every State: an id may belong to another process by now."""
    return Samples(
        lambda state: process_samples(state, name_of), key=lambda state: state.at_seconds
    )
