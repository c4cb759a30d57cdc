"""The device's own counters, as NVML gives them."""

from collections.abc import Callable, Iterable, Iterator

from exporter.accounting.clocks import EVENT_REASONS
from exporter.metrics.family import Sample, Subject
from exporter.metrics.samples import (
    Labels,
    by_label,
    device_labels,
    each_known,
    kept,
    optional,
)
from exporter.readings import DCGM_SOURCE, RECOVERY_ACTIONS, FastReading, SlowReading
from exporter.state import DeviceState, State


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
        "The power of the whole module. The difference to flopwatch_power_watts is the processor "
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


def reading_samples(labels: Labels, snapshot: DeviceState) -> Iterator[Iterable[Sample]]:
    """What the device reports of itself; for a device that answers."""
    yield _clocks(labels, snapshot)
    yield _counters(labels, snapshot)
    if snapshot.fast is not None:
        yield _fast(labels, snapshot.fast)
    if snapshot.slow is not None:
        yield _slow(labels, snapshot.slow)


def _clocks(labels: Labels, snapshot: DeviceState) -> Iterator[Sample]:
    """The window's mean clock where it is known, else the sampled one."""
    clock = snapshot.fast.sm_clock_hertz if snapshot.fast else None
    held = (
        snapshot.last is not None and snapshot.last.activity.source == DCGM_SOURCE
    )  # not of this tick
    if snapshot.last is not None and snapshot.last.clock.mean_hertz is not None and not held:
        clock = snapshot.last.clock.mean_hertz
    yield from each_known(
        labels,
        (
            (SM_CLOCK_HERTZ, clock),
            (SM_CLOCK_MAX_HERTZ, snapshot.identity.sm_clock_max_hertz),
        ),
    )


def _counters(labels: Labels, snapshot: DeviceState) -> Iterator[Sample]:
    counters = snapshot.counters
    if snapshot.fast is not None and snapshot.fast.module_energy_joules is not None:
        yield from optional(MODULE_ENERGY_JOULES_TOTAL, labels, counters.module_energy_joules)
    yield from by_label(CLOCK_EVENT_SECONDS_TOTAL, labels, "reason", counters.event_reason_seconds)


def _fast(labels: Labels, fast: FastReading) -> Iterator[Sample]:
    yield from each_known(
        labels,
        (
            (MEMORY_CLOCK_HERTZ, fast.memory_clock_hertz),
            (POWER_WATTS, fast.power_watts),
            (MODULE_POWER_WATTS, fast.module_power_watts),
            (MEMORY_SIZE_BYTES, fast.memory_size_bytes),
            (MEMORY_USED_BYTES, fast.memory_used_bytes),
            (MEMORY_FREE_BYTES, fast.memory_free_bytes),
            (MEMORY_RESERVED_BYTES, fast.memory_reserved_bytes),
            (PERFORMANCE_STATE, fast.performance_state),
            (TENSOR_STALL_RATIO, fast.tensor_stall),
        ),
    )
    for sensor, celsius in (
        ("gpu", fast.temperature_celsius),
        ("memory", fast.memory_temperature_celsius),
    ):
        yield from optional(TEMPERATURE_CELSIUS, (*labels, ("sensor", sensor)), celsius)
    for engine, share in (("gpu", fast.gpu_utilization), ("memory", fast.memory_utilization)):
        yield from optional(ENGINE_UTILIZATION_RATIO, (*labels, ("engine", engine)), share)
    if fast.event_reasons is not None:
        yield from _clock_events(labels, fast.event_reasons)
    if fast.recovery_action is not None:
        yield from _recovery_actions(labels, fast.recovery_action)


@kept
def _clock_events(labels: Labels, reasons: int) -> Iterator[Sample]:
    for reason, bit in EVENT_REASONS.items():
        held = float(bool(reasons & bit))
        yield Sample(CLOCK_EVENT, (*labels, ("reason", reason)), held)


@kept
def _recovery_actions(labels: Labels, recommended: int) -> Iterator[Sample]:
    for code, action in RECOVERY_ACTIONS.items():
        wanted = float(code == recommended)
        yield Sample(RECOVERY_ACTION, (*labels, ("action", action)), wanted)


@kept
def _slow(labels: Labels, slow: SlowReading) -> Iterator[Sample]:
    yield from each_known(
        labels,
        (
            (POWER_LIMIT_WATTS, slow.power_limit_watts),
            (MODULE_POWER_LIMIT_WATTS, slow.module_power_limit_watts),
            (ROW_REMAP_PENDING, slow.row_remap_pending),
            (ROW_REMAP_FAILED, slow.row_remap_failed),
            (PCIE_LINK_GENERATION, slow.pcie_link_generation),
            (PCIE_LINK_GENERATION_MAX, slow.pcie_link_generation_max),
            (PCIE_LINK_WIDTH, slow.pcie_link_width),
            (PCIE_LINK_WIDTH_MAX, slow.pcie_link_width_max),
            (PCIE_REPLAYS_TOTAL, slow.pcie_replays),
            (FAN_SPEED_RATIO, slow.fan_speed),
            (
                NVLINKS_UP,
                sum(slow.nvlink_up.values())
                if slow.nvlink_up and not slow.nvlinks_unknown
                else None,
            ),
            (MIG_MODE, slow.mig_enabled),
            (
                PROCESSES,
                None
                if slow.processes is None or slow.processes_incomplete
                else len(slow.processes),
            ),
        ),
    )
    for mapped, name, values in (
        (ENGINE_UTILIZATION_RATIO, "engine", slow.engine_utilization),
        (ECC_ERRORS_TOTAL, "kind", slow.ecc_errors),
        (REMAPPED_ROWS, "kind", slow.remapped_rows),
        (RETIRED_PAGES, "kind", slow.retired_pages),
        (NVLINK_UP, "link", slow.nvlink_up),
        (NVLINK_ERRORS_TOTAL, "kind", slow.nvlink_errors),
        (C2C_UP, "link", slow.c2c_up),
        (C2C_LOW_POWER, "link", slow.c2c_low_power),
        (C2C_ERRORS_TOTAL, "kind", slow.c2c_errors),
    ):
        yield from by_label(mapped, labels, name, values)
    if slow.compute_mode is not None:
        yield Sample(COMPUTE_MODE_INFO, (*labels, ("mode", slow.compute_mode)), 1.0)


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
