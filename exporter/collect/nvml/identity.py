"""What a device is: the identity of a GPU, and the MIG instances that it has.

A MIG device is a compute instance inside a GPU instance. GPM and memory belong to the GPU instance,
so of several MIG devices in one GPU instance the one with the lowest compute instance id represents
it.
"""

from dataclasses import dataclass, field
from typing import Any

import pynvml

from exporter.collect.nvml import answers
from exporter.collect.nvml.library import (
    GONE,
    DeviceCalls,
    NvmlError,
    call,
    handle_address,
)
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
# More are blanks.
_SMS_MAX, _BUS_WIDTH_MAX, _CAPABILITY_MAX, _MEMORY_MAX = 1024, 2**16, 99, 2**50
_MINOR_MAX = 255  # /dev/nvidiactl is number 255 of the same kind
_PROFILES_MAX = 32  # NVML_GPU_INSTANCE_PROFILE_COUNT is 18 in the header of CUDA 13.5
_MEBI = 2**20

Ids = tuple[int, int]  # GPU instance, compute instance


@dataclass(frozen=True, slots=True)
class ListedInstance:
    """A GPU instance as enumerated. `address` distinguishes a handle from a recreated one."""

    uuid: str
    gpu_instance_id: int
    handle: Any = field(compare=False)
    address: int


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """The resources of a GPU instance. None where the driver does not report them.

    `placement` is the id of its profile and its first memory slice; reading it requires privileges.
    """

    name: str | None
    sm_count: int | None
    memory_bytes: int | None
    placement: tuple[int, int] | None = None


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


def mig_enabled(calls: DeviceCalls, *, before: bool = False) -> bool:
    """Whether MIG mode is on; `before` where the driver does not answer this time."""
    modes = calls.ask("nvmlDeviceGetMigMode")
    if modes is None:
        return before
    return bool(modes[0] == 1) if modes[0] in (0, 1) else before


def list_instances(
    calls: DeviceCalls, known: dict[tuple[int, str], Ids] | None = None
) -> tuple[ListedInstance, ...]:
    """The GPU instances that this process may see, by id. Raises NvmlError if the GPU is gone.

    `known` caches ids by handle and UUID, so that each is asked for once.
    """
    known = {} if known is None else known
    seen: dict[tuple[int, str], Ids] = {}
    found: dict[int, tuple[int, ListedInstance]] = {}
    for position in range(calls.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
        try:
            handle = call("nvmlDeviceGetMigDeviceHandleByIndex", calls.handle, position)
            uuid = str(call("nvmlDeviceGetUUID", handle))
            address = handle_address(handle)
            ids = known.get((address, uuid)) or (
                int(call("nvmlDeviceGetGpuInstanceId", handle)),
                int(call("nvmlDeviceGetComputeInstanceId", handle)),
            )
        except GONE:
            raise
        except NvmlError:
            continue  # places may be empty in between, or hidden from this container
        seen[address, uuid] = instance, compute = ids
        if instance not in found or compute < found[instance][0]:
            listed = ListedInstance(uuid, instance, handle, address)
            found[instance] = (compute, listed)
    known.clear()
    known.update(seen)
    return tuple(listed for _instance, (_compute, listed) in sorted(found.items()))


def read_instance(parent: DeviceCalls, handle: Any, gpu_instance_id: int) -> InstanceFacts:
    """Facts about a whole GPU instance, also where compute instances share it."""
    calls = DeviceCalls(handle, device="mig")
    attributes = calls.ask("nvmlDeviceGetAttributes_v2")
    if attributes is None:
        attributes = calls.ask("nvmlDeviceGetAttributes")
    name = calls.ask("nvmlDeviceGetName")
    placement = _placement(parent, gpu_instance_id)
    if attributes is None:
        return InstanceFacts(name, None, None, placement)
    counted = int(attributes.multiprocessorCount)
    sm_count = counted if 0 < counted <= _SMS_MAX else None
    slices = int(attributes.gpuInstanceSliceCount)
    if slices > int(attributes.computeInstanceSliceCount) > 0:
        sm_count = _profile_sm_count(parent, slices, int(attributes.memorySizeMB)) or sm_count
    memory = int(attributes.memorySizeMB) * _MEBI
    return InstanceFacts(name, sm_count, memory if 0 < memory <= _MEMORY_MAX else None, placement)


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


def _placement(parent: DeviceCalls, gpu_instance_id: int) -> tuple[int, int] | None:
    try:
        instance = call("nvmlDeviceGetGpuInstanceById", parent.handle, gpu_instance_id)
        info = call("nvmlGpuInstanceGetInfo", instance)
    except GONE:
        raise
    except NvmlError:
        return None
    return int(info.profileId), int(info.placement.start)


def _profile_sm_count(parent: DeviceCalls, slices: int, memory_mebibytes: int) -> int | None:
    """SMs of the GPU instance profile with this many slices and the nearest memory size."""
    best: tuple[int, int] | None = None
    for profile in range(_PROFILES_MAX):
        try:
            info = call("nvmlDeviceGetGpuInstanceProfileInfo", parent.handle, profile)
        except GONE:
            raise
        except NvmlError:
            continue
        if int(info.sliceCount) == slices:
            distance = abs(int(info.memorySizeMB) - memory_mebibytes)
            if best is None or distance < best[0]:
                best = (distance, int(info.multiprocessorCount))
    return best[1] if best is not None else None
