"""Who holds what, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A device as whoever hands it out names it: by UUID, by index, or by the number of its device node.

    With `mig` (the GPU instance id) or `placement` (its profile's id and its first memory slice) it
    is that instance of the GPU, else the GPU as a whole, or the MIG instance that the UUID names.
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
    """A batch job holds a device. `job_id` is the scheduler's number where `job` is another name of it."""

    device: DeviceKey
    job: str
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class ProcessOwner:
    """What is known of a process: its pod's host name and container, its Slurm job, its own name.

    Empty where it does not apply, or cannot be read.
    """

    host_name: str = ""
    container: str = ""
    job: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class SourceState:
    """How a source fares. Errors are counted by reason since the daemon started."""

    up: bool
    last_success_unix_seconds: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HoldersSnapshot:
    """All holders as last read. What was read too long ago is left out.

    `sources` holds those that are in use: `pod_resources`, `job_mapping`, `job_processes`.
    `processes` says by process id whose the processes on shared devices are. `host_processes` is False
    where the exporter has a PID namespace of its own, and so cannot see the host's.
    """

    allocations: tuple[Allocation, ...] = ()
    jobs: tuple[JobUse, ...] = ()
    sources: Mapping[str, SourceState] = field(default_factory=dict)
    processes: Mapping[int, ProcessOwner] = field(default_factory=dict)
    host_processes: bool = True
