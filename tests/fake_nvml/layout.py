"""The control block shared with the fake driver library: one description, from which the C header is generated."""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_double, c_int32, c_uint32, c_uint64

from tests.fake_nvml.loads import CYCLE_WEIGHTED, LOAD_FIELDS, REASON_COUNT


MAX_GPUS = 64
MAX_INSTANCES = 7  # MIG GPU instances of one GPU
MAX_SEGMENTS = 4096
MAX_FUNCTIONS = 512
MAX_FIELDS = 512  # field ids end at 310 in nvml.h 13.5
MAX_METRICS = 512  # GPM metric ids end at 477
MAX_PROCESSES = 64
MAX_EVENTS = 1024
MAX_LINKS = 36
ALL_GPUS = 0  # column of a fault or call table that means every GPU; GPU i has column i + 1
COLUMNS = MAX_GPUS + 1
SCHEDULES_PER_GPU = 1 + MAX_INSTANCES
MAGIC = 0x666C6F7077617463

VALUE_COUNT = len(LOAD_FIELDS)

GPM_NONE, GPM_PERCENT, GPM_CYCLES = 0, 1, 2
PROCESS_COMPUTE, PROCESS_GRAPHICS, PROCESS_MPS = 0, 1, 2
CRASH_ABORT, CRASH_SEGFAULT = 1, 2
UNLIMITED = -1


class Segment(ctypes.Structure):
    """One load, from its start on, with everything integrated up to that start."""

    _fields_ = [
        ("start_ns", c_uint64),
        ("values", c_double * VALUE_COUNT),
        ("integrals", c_double * VALUE_COUNT),
        ("reason_seconds", c_double * REASON_COUNT),
    ]


class Schedule(ctypes.Structure):
    """Segments in order of their start. `sequence` is odd while Python writes (a sequence lock)."""

    _fields_ = [
        ("sequence", c_uint64),
        ("count", c_uint64),
        ("segments", Segment * MAX_SEGMENTS),
    ]


class Fault(ctypes.Structure):
    """What happens to a call before it does anything else."""

    _fields_ = [
        ("code", c_int32),
        # How often `code` is still returned; UNLIMITED until cleared; 0 never.
        ("remaining", c_int32),
        ("delay_ns", c_uint64),
        ("hang", c_uint32),
        ("crash", c_uint32),
    ]


class Function(ctypes.Structure):
    """One NVML function: faults, codes that the profile fixes, and how often it was called."""

    _fields_ = [
        ("calls", c_uint64 * COLUMNS),
        ("hanging", c_uint32 * COLUMNS),  # calls that hang right now
        ("faults", Fault * COLUMNS),
        ("profile_code", c_int32 * COLUMNS),
    ]


class Process(ctypes.Structure):
    """A process on a GPU. `instance` is the MIG instance's index, -1 for the whole GPU."""

    _fields_ = [
        ("pid", c_uint32),
        ("kind", c_uint32),
        ("used_bytes", c_uint64),
        ("instance", c_int32),
        ("sm_percent", c_uint32),
        ("name", c_char * 64),
    ]


class Instance(ctypes.Structure):
    """A MIG GPU instance with one compute instance that takes all of it."""

    _fields_ = [
        ("in_use", c_uint32),
        # Changes with every reconfiguration, so that old handles are detected.
        ("generation", c_uint32),
        ("gpu_instance_id", c_uint32),
        ("compute_instance_id", c_uint32),
        ("profile_id", c_uint32),
        ("slice_count", c_uint32),
        ("multiprocessor_count", c_uint32),
        ("placement_start", c_uint32),
        ("placement_size", c_uint32),
        ("copy_engine_count", c_uint32),
        ("decoder_count", c_uint32),
        ("memory_mib", c_uint64),
        ("uuid", c_char * 80),
        ("name", c_char * 96),
    ]


