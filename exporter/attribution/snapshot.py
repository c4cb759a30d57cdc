"""The holders of devices and what they are charged, as values that parts pass to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


HolderKind = Literal["pod", "job", "workload", "process", "none"]
Basis = Literal["exclusive", "process_utilization", "equal"]
Unresolved = Literal["driver", "namespace", "owners"]

IDLE_STATE = "idle"


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


class Holder(NamedTuple):
    """A holder that can be charged. Fields that do not apply are empty."""

    kind: HolderKind
    namespace: str = ""
    pod: str = ""
    container: str = ""
    hpc_job: str = ""
    workload: str = ""


NOBODY = Holder("none")


def nobody_before(start: str) -> Holder:
    """Who is charged the energy from before the exporter's start, in a series that never grows.

    Each start has its own: in one series for all of them, a later start would add the energy that
    the holders were charged since the earlier one, and `increase()` would count it twice.
    """
    return NOBODY._replace(container=f"before {start}")


@dataclass(slots=True)
class Account:
    """One holder's part of one device, cumulative. None means that the device never counted it."""

    flop: float | None = None
    dram_bytes: float | None = None
    energy_joules: float | None = None
    state_seconds: dict[str, float] = field(default_factory=dict)
    last_held_seconds: float = 0.0

    @property
    def busy_seconds(self) -> float:
        """Seconds in all states except idle."""
        return sum(self.state_seconds.values()) - self.state_seconds.get(IDLE_STATE, 0.0)


class Mark(NamedTuple):
    """Each holder's charges at one time: seconds watched, FLOP and busy seconds."""

    at_seconds: float
    watched_seconds: float
    charged: Mapping[Holder, tuple[float | None, float]]


@dataclass(frozen=True, slots=True)
class RecentUse:
    """A holder's part of the last minute: FLOP per second, and its share of the busy time."""

    flops: float | None
    share: float | None


@dataclass(frozen=True, slots=True)
class Charges:
    """The current accounts of one device, and the basis of its present shares.

    `before` holds the accounts of about a minute ago; `watched_seconds` is how long the device has
    been watched.
    """

    accounts: Mapping[Holder, Account]
    basis: Mapping[Holder, Basis]
    before: Mark | None = None
    watched_seconds: float = 0.0

    def recent(self) -> dict[Holder, RecentUse]:
        """Each holder's use in the last minute; empty if nothing was watched."""
        seconds = self.watched_seconds - self.before.watched_seconds if self.before else 0.0
        if self.before is None or seconds <= 0:
            return {}
        grown: dict[Holder, tuple[float | None, float]] = {}
        for holder, account in self.accounts.items():
            flop, busy = self.before.charged.get(holder, (None, 0.0))
            more = None if account.flop is None else account.flop - (flop or 0.0)
            grown[holder] = more, account.busy_seconds - busy
        whole = sum(busy for _flop, busy in grown.values())
        return {
            holder: RecentUse(
                flops=None if flop is None else flop / seconds,
                share=busy / whole if whole > 0 else None,
            )
            for holder, (flop, busy) in grown.items()
        }


@dataclass(frozen=True, slots=True)
class WorkloadUse:
    """An engine's charges, and the shares that became tokens; None if not known.

    Shares are of executed FLOP in the last ten busy minutes. `useful_share` is what tokens needed,
    without prompts that are usually cached. `explained_share` adds all waste that the engine
    counts, so that 1 minus it is the signed rest. `explained_spread` is the spread of its
    per-minute values over their mean.
    """

    executed_flop: float | None = None
    useful_share: float | None = None
    usual_useful_share: float | None = None
    explained_share: float | None = None
    explained_spread: float | None = None


@dataclass(frozen=True, slots=True)
class Bill:
    """The accounts of the devices whose readings are fresh, by UUID.

    `unresolved` gives, for devices with several holders, the reason why their shares are not
    measured: the `driver` reports no SM time per process, the host's processes are in another PID
    `namespace`, or those with SM time could not be assigned to a holder (`owners`). `workloads` has
    the engines by name.
    """

    devices: Mapping[str, Charges] = field(default_factory=dict)
    unresolved: Mapping[str, Unresolved] = field(default_factory=dict)
    workloads: Mapping[str, WorkloadUse] = field(default_factory=dict)
