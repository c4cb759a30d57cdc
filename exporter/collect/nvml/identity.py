"""The identity of a device: its name, its place and its fixed properties."""

import pynvml

from exporter.collect.nvml import answers
from exporter.collect.nvml.library import DeviceCalls
from exporter.collect.nvml.reading import c2c_link_count, read_memory
from exporter.readings import DeviceIdentity


# Prefix of the substitute for a UUID that the device does not report: the PCI address follows.
NO_UUID = "PCI-"
_ARCHITECTURES = {
    2: "kepler",
    3: "maxwell",
    4: "pascal",
    5: "volta",
    6: "turing",
    7: "ampere",
    8: "ada",
    9: "hopper",
    10: "blackwell",
    13: "rubin",
}
# Cores per SM by compute capability; 128 for all others up to 12.x (CUDA C++ Programming Guide).
_CORES_PER_SM = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
_SMS_MAX, _BUS_WIDTH_MAX, _CAPABILITY_MAX = 1024, 2**16, 99  # more are blanks
_MINOR_MAX = 255  # /dev/nvidiactl is number 255 of the same kind


def read_identity(calls: DeviceCalls, index: int, driver_version: str | None) -> DeviceIdentity:
    """Identify the device. Missing answers are None; the UUID falls back to the PCI address."""
    capability = _capability(calls)
    architecture = calls.ask("nvmlDeviceGetArchitecture")
    pci = calls.ask("nvmlDeviceGetPciInfo")
    bus_id = answers.text(pci.busId) if pci is not None else None
    memory = read_memory(calls)
    return DeviceIdentity(
        index=str(index),
        uuid=answers.text(calls.ask("nvmlDeviceGetUUID")) or f"{NO_UUID}{bus_id or index}",
        name=answers.text(calls.ask("nvmlDeviceGetName")) or "unknown",
        architecture=_architecture(architecture),
        compute_capability=capability,
        pci_bus_id=bus_id,
        driver_version=driver_version,
        serial=answers.text(calls.ask("nvmlDeviceGetSerial")),
        sm_count=_sm_count(calls, capability),
        sm_clock_max_hertz=answers.hertz(calls, "nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
        memory_clock_max_hertz=answers.hertz(
            calls, "nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_MEM
        ),
        memory_bus_width_bits=answers.whole(
            calls, "memory bus width", calls.ask("nvmlDeviceGetMemoryBusWidth"), _BUS_WIDTH_MAX
        ),
        memory_size_bytes=int(memory["memory_size_bytes"]) if memory else None,
        c2c_link_count=c2c_link_count(calls) or None,
        minor=_minor(calls),
    )


def _architecture(code: int | None) -> str | None:
    if code is None or code == pynvml.NVML_DEVICE_ARCH_UNKNOWN:
        return None
    return _ARCHITECTURES.get(code, f"architecture_{code}")


def _minor(calls: DeviceCalls) -> int | None:
    number = answers.plausible(
        calls, "minor number", calls.ask("nvmlDeviceGetMinorNumber"), _MINOR_MAX
    )
    return None if number is None else int(number)


def _capability(calls: DeviceCalls) -> tuple[int, int] | None:
    answer = calls.ask("nvmlDeviceGetCudaComputeCapability")
    if answer is None:
        return None
    major, minor = int(answer[0]), int(answer[1])
    if not (0 < major <= _CAPABILITY_MAX and 0 <= minor <= _CAPABILITY_MAX):
        calls.implausible("compute capability")
        return None
    return major, minor


def _sm_count(calls: DeviceCalls, capability: tuple[int, int] | None) -> int | None:
    cores = calls.ask("nvmlDeviceGetNumGpuCores")
    if cores is None or capability is None:
        return None
    per_sm = _CORES_PER_SM.get(capability, 128)
    return answers.whole(calls, "number of SMs", int(cores) // per_sm, _SMS_MAX)
