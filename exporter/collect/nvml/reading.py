"""Reads one device through NVML, in SI units."""

from collections.abc import Callable, Mapping
from typing import Any

import pynvml

from exporter.collect.nvml import answers
from exporter.collect.nvml.answers import is_refused, read_fields
from exporter.collect.nvml.library import FIELD_VALUES, DeviceCalls, Key
from exporter.collect.nvml.processes import LIST_SYMBOLS, ProcessUtilization, read_processes
from exporter.readings import ClockSample, FastReading


_COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
_NVLINKS_MAX = 72  # NVML_NVLINK_MAX_LINKS of the newest header
_MEGA = 1e6
_EVENT_REASONS_MAX = 2**32 - 1  # a mask of a dozen bits; more are all set, which is a blank
_PCIE_GENERATION_MAX, _PCIE_WIDTH_MAX = 16, 64
_MEMORY_MAX = 2**50  # no device has a pebibyte: more is a blank
_KIB = 1024
_REASON_FIELDS: dict[answers.Field, str] = {
    answers.SW_POWER_CAP: "sw_power_cap",
    answers.SYNC_BOOST: "sync_boost",
    answers.SW_THERMAL_SLOWDOWN: "sw_thermal_slowdown",
    answers.HW_THERMAL_SLOWDOWN: "hw_thermal_slowdown",
    answers.HW_POWER_BRAKE: "hw_power_brake_slowdown",
}
_FAST_FIELDS: tuple[answers.Field, ...] = (
    *_REASON_FIELDS,
    answers.ENERGY,
    answers.MEMORY_TEMPERATURE,
    answers.RECOVERY_ACTION,
    answers.MMA_STALL,
)
_NVLINK_RECEIVE: answers.Field = (answers.NVLINK_RECEIVE, answers.ALL_LINKS)
_NVLINK_TRANSMIT: answers.Field = (answers.NVLINK_TRANSMIT, answers.ALL_LINKS)
_TRAFFIC_FIELDS: tuple[answers.Field, ...] = (
    answers.PCIE_RECEIVE,
    answers.PCIE_TRANSMIT,
    _NVLINK_RECEIVE,
    _NVLINK_TRANSMIT,
)
_MODULE_POWER: tuple[answers.Field, ...] = (
    (answers.POWER_AVERAGE, answers.MODULE),
    (answers.POWER_INSTANT, answers.MODULE),  # where there is no average
)
_GPU_ENERGY: answers.Field = (answers.ENERGY_BY_SCOPE, answers.GPU_ALONE)
_MODULE_ENERGY: answers.Field = (answers.ENERGY_BY_SCOPE, answers.MODULE)
_MODULE_FIELDS = (*_MODULE_POWER, _GPU_ENERGY, _MODULE_ENERGY)
_MODULE_POWER_LIMIT: answers.Field = (answers.POWER_CURRENT_LIMIT, answers.MODULE)
_C2C_LINKS_MAX = 14  # nvml.h has GPM metrics for links 0 to 13
_C2C_ERROR_FIELDS = {
    answers.C2C_CRC: "crc",
    answers.C2C_REPLAY: "replay",
    answers.C2C_REPLAY_BACK_TO_BACK: "replay_back_to_back",
}
_NVLINK_ERROR_FIELDS: dict[answers.Field, str] = {
    answers.NVLINK_ECC: "ecc",
    answers.NVLINK_REPLAY: "replay",
    answers.NVLINK_RECOVERY: "recovery",
    answers.NVLINK_CRC: "crc",
    answers.NVLINK_RECOVERY_SUCCESSFUL: "recovery_successful",
    answers.NVLINK_RECOVERY_FAILED: "recovery_failed",
}


