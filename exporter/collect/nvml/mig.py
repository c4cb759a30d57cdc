"""MIG: the GPU instances of a GPU, by the MIG devices that the driver lists.

A MIG device is a compute instance inside a GPU instance. GPM and memory belong to the GPU instance,
so of several MIG devices in one GPU instance the one with the lowest compute instance id represents
it.
"""

from dataclasses import dataclass, field
from typing import Any

from exporter.collect.nvml.errors import (
    DeviceLost,
    DriverGone,
    DriverMismatch,
    NvmlError,
)
from exporter.collect.nvml.gpm import GpmSession
from exporter.collect.nvml.library import DeviceCalls, call, handle_address


_PROFILES_MAX = 32  # NVML_GPU_INSTANCE_PROFILE_COUNT is 18 in the header of CUDA 13.5
_MEBI = 2**20
_SMS_MAX, _MEMORY_MAX = 1024, 2**50  # more are blanks


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


def mig_enabled(calls: DeviceCalls, *, before: bool = False) -> bool:
    """Whether MIG mode is on; `before` where the driver does not answer this time."""
    modes = calls.ask("nvmlDeviceGetMigMode")
    if modes is None:
        return before
    return bool(modes[0] == 1) if modes[0] in (0, 1) else before


Ids = tuple[int, int]  # GPU instance, compute instance


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
        except (DeviceLost, DriverGone, DriverMismatch):
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


def _placement(parent: DeviceCalls, gpu_instance_id: int) -> tuple[int, int] | None:
    try:
        instance = call("nvmlDeviceGetGpuInstanceById", parent.handle, gpu_instance_id)
        info = call("nvmlGpuInstanceGetInfo", instance)
    except (DeviceLost, DriverGone, DriverMismatch):
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
        except (DeviceLost, DriverGone, DriverMismatch):
            raise
        except NvmlError:
            continue
        if int(info.sliceCount) == slices:
            distance = abs(int(info.memorySizeMB) - memory_mebibytes)
            if best is None or distance < best[0]:
                best = (distance, int(info.multiprocessorCount))
    return best[1] if best is not None else None


class _ByInstanceId(GpmSession):
    """Samples through the GPU and the instance's id: nvmlGpmMigSampleGet."""

    def __init__(self, parent: Any, gpu_instance_id: int) -> None:
        super().__init__(parent)
        self._gpu_instance_id = gpu_instance_id

    def _take(self, sample: Any) -> None:
        call("nvmlGpmMigSampleGet", self._handle, self._gpu_instance_id, sample)


def gpm_sample_methods(parent: Any, instance: ListedInstance) -> tuple[GpmSession, ...]:
    """How to take GPM samples of an instance: by its id, or with newer drivers by its handle."""
    return (_ByInstanceId(parent, instance.gpu_instance_id), GpmSession(instance.handle))