class Link(ctypes.Structure):
    """One NVLink."""

    _fields_ = [
        ("up", c_uint32),
        ("state_code", c_int32),  # what asking for its state returns, if not 0
        ("replay_errors", c_uint64),
        ("recovery_errors", c_uint64),
        ("crc_flit_errors", c_uint64),
        ("crc_data_errors", c_uint64),
        ("ecc_errors", c_uint64),
    ]


class Gpu(ctypes.Structure):
    """Everything about one GPU that is not its load."""

    _fields_ = [
        ("lost", c_uint32),
        ("is_present", c_uint32),
        # Handles of the whole GPU from before it changed are refused.
        ("handle_generation", c_uint32),
        ("name", c_char * 96),
        ("uuid", c_char * 80),
        ("serial", c_char * 32),
        ("board_part_number", c_char * 80),
        ("vbios_version", c_char * 32),
        ("inforom_image_version", c_char * 16),
        ("pci_domain", c_uint32),
        ("pci_bus", c_uint32),
        ("pci_device", c_uint32),
        ("pci_device_id", c_uint32),
        ("pci_subsystem_id", c_uint32),
        ("minor_number", c_uint32),
        ("numa_node", c_uint32),
        ("brand", c_uint32),
        ("architecture", c_uint32),
        ("compute_major", c_uint32),
        ("compute_minor", c_uint32),
        ("num_gpu_cores", c_uint32),
        ("multiprocessor_count", c_uint32),
        ("memory_bus_width_bits", c_uint32),
        ("memory_total_bytes", c_uint64),
        ("memory_reserved_bytes", c_uint64),
        ("bar1_total_bytes", c_uint64),
        ("bar1_used_bytes", c_uint64),
        ("max_sm_clock_mhz", c_uint32),
        ("max_memory_clock_mhz", c_uint32),
        ("max_video_clock_mhz", c_uint32),
        ("max_customer_boost_mhz", c_uint32),
        ("power_limit_mw", c_uint32),
        ("power_limit_default_mw", c_uint32),
        ("power_limit_min_mw", c_uint32),
        ("power_limit_max_mw", c_uint32),
        # Window of PowerUsage and POWER_AVERAGE; 0: the value of the moment.
        ("power_average_ns", c_uint64),
        # Added to the integral of power to give the energy counter.
        ("energy_offset_joules", c_double),
        # 1: the energy counter answers, and never moves.
        ("energy_stands_still", c_uint32),
        ("temperature_shutdown_c", c_uint32),
        ("temperature_slowdown_c", c_uint32),
        ("temperature_memory_max_c", c_uint32),
        ("temperature_gpu_max_c", c_uint32),
        ("supported_event_reasons", c_uint64),
        ("supported_event_types", c_uint64),
        ("pcie_generation", c_uint32),
        ("pcie_generation_max", c_uint32),
        ("pcie_width", c_uint32),
        ("pcie_width_max", c_uint32),
        ("pcie_replays", c_uint64),
        ("pcie_errors", c_uint64 * 11),  # field ids 173 to 183
        ("nvlink_count", c_uint32),
        ("nvlink_version", c_uint32),
        ("nvlink_speed_mbps", c_uint32),
        ("links", Link * MAX_LINKS),
        ("c2c_link_count", c_uint32),
        ("c2c_link_mbps", c_uint32),
        ("c2c_down", c_uint32),  # bits of links that are not active
        ("c2c_low_power", c_uint32),  # bits of links in their low power state
        ("c2c_errors", c_uint64 * 3),  # of link 0: CRC, replay, back-to-back replay
        # 0: there is no module around the GPU.
        ("module_power_limit_mw", c_uint32),
        # 1: the energy without a scope is that of the module, as reported of GH200.
        ("total_energy_is_modules", c_uint32),
        ("gpm_mode", c_uint32),
        ("gpm_sum_over_sms", c_uint32),  # raw cycle counters: 0 mean of the SMs, 1 their sum
        ("gpm_zero", c_uint32),
        # Every entry of a multi-metric call answers the first one's value.
        ("gpm_collapse", c_uint32),
        ("gpm_blank", c_uint32),
        ("gpm_nan", c_uint32),
        ("gpm_minimum_interval_ns", c_uint64),  # closer sample pairs answer NO_DATA; 0: never
        # How long each GPM call takes, so that an overlap is certain to be seen.
        ("gpm_call_ns", c_uint64),
        # What the raw counters showed when the schedule began, per SM.
        ("cycles_at_boot", c_uint64),
        ("bytes_at_boot", c_uint64),
        ("ecc_mode", c_uint32),
        ("ecc_mode_pending", c_uint32),
        ("ecc_supported", c_uint32),
        ("ecc_errors", (c_uint64 * 2) * 2),  # [corrected, uncorrected][volatile, aggregate]
        ("ecc_sram_threshold_exceeded", c_uint32),
        ("remapped_correctable", c_uint32),
        ("remapped_uncorrectable", c_uint32),
        ("remap_pending", c_uint32),
        ("remap_failed", c_uint32),
        ("remap_histogram", c_uint32 * 5),  # max, high, partial, low, none
        ("retired_single_bit", c_uint32),
        ("retired_double_bit", c_uint32),
        ("retired_pending", c_uint32),
        ("channel_repair_pending", c_uint32),
        ("tpc_repair_pending", c_uint32),
        ("unrepairable_memory", c_uint32),
        ("recovery_action", c_uint32),
        ("compute_mode", c_uint32),
        ("persistence_mode", c_uint32),
        ("virtualization_mode", c_uint32),
        ("display_active", c_uint32),
        ("fan_count", c_uint32),
        ("decoder_count", c_uint32),
        ("encoder_count", c_uint32),
        ("jpeg_count", c_uint32),
        ("ofa_count", c_uint32),
        ("fabric_state", c_uint32),
        ("fabric_clique", c_uint32),
        ("fabric_health_mask", c_uint32),
        ("mig_supported", c_uint32),
        ("mig_mode", c_uint32),
        ("mig_mode_pending", c_uint32),
        ("instances", Instance * MAX_INSTANCES),
        # Odd while Python writes the processes.
        ("process_sequence", c_uint32),
        ("process_count", c_uint32),
        ("processes", Process * MAX_PROCESSES),
        ("field_profile_code", c_int32 * MAX_FIELDS),
        ("field_fault", c_int32 * MAX_FIELDS),
        ("metric_profile_code", c_int32 * MAX_METRICS),
        ("metric_fault", c_int32 * MAX_METRICS),
        # 1: field_value replaces what the library would answer.
        ("field_override", c_uint32 * MAX_FIELDS),
        ("field_value", c_uint64 * MAX_FIELDS),
    ]


