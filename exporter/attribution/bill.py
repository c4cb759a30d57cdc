"""The bill of the host: a ledger for each device, charged whenever a State is built."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from exporter.attribution.ledger import (
    NOBODY,
    Charges,
    DeviceLedger,
    Holder,
    totals_of,
)
from exporter.attribution.snapshot import ProcessOwner
from exporter.readings import DeviceIdentity


# Host names are at most this long: a longer pod name is cut.
_HOST_NAME_CHARACTERS_MAX = 63
# Processes that hold a device by their names; more are nobody's.
_PROCESS_NAMES_MAX = 16


@dataclass(frozen=True, slots=True)
class HeldDevice:
    """A device whose readings are fresh, and what is known of its use.

    `processes` are the ids of those with a context, `process_seconds` the SM time by id; None where
    the driver reports none. `parts` are the shares of a partitioned GPU's instances, by holder.
    """

    identity: DeviceIdentity
    counters: object
    holders: Sequence[Holder]
    processes: Sequence[int] = ()
    process_seconds: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class Bill:
    """The accounts of all devices that are fresh, by UUID.

    `unresolved` are the devices that several hold, and none of whose processes could be told apart.
    """

    devices: Mapping[str, Charges] = field(default_factory=dict)
    unresolved: frozenset[str] = frozenset()


class HostLedger:
    """Keeps the ledgers. Used by one thread at a time; it makes no driver call and reads no file."""

    def __init__(self) -> None:
        self._ledgers: dict[str, DeviceLedger] = {}

    def charge(
        self,
        devices: Iterable[HeldDevice],
        owners: Mapping[int, ProcessOwner],
        now: float,
    ) -> Bill:
        """Charge what these devices have counted since the last call; `now` in monotonic seconds."""
        charges: dict[str, Charges] = {}
        unresolved: set[str] = set()
        for device in devices:
            uuid = device.identity.uuid
            ledger = self._ledgers.setdefault(uuid, DeviceLedger())
            assigned = assign_processes(device.holders, device.process_seconds or (), owners)
            ledger.charge(
                totals_of(device.counters),
                device.holders,
                process_seconds=device.process_seconds,
                owners=assigned,
                now=now,
            )
            charges[uuid] = ledger.charges()
            if len(device.holders) > 1 and device.process_seconds and not assigned:
                unresolved.add(uuid)
        return Bill(charges, frozenset(unresolved))


def assign_processes(
    holders: Sequence[Holder], pids: Iterable[int], owners: Mapping[int, ProcessOwner]
) -> dict[int, Holder]:
    """Which of a device's holders each process belongs to; those of none, or of several, are left out."""
    assigned: dict[int, Holder] = {}
    for pid in pids:
        owner = owners.get(pid)
        if owner is None:
            continue
        candidates = [holder for holder in holders if _may_own(holder, owner)]
        if len(candidates) > 1:
            # A host name decides where containers of several pods have one name.
            candidates = [each for each in candidates if _is_pod(each, owner)] or candidates
        if len(candidates) == 1:
            assigned[pid] = candidates[0]
    return assigned


def process_holders(
    pids: Iterable[int], owners: Mapping[int, ProcessOwner]
) -> tuple[Holder, ...]:
    """Processes as holders, by their names: for devices that nobody else holds."""
    names = dict.fromkeys(owners[pid].name for pid in pids if pid in owners and owners[pid].name)
    return tuple(Holder("process", workload=name) for name in list(names)[:_PROCESS_NAMES_MAX])


def _may_own(holder: Holder, owner: ProcessOwner) -> bool:
    if holder.kind == "job":
        return bool(owner.job) and holder.hpc_job == owner.job
    if holder.kind == "pod":
        if owner.container:
            return holder.container == owner.container
        return _is_pod(holder, owner)
    if holder.kind == "process":
        return holder.workload == owner.name
    return False


def _is_pod(holder: Holder, owner: ProcessOwner) -> bool:
    return bool(owner.host_name) and holder.pod[:_HOST_NAME_CHARACTERS_MAX] == owner.host_name


__all__ = ["NOBODY", "Bill", "HeldDevice", "Holder", "HostLedger", "assign_processes", "process_holders"]
