"""The holders of devices, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A device as its allocator names it: by UUID, by index, or by the number of its device node.

    With `mig` (the GPU instance id) or `placement` (its profile id and first memory slice), it is
    that instance of the GPU; otherwise the whole GPU, or the MIG instance that the UUID names.
    """

    uuid: str | None = None
    index: str | None = None
    mig: str | None = None
    minor: str | None = None
    placement: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """A container of a pod holds a device, or a replica of it."""

    device: DeviceKey
    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class JobUse:
    """A batch job holds a device. `job_id` is the scheduler's number if `job` is another name."""

    device: DeviceKey
    job: str
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class ProcessOwner:
    """Facts about a process: its pod's host name and container, its Slurm job, its own name.

    Fields that do not apply or cannot be read are empty.
    """

    host_name: str = ""
    container: str = ""
    job: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class SourceState:
    """The health of a source. Errors are counted by reason since the daemon started."""

    up: bool
    last_success_unix_seconds: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HoldersSnapshot:
    """All holders as last read. Stale answers are left out.

    `sources` holds the sources in use: `pod_resources`, `job_mapping`, `job_processes`. `processes`
    maps process ids on shared devices to their owners. `host_processes` is False if the exporter
    has its own PID namespace and thus cannot see the host's processes.
    """

    allocations: tuple[Allocation, ...] = ()
    jobs: tuple[JobUse, ...] = ()
    sources: Mapping[str, SourceState] = field(default_factory=dict)
    processes: Mapping[int, ProcessOwner] = field(default_factory=dict)
    host_processes: bool = True