class Event(ctypes.Structure):
    """One event, for waiters that registered its type on its GPU."""

    _fields_ = [
        ("gpu", c_uint32),
        ("gpu_instance_id", c_uint32),
        ("compute_instance_id", c_uint32),
        ("type", c_uint64),
        ("data", c_uint64),
    ]


class Control(ctypes.Structure):
    """The whole file; the schedules follow it, `SCHEDULES_PER_GPU` for each of `gpu_count` GPUs."""

    _fields_ = [
        ("magic", c_uint64),
        ("layout", c_uint64),
        ("gpu_count", c_uint32),  # slots that exist in this file
        ("visible_count", c_uint32),  # GPUs that NVML enumerates now
        ("visible", c_uint32 * MAX_GPUS),  # NVML index to slot
        ("driver_loaded", c_uint32),
        ("driver_mismatch", c_uint32),
        ("driver_generation", c_uint32),
        ("cuda_driver_version", c_uint32),
        ("driver_version", c_char * 80),
        ("nvml_version", c_char * 80),
        ("conf_compute_enabled", c_uint32),
        # GPM calls that began while another one ran in the same process.
        ("gpm_overlaps", c_uint64),
        ("gpm_misuses", c_uint64),  # freed, foreign or never taken samples
        ("gpm_samples_alive", c_uint64),
        ("stale_handles", c_uint64),  # calls with a handle from before the last nvmlInit
        ("initializations", c_uint64),
        ("event_registrations", c_uint64 * MAX_GPUS),  # that took effect, in any process
        ("event_count", c_uint64),
        ("events", Event * MAX_EVENTS),
        ("functions", Function * MAX_FUNCTIONS),
        ("gpus", Gpu * MAX_GPUS),
    ]