def read_clock(calls: DeviceCalls, clock: Callable[[], float]) -> ClockSample:
    """The SM clock and its clock event reasons, now."""
    hertz = answers.hertz(calls, "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM)
    return ClockSample(clock(), hertz, _event_reasons(calls))


def read_fast(
    calls: DeviceCalls,
    sample: ClockSample,
    *,
    traffic: bool,
    module: bool = False,
    utilization_of: ProcessUtilization | None = None,
) -> FastReading:
    """Everything that is read every tick. `traffic`: read link byte counters too.

    `module`: the GPU shares a module with a Grace processor, whose power and energy are read.
    Elsewhere they are not: a driver without scopes would answer with the GPU's own.
    `utilization_of`: add up the SM time of its processes there.
    """
    wanted = (*_FAST_FIELDS, *_TRAFFIC_FIELDS) if traffic else _FAST_FIELDS
    values = read_fields(calls, (*wanted, *_MODULE_FIELDS) if module else wanted)
    module_power = next((values[field] for field in _MODULE_POWER if field in values), None)
    utilization = calls.ask("nvmlDeviceGetUtilizationRates")
    state = calls.ask("nvmlDeviceGetPerformanceState")
    # On GH200 the counter without a scope has been seen to be the module's (zeus#172).
    scoped = module and not is_refused(calls, _GPU_ENERGY)
    energy = values.get(_GPU_ENERGY if scoped else answers.ENERGY)
    if energy is None and not scoped:
        energy = calls.ask("nvmlDeviceGetTotalEnergyConsumption")
    action = values.get(answers.RECOVERY_ACTION)
    return FastReading(
        at_seconds=sample.at_seconds,
        sm_clock_hertz=sample.sm_clock_hertz,
        memory_clock_hertz=answers.hertz(calls, "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
        event_reasons=sample.event_reasons,
        event_reason_seconds={
            name: values[field] / 1e9 for field, name in _REASON_FIELDS.items() if field in values
        },
        power_watts=answers.plausible(
            calls, "power", answers.scaled(calls.ask("nvmlDeviceGetPowerUsage"), 1e-3), 10e3
        ),
        energy_joules=answers.scaled(answers.count(calls, "energy", energy), 1e-3),
        temperature_celsius=_temperature(calls),
        memory_temperature_celsius=answers.plausible(
            calls, "memory temperature", values.get(answers.MEMORY_TEMPERATURE), 200
        ),
        gpu_utilization=answers.percent(
            calls, "gpu utilization", getattr(utilization, "gpu", None)
        ),
        memory_utilization=answers.percent(
            calls, "memory utilization", getattr(utilization, "memory", None)
        ),
        performance_state=state if state is not None and 0 <= state <= 15 else None,
        tensor_stall=answers.percent(calls, "mma stall", values.get(answers.MMA_STALL)),
        recovery_action=int(action) if action is not None else None,
        pcie_receive_bytes=values.get(answers.PCIE_RECEIVE),
        pcie_transmit_bytes=values.get(answers.PCIE_TRANSMIT),
        nvlink_receive_bytes=answers.scaled(values.get(_NVLINK_RECEIVE), _KIB),
        nvlink_transmit_bytes=answers.scaled(values.get(_NVLINK_TRANSMIT), _KIB),
        module_energy_joules=answers.scaled(values.get(_MODULE_ENERGY), 1e-3),
        module_power_watts=answers.plausible(
            calls, "module power", answers.scaled(module_power, 1e-3), 20e3
        ),
        process_sm_seconds=None if utilization_of is None else utilization_of.read(calls),
        **read_memory(calls),
    )


def read_memory(calls: DeviceCalls) -> dict[str, Any]:
    """Memory in bytes, with the driver's reserve separate; the older call counts that as used.

    Empty where there is none of the GPU's own (unified memory: GB10, Thor, Jetson).
    """
    memory = calls.ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
    values: dict[str, float] = {}
    if memory is not None:
        values["memory_reserved_bytes"] = memory.reserved
    else:
        memory = calls.ask("nvmlDeviceGetMemoryInfo")
        if memory is None:
            return {}
    values["memory_size_bytes"] = memory.total
    values["memory_used_bytes"] = memory.used
    values["memory_free_bytes"] = memory.free
    if memory.total <= 0 or max(values.values()) > min(memory.total, _MEMORY_MAX):
        calls.implausible("memory")
        return {}
    calls.memory_total_bytes = int(memory.total)
    return values


# The slow readings, in groups that are spread over the ticks of a slow interval. Each returns all
# fields of SlowReading that it owns.
def read_limits(calls: DeviceCalls) -> Mapping[str, Any]:
    """Power limit, compute mode, MIG mode, fan."""
    mode = calls.ask("nvmlDeviceGetComputeMode")
    mig = calls.ask("nvmlDeviceGetMigMode")
    return {
        "power_limit_watts": answers.plausible(
            calls,
            "power limit",
            answers.scaled(calls.ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
            10e3,
        ),
        "compute_mode": _COMPUTE_MODES.get(mode) if mode is not None else None,
        "mig_enabled": answers.switch(calls, "MIG mode", mig[0] if mig is not None else None),
        "fan_speed": answers.percent(calls, "fan speed", calls.ask("nvmlDeviceGetFanSpeed"), 200),
    }


def read_health(calls: DeviceCalls) -> Mapping[str, Any]:
    """ECC errors, remapped rows, retired pages."""
    ecc = {
        kind: answers.count(
            calls,
            f"{kind} ECC errors",
            calls.ask("nvmlDeviceGetTotalEccErrors", error_type, pynvml.NVML_AGGREGATE_ECC),
        )
        for kind, error_type in (
            ("corrected", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ("uncorrected", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        )
    }
    rows = calls.ask("nvmlDeviceGetRemappedRows")
    remapped = {
        kind: answers.count(calls, f"{kind} remapped rows", rows[position])
        for position, kind in enumerate(("corrected", "uncorrected"))
        if rows is not None
    }
    retired: dict[str, float] = {}
    if rows is None:  # pages are retired before Ampere, rows remapped from Ampere on
        for kind, cause in (
            ("single_bit", pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS),
            ("double_bit", pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR),
        ):
            pages = calls.ask("nvmlDeviceGetRetiredPages", cause)
            if pages is not None:
                retired[kind] = len(pages)
    return {
        "ecc_errors": {kind: count for kind, count in ecc.items() if count is not None},
        "remapped_rows": {kind: count for kind, count in remapped.items() if count is not None},
        "row_remap_pending": answers.switch(calls, "row remap pending", rows[2] if rows else None),
        "row_remap_failed": answers.switch(calls, "row remap failed", rows[3] if rows else None),
        "retired_pages": retired,
    }


def read_engines(calls: DeviceCalls) -> Mapping[str, Any]:
    """Encoder, decoder, JPEG and optical-flow utilization."""
    utilization: dict[str, float] = {}
    for engine, function in (
        ("encoder", "nvmlDeviceGetEncoderUtilization"),
        ("decoder", "nvmlDeviceGetDecoderUtilization"),
        ("jpeg", "nvmlDeviceGetJpgUtilization"),
        ("ofa", "nvmlDeviceGetOfaUtilization"),
    ):
        answer = calls.ask(function)
        share = answers.percent(calls, engine, answer[0] if answer is not None else None)
        if share is not None:
            utilization[engine] = share
    return {"engine_utilization": utilization}


def read_pcie(calls: DeviceCalls) -> Mapping[str, Any]:
    """The PCIe link and its replays."""
    replays = calls.ask("nvmlDeviceGetPcieReplayCounter")
    link = {
        name: answers.plausible(calls, name, calls.ask(function), maximum)
        for name, function, maximum in (
            ("pcie_link_generation", "nvmlDeviceGetCurrPcieLinkGeneration", _PCIE_GENERATION_MAX),
            (
                "pcie_link_generation_max",
                "nvmlDeviceGetMaxPcieLinkGeneration",
                _PCIE_GENERATION_MAX,
            ),
            ("pcie_link_width", "nvmlDeviceGetCurrPcieLinkWidth", _PCIE_WIDTH_MAX),
            ("pcie_link_width_max", "nvmlDeviceGetMaxPcieLinkWidth", _PCIE_WIDTH_MAX),
        )
    }
    return {
        **{name: None if value is None else int(value) for name, value in link.items()},
        "pcie_replays": answers.count(calls, "PCIe replays", replays),
    }


def read_nvlink(calls: DeviceCalls) -> Mapping[str, Any]:
    """State of every NVLink, and the errors over all links.

    A link that answered before and does not now is left out and counted in `nvlinks_unknown`: it
    must not be confused with a link that is down.
    """
    states: dict[str, bool] = {}
    unknown = 0
    for link in range(_NVLINKS_MAX):
        state = calls.ask("nvmlDeviceGetNvLinkState", link)
        if state is None:
            unknown += calls.has_answered("nvmlDeviceGetNvLinkState", link)
        elif state in answers.SWITCH:
            states[str(link)] = answers.SWITCH[state]
        else:
            calls.implausible(f"state of NVLink {link}")
            unknown += 1
    values = read_fields(calls, tuple(_NVLINK_ERROR_FIELDS)) if states else {}
    return {
        "nvlink_up": states,
        "nvlinks_unknown": unknown,
        "nvlink_errors": {_NVLINK_ERROR_FIELDS[field]: value for field, value in values.items()},
    }


def read_c2c(calls: DeviceCalls) -> Mapping[str, Any]:
    """State, speed and errors of the C2C links to a Grace processor, and their module's power limit.

    Empty without such links. Each link has its own scope, as NCCL and UCX read them.
    """
    links = range(c2c_link_count(calls))
    asked = [
        (field, link)
        for link in links
        for field in (
            answers.C2C_STATUS,
            answers.C2C_BANDWIDTH,
            answers.C2C_POWER_STATE,
            *_C2C_ERROR_FIELDS,
        )
    ]
    values = read_fields(calls, (*asked, _MODULE_POWER_LIMIT)) if links else {}

    def each(field: int) -> dict[str, float]:
        found = {str(link): values.get((field, link)) for link in links}
        return {link: value for link, value in found.items() if value is not None}

    up = {link: value == 1 for link, value in each(answers.C2C_STATUS).items()}
    speeds = [speed for link, speed in each(answers.C2C_BANDWIDTH).items() if up.get(link)]
    errors = {kind: each(field).values() for field, kind in _C2C_ERROR_FIELDS.items()}
    return {
        "c2c_up": up,
        "c2c_low_power": {
            link: value == 1 for link, value in each(answers.C2C_POWER_STATE).items()
        },
        "c2c_errors": {kind: sum(counts) for kind, counts in errors.items() if counts},
        "c2c_bandwidth_bytes_per_second": sum(speeds) * _MEGA if speeds else None,
        "module_power_limit_watts": answers.scaled(values.get(_MODULE_POWER_LIMIT), 1e-3),
    }


# What the daemon reads of a device, by the calls that can report it: a capability is missing when
# all of its calls have answered NOT_SUPPORTED.
_CAPABILITIES: Mapping[str, tuple[Key, ...]] = {
    "utilization": (("nvmlDeviceGetUtilizationRates",),),
    "sm_clock": (("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),),
    "clock_event_reasons": (
        ("nvmlDeviceGetCurrentClocksEventReasons",),
        ("nvmlDeviceGetCurrentClocksThrottleReasons",),
    ),
    "power": (("nvmlDeviceGetPowerUsage",),),
    "power_limit": (("nvmlDeviceGetEnforcedPowerLimit",),),
    "energy": ((FIELD_VALUES, answers.ENERGY), ("nvmlDeviceGetTotalEnergyConsumption",)),
    "temperature": (
        ("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU),
        ("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
    ),
    "memory": (("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2), ("nvmlDeviceGetMemoryInfo",)),
    "ecc_errors": tuple(
        ("nvmlDeviceGetTotalEccErrors", error_type, pynvml.NVML_AGGREGATE_ECC)
        for error_type in (
            pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        )
    ),
    "remapped_rows": (
        ("nvmlDeviceGetRemappedRows",),
        (
            "nvmlDeviceGetRetiredPages",
            pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
        ),
    ),
    "pcie_link": (("nvmlDeviceGetCurrPcieLinkGeneration",),),
    "processes": tuple((symbol,) for symbol in LIST_SYMBOLS),
}


def unsupported_capabilities(calls: DeviceCalls) -> tuple[str, ...]:
    """The capabilities that the driver does not support here, by its last answer to each call."""
    return tuple(
        name for name, keys in _CAPABILITIES.items() if all(calls.unsupported(*key) for key in keys)
    )


SLOW_GROUPS: tuple[Callable[[DeviceCalls], Mapping[str, Any]], ...] = (
    read_limits,
    read_health,
    read_engines,
    read_pcie,
    read_nvlink,
    read_c2c,
    read_processes,
)


def c2c_link_count(calls: DeviceCalls) -> int:
    """How many NVLink-C2C links the device has; 0 if it does not report any."""
    count = read_fields(calls, (answers.C2C_LINK_COUNT,)).get(answers.C2C_LINK_COUNT, 0)
    return int(count) if 0 < count <= _C2C_LINKS_MAX else 0


def _temperature(calls: DeviceCalls) -> float | None:
    celsius = calls.ask("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU)
    if celsius is None:  # drivers before 565 know only the older call
        celsius = calls.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)
    return answers.plausible(calls, "temperature", celsius, 200)


def _event_reasons(calls: DeviceCalls) -> int | None:
    reasons = calls.ask("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:  # drivers before 535 know only the older name
        reasons = calls.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    value = answers.plausible(calls, "clock event reasons", reasons, _EVENT_REASONS_MAX - 1)
    return None if value is None else int(value)
