"""A recording as a profile of the fake driver library, so that the tests run on the recorded GPU."""

from collections import defaultdict
from typing import Any

from benchmarks.gpu_acceptance_parts.recording import Recording
from benchmarks.gpu_acceptance_parts.statistics_of import scale_of_cycles
from exporter.collect.nvml import gpm
from exporter.collect.nvml.library import NoPermission, NotSupported, error_for
from tests.fake_nvml.profiles import ARCHITECTURES, GpuProfile


# nvmlClockType_t, NVML_VALUE of nvml.h.
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_CORES_PER_SM = 128
_NOT_SUPPORTED = 3
# Calls that need no profile: their answers follow from the others.
_SYSTEM = ("nvmlInit", "nvmlShutdown", "nvmlSystem", "nvmlEventSet")


def profile_of(recording: Recording) -> GpuProfile:
    """The profile that answers as the recorded device did. Raises ValueError if it is incomplete.

    What changes with the load (clocks, power, memory in use) is the fake's load, not its profile.
    """
    memory = _memory(recording)
    capability = _needed(recording, "nvmlDeviceGetCudaComputeCapability")
    cores = int(_needed(recording, "nvmlDeviceGetNumGpuCores"))
    architecture = int(_needed(recording, "nvmlDeviceGetArchitecture"))
    names = {code: name for name, code in ARCHITECTURES.items()}
    if architecture not in names:
        raise ValueError(f"the fake library knows no architecture {architecture}")
    per_sm = 64 if tuple(capability) in ((7, 0), (7, 5), (8, 0)) else _CORES_PER_SM
    support = _gpm_support(recording)
    return GpuProfile(
        name=str(_needed(recording, "nvmlDeviceGetName")),
        architecture=names[architecture],
        compute_major=int(capability[0]),
        compute_minor=int(capability[1]),
        num_gpu_cores=cores,
        multiprocessor_count=cores // per_sm,
        memory_bus_width_bits=int(_needed(recording, "nvmlDeviceGetMemoryBusWidth")),
        memory_total_bytes=int(memory["total"]),
        memory_reserved_bytes=int(memory.get("reserved", 0)),
        max_sm_clock_mhz=int(_needed(recording, "nvmlDeviceGetMaxClockInfo", _CLOCK_SM)),
        max_memory_clock_mhz=int(_needed(recording, "nvmlDeviceGetMaxClockInfo", _CLOCK_MEMORY)),
        power_limit_watts=round(_needed(recording, "nvmlDeviceGetEnforcedPowerLimit") / 1000),
        pcie_generation=_count(recording, "nvmlDeviceGetCurrPcieLinkGeneration"),
        pcie_generation_max=_count(recording, "nvmlDeviceGetMaxPcieLinkGeneration"),
        pcie_width=_count(recording, "nvmlDeviceGetCurrPcieLinkWidth"),
        pcie_width_max=_count(recording, "nvmlDeviceGetMaxPcieLinkWidth"),
        nvlink_count=sum(r.code == 0 for r in recording.calls_of("nvmlDeviceGetNvLinkState")),
        gpm_support=support,
        cycles_mode=_cycles_mode(recording, cores // per_sm),
        ecc_supported=_answered(recording, "nvmlDeviceGetTotalEccErrors"),
        ecc_mode=_answered(recording, "nvmlDeviceGetTotalEccErrors"),
        compute_mode=_count(recording, "nvmlDeviceGetComputeMode"),
        fan_count=int(_answered(recording, "nvmlDeviceGetFanSpeed")),
        decoder_count=int(_answered(recording, "nvmlDeviceGetDecoderUtilization")),
        encoder_count=int(_answered(recording, "nvmlDeviceGetEncoderUtilization")),
        jpeg_count=int(_answered(recording, "nvmlDeviceGetJpgUtilization")),
        ofa_count=int(_answered(recording, "nvmlDeviceGetOfaUtilization")),
        mig_supported=_answered(recording, "nvmlDeviceGetMigMode"),
        function_codes=_function_codes(recording),
        field_codes={record.id: record.code for record in recording.fields if record.code},
        metric_codes=_metric_codes(recording, support),
    )


def differences(recorded: Recording, replayed: Recording) -> list[str]:
    """Calls, fields and metrics whose return codes differ; an empty list means a true replay."""
    first, second = recorded.codes(), replayed.codes()
    return [
        f"{key}: {first.get(key, 'not asked')} and {second.get(key, 'not asked')}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


def _function_codes(recording: Recording) -> dict[str, int]:
    """Functions that always gave one permanent refusal; one that depends on its arguments is left to the fake."""
    codes: dict[str, set[int]] = defaultdict(set)
    for record in recording.calls:
        if not record.function.startswith(_SYSTEM):
            for symbol in record.symbols:
                codes[symbol].add(record.code)
    return {
        symbol: code
        for symbol, (code, *others) in ((s, sorted(found)) for s, found in codes.items())
        if not others and _is_permanent(symbol, code)
    }


def _metric_codes(recording: Recording, support: str) -> dict[int, int]:
    """Metrics refused one by one; those that the kind of support or missing links explain are left out."""
    if support == "none":
        return {}
    explained: set[int] = set() if support == "cycles" else set(gpm.CYCLE_IDS)
    if not any(record.code == 0 for record in recording.calls_of("nvmlDeviceGetNvLinkState")):
        explained |= {gpm.NVLINK_RECEIVE_MIB, gpm.NVLINK_TRANSMIT_MIB}
    return {
        record.id: record.code
        for record in recording.metrics
        if record.code and not (record.id in explained and record.code == _NOT_SUPPORTED)
    }


def _is_permanent(symbol: str, code: int) -> bool:
    return code != 0 and isinstance(error_for(symbol, code), (NotSupported, NoPermission))


def _gpm_support(recording: Recording) -> Any:
    answered = {record.id for record in recording.metrics if record.code == 0}
    if gpm.SM_CYCLES_ELAPSED in answered:
        return "cycles"
    return "percent" if answered & set(gpm.PERCENT_IDS) else "none"


def _cycles_mode(recording: Recording, sm_count: int) -> Any:
    if recording.cycles_per_second is None or not recording.sm_clock_hertz:
        return "mean"
    rate, clock = recording.cycles_per_second, recording.sm_clock_hertz
    return "sum" if scale_of_cycles(rate, 1.0, clock, sm_count) == "sum" else "mean"


def _memory(recording: Recording) -> dict[str, Any]:
    answers = [r.answer for r in recording.calls_of("nvmlDeviceGetMemoryInfo") if r.code == 0]
    for answer in answers:
        if "reserved" in answer:
            return dict(answer)
    if not answers:
        raise ValueError("the device did not say how much memory it has")
    return dict(answers[0])


def _needed(recording: Recording, function: str, *arguments: Any) -> Any:
    answer = recording.answer_of(function, *arguments)
    if answer is None:
        raise ValueError(f"the device did not answer {function}{arguments}")
    return answer


def _count(recording: Recording, function: str) -> int:
    return int(recording.answer_of(function) or 0)


def _answered(recording: Recording, function: str) -> bool:
    return recording.answer_of(function) is not None