_C_TYPES = {
    c_char: "char",
    c_double: "double",
    c_int32: "int32_t",
    c_uint32: "uint32_t",
    c_uint64: "uint64_t",
}
_STRUCTURES: tuple[type[ctypes.Structure], ...] = (
    Segment, Schedule, Fault, Function, Process, Instance, Link, Gpu, Event, Control,
)  # fmt: skip
_CONSTANTS = (
    "MAX_GPUS", "MAX_INSTANCES", "MAX_SEGMENTS", "MAX_FUNCTIONS", "MAX_FIELDS", "MAX_METRICS", "MAX_PROCESSES",
    "MAX_EVENTS", "MAX_LINKS", "ALL_GPUS", "COLUMNS", "SCHEDULES_PER_GPU", "VALUE_COUNT", "REASON_COUNT",
    "GPM_NONE", "GPM_PERCENT", "GPM_CYCLES", "PROCESS_COMPUTE", "PROCESS_GRAPHICS", "PROCESS_MPS",
    "CRASH_ABORT", "CRASH_SEGFAULT", "UNLIMITED",
)  # fmt: skip


def _declaration(name: str, kind: object) -> str:
    """A C member declaration, array dimensions included."""
    dimensions = ""
    while isinstance(kind, type) and issubclass(kind, ctypes.Array):
        dimensions += f"[{kind._length_}]"
        kind = kind._type_
    if isinstance(kind, type) and issubclass(kind, ctypes.Structure):
        return f"struct {kind.__name__.lower()} {name}{dimensions};"
    return f"{_C_TYPES[kind]} {name}{dimensions};"  # type: ignore[index]


def c_header(functions: list[str]) -> str:
    """The generated C header: constants, value indices, structures with their sizes asserted, function numbers."""
    lines = [
        "#pragma once",
        "#include <assert.h>",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
    ]
    lines += [f"#define {name} ({globals()[name]})" for name in _CONSTANTS]
    lines += [f"#define CONTROL_MAGIC UINT64_C({MAGIC})", ""]
    lines += ["enum value {", *(f"    VALUE_{name}," for name in LOAD_FIELDS), "};", ""]
    weighted = ", ".join("1" if name in CYCLE_WEIGHTED else "0" for name in LOAD_FIELDS)
    lines += [f"static const uint8_t CYCLE_WEIGHTED[VALUE_COUNT] = {{{weighted}}};", ""]
    for structure in _STRUCTURES:
        lines.append(f"struct {structure.__name__.lower()} {{")
        lines += [f"    {_declaration(name, kind)}" for name, kind, *_ in structure._fields_]
        lines += [
            "};",
            f'static_assert(sizeof(struct {structure.__name__.lower()}) == {ctypes.sizeof(structure)}, "layout");',
        ]
        last = structure._fields_[-1][0]
        lines += [f'static_assert(offsetof(struct {structure.__name__.lower()}, {last}) == {getattr(structure, last).offset}, "layout");', ""]  # fmt: skip
    lines += [
        "enum function_number {",
        *(f"    FN_{name}," for name in functions),
        "    FUNCTION_COUNT",
        "};",
    ]
    lines += ['static_assert(FUNCTION_COUNT <= MAX_FUNCTIONS, "layout");', ""]
    return "\n".join(lines)
