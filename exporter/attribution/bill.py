"""The bill of the host: one ledger per device, charged whenever a State is built."""

from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType

from exporter.attribution.ledger import (
    IDLE_STATE,
    NOBODY,
    Account,
    Bill,
    Charges,
    DeviceLedger,
    Holder,
    Partition,
    Unresolved,
    nobody_before,
    totals_of,
)
from exporter.attribution.snapshot import ProcessOwner
from exporter.attribution.usefulness import UsefulnessLedger
from exporter.device_state import DeviceState
from exporter.inference.snapshot import WorkloadSnapshot, WorkloadsSnapshot
from exporter.state import State


# Host names have at most this length: a longer pod name is truncated.
_HOST_NAME_CHARACTERS_MAX = 63
# The limit of processes billed by name per device; further ones have no holder.
_PROCESS_NAMES_MAX = 16
# A process that the driver does not list counts as a holder for this long after its last SM time.
_SAMPLED_SECONDS = 60.0
_CLOCK_STATES = "clock_"


class HostLedger:
    """Keeps the ledgers. Used by one thread at a time. Makes no driver call and reads no file."""

    def __init__(self, started: str = "") -> None:
        """`started` is the exporter's start as text; without it, earlier energy is `NOBODY`'s."""
        self._earlier = nobody_before(started) if started else NOBODY
        self._ledgers: dict[str, DeviceLedger] = {}
        # The state at each device's last charge: nothing is charged until it ticks or its holders
        # change.
        self._charged: dict[str, tuple[DeviceState, tuple[Holder, ...], Charges]] = {}
        # By device and process: SM seconds, and the time of their last increase.
        self._sampled: dict[str, dict[int, tuple[float, float]]] = {}
        # By GPU: what the holders of its instances had been charged at its last charge, and the
        # last partition in which the instances reported.
        self._instances: dict[str, _Instances] = {}
        self._usefulness = UsefulnessLedger()

    def charge(self, state: State, *, by_process: bool = False) -> Bill:
        """Charge the increase of the devices' counters since the last State.

        `by_process`: if a device has no other holder, bill its processes by name.
        """
        holders = holders_by_device(state)
        owners = state.holders.processes
        serving = _serving(state.workloads)
        charges: dict[str, Charges] = {}
        unresolved: dict[str, Unresolved] = {}
        self._forget_instances({device.identity.uuid for device in state.devices})
        held = dict(holders)
        # Instances first: what they did divides their GPU.
        for device in sorted(state.devices, key=lambda each: each.identity.mig is None):
            if not device.up or device.fast is None:
                continue
            uuid = device.identity.uuid
            seconds = device.fast.process_sm_seconds
            present = holders.get(uuid, ())
            if not present and by_process and not device.instances:
                present = process_holders(self._processes(device), owners)
            present += tuple(
                holder for each in device.instances for holder in held.get(each.identity.uuid, ())
            )
            held[uuid] = present
            assigned = assign_processes(present, seconds or (), owners, serving)
            last = self._charged.get(uuid)
            if last and last[0] is device and last[1] == present:
                charges[uuid] = last[2]
            else:
                ledger = self._ledgers.setdefault(uuid, DeviceLedger(self._earlier))
                ledger.charge(
                    totals_of(device.counters),
                    present,
                    process_seconds=seconds,
                    owners=assigned,
                    now=device.at_seconds,
                    partition=self._partition(device, held, charges),
                )
                charges[uuid] = ledger.charges()
                self._charged[uuid] = (device, present, charges[uuid])
            if len(present) > 1 and not device.instances and not assigned:
                why = _unresolved(seconds, host_processes=state.holders.host_processes)
                if why is not None:
                    unresolved[uuid] = why
        uses = {
            workload.name: self._usefulness.enter(
                workload,
                workload_holders(workload, state, holders, charges),
                charges,
                state.at_seconds,
            )
            for workload in state.workloads.workloads
        }
        self._usefulness.forget_others(state.at_seconds)
        return Bill(charges, unresolved, uses)

    def _forget_instances(self, listed: Container[str]) -> None:
        """Drop MIG instances that are gone: a re-created instance starts its counters at zero."""
        gone = [uuid for uuid in self._ledgers if uuid.startswith("MIG-") and uuid not in listed]
        for uuid in gone:
            del self._ledgers[uuid]
            self._charged.pop(uuid, None)
            self._sampled.pop(uuid, None)

    def _partition(
        self,
        gpu: DeviceState,
        holders: Mapping[str, Sequence[Holder]],
        charges: Mapping[str, Charges],
    ) -> Partition | None:
        """What the holders of a GPU's instances have of it, and did since its last charge."""
        if not gpu.instances:
            self._instances.pop(gpu.identity.uuid, None)
            return None
        sms = instance_weights(gpu, holders)
        if sms is None or len(sms) == 1:
            # One holder, or nobody, has all of it. What the instances do now is not charged later.
            self._instances.pop(gpu.identity.uuid, None)
            return None if sms is None else Partition(sms)
        known = self._instances.setdefault(gpu.identity.uuid, _Instances())
        return known.partition(gpu, sms, charges)

    def _processes(self, device: DeviceState) -> list[int]:
        """Processes on a device: those listed by the driver or with SM time in the last minute.

        MPS clients are not in the driver's list.
        """
        listed = () if device.slow is None else device.slow.processes or ()
        sampled = {} if device.fast is None else device.fast.process_sm_seconds or {}
        before = self._sampled.get(device.identity.uuid, {})
        now: dict[int, tuple[float, float]] = {}
        for pid in sampled:
            seconds, at = before.get(pid, (0.0, device.at_seconds))
            grown = sampled[pid] > seconds
            now[pid] = sampled[pid], device.at_seconds if grown else at
        self._sampled[device.identity.uuid] = now
        recent = (pid for pid, (_, at) in now.items() if device.at_seconds - at < _SAMPLED_SECONDS)
        return list(dict.fromkeys([*(process.pid for process in listed), *recent]))


_NOTHING = Account()


class _Instances:
    """The accounts of a GPU's instances at its last charge."""

    def __init__(self) -> None:
        self._before: Mapping[str, Mapping[Holder, Account]] = {}
        self._last: Partition | None = None

    def partition(
        self, gpu: DeviceState, sms: Mapping[Holder, float], charges: Mapping[str, Charges]
    ) -> Partition:
        """What the instances did since the last charge; without anything, what they did before."""
        before, self._before = (
            self._before,
            {
                instance.identity.uuid: charges[instance.identity.uuid].accounts
                for instance in gpu.instances
                if instance.identity.uuid in charges
            },
        )
        done = Partition(sms)
        grew = [
            _add_instance(done, instance, gpu, charges[uuid], before[uuid])
            for instance in gpu.instances
            if (uuid := instance.identity.uuid) in self._before and uuid in before
        ]
        if len(grew) < len(gpu.instances):
            self._last = None  # one of them does not report
        elif all(grew):
            self._last = done
        elif self._last is not None and self._last.sms != sms:
            self._last = None
        return self._last or Partition(sms)


def _add_instance(
    done: Partition,
    instance: DeviceState,
    gpu: DeviceState,
    charged: Charges,
    before: Mapping[Holder, Account],
) -> bool:
    """Add what the holders of an instance were charged; False if no time was.

    Time lost to low clocks is neither busy nor idle here: all instances have the GPU's clock.
    """
    part = (instance.identity.sm_count or 0) / (gpu.identity.sm_count or 1)
    busy: dict[Holder, float] = {}
    elapsed = 0.0
    for holder, account in charged.accounts.items():
        earlier = before.get(holder, _NOTHING)
        spent = {
            state: seconds - earlier.state_seconds.get(state, 0.0)
            for state, seconds in account.state_seconds.items()
            if not state.startswith(_CLOCK_STATES)
        }
        elapsed += sum(spent.values())
        busy[holder] = sum(spent.values()) - spent.get(IDLE_STATE, 0.0)
        _add(done.flop, holder, account.flop, earlier.flop)
        _add(done.dram_bytes, holder, account.dram_bytes, earlier.dram_bytes)
    if elapsed <= 0:
        return False
    for holder, seconds in busy.items():
        _add(done.busy, holder, part * seconds / elapsed, None)
    for holder, basis in charged.basis.items():
        if done.basis.get(holder, "exclusive") == "exclusive":
            done.basis[holder] = basis
    return True


def _add(
    sums: dict[Holder, float], holder: Holder, amount: float | None, before: float | None
) -> None:
    if amount is not None:
        # An instance that was created again has counters from zero.
        sums[holder] = sums.get(holder, 0.0) + max(0.0, amount - (before or 0.0))


def workload_holders(
    workload: WorkloadSnapshot,
    state: State,
    holders: Mapping[str, Sequence[Holder]],
    charges: Mapping[str, Charges],
) -> dict[str, Holder] | None:
    """The holder that represents an engine on each of its devices, by UUID.

    None if one of its devices is not read, is partitioned, or is shared in a way that does not
    separate the engine from others.
    """
    others = [each for each in state.workloads.workloads if each.name != workload.name]
    found: dict[str, Holder] = {}
    for gpu in workload.gpus:
        device, present = state.fresh(gpu.uuid), holders.get(gpu.uuid, ())
        if device is None or device.instances or gpu.uuid not in charges:
            return None
        beside = [each for each in others if any(use.uuid == gpu.uuid for use in each.gpus)]
        mine = _standing_for(workload, present, state)
        if mine is None or any(
            _standing_for(each, present, state) in (mine, None) for each in beside
        ):
            return None
        if len(present) > 1 and charges[gpu.uuid].basis.get(mine) != "process_utilization":
            return None
        found[gpu.uuid] = mine
    return found or None


def _standing_for(
    workload: WorkloadSnapshot, present: Sequence[Holder], state: State
) -> Holder | None:
    """The holder on a device that is the engine or contains it; None if that is ambiguous."""
    if len(present) == 1:
        return present[0]
    own = Holder("workload", workload=workload.name)
    if own in present:
        return own
    assigned = assign_processes(present, workload.processes, state.holders.processes)
    candidates = set(assigned.values())
    return candidates.pop() if len(candidates) == 1 else None


def holders_by_device(state: State) -> dict[str, tuple[Holder, ...]]:
    """The holders of each device, by UUID: its pods, else its jobs, else its engines."""
    pods: dict[str, list[Holder]] = {}
    jobs: dict[str, list[Holder]] = {}
    workloads: dict[str, list[Holder]] = {}
    for allocation in state.holders.allocations:
        device = state.held(allocation.device)
        if device is not None:
            holder = Holder("pod", allocation.namespace, allocation.pod, allocation.container)
            pods.setdefault(device.identity.uuid, []).append(holder)
    for use in state.holders.jobs:
        device = state.held(use.device)
        if device is not None:
            holder = Holder("job", hpc_job=use.job)
            jobs.setdefault(device.identity.uuid, []).append(holder)
    for workload in state.workloads.workloads:
        for gpu in workload.gpus:
            holder = Holder("workload", workload=workload.name)
            workloads.setdefault(gpu.uuid, []).append(holder)
    merged = {**workloads, **jobs, **pods}
    return {uuid: tuple(dict.fromkeys(found)) for uuid, found in merged.items()}


def instance_weights(
    gpu: DeviceState, holders: Mapping[str, Sequence[Holder]]
) -> dict[Holder, float] | None:
    """The shares of a partitioned GPU: SMs of each holder's instances over those of the GPU.

    SMs of no instance, or of an instance without a holder, are not attributed. None if the driver
    does not report the SM count of an instance.
    """
    whole = gpu.identity.sm_count
    if not whole:
        return None
    weights: dict[Holder, float] = {}
    for instance in gpu.instances:
        count = instance.identity.sm_count
        if not count:
            return None
        present = holders.get(instance.identity.uuid, ()) or (NOBODY,)
        for holder in present:
            weights[holder] = weights.get(holder, 0.0) + count / whole / len(present)
    left = 1.0 - sum(weights.values())
    if left < 0:
        return None
    weights[NOBODY] = weights.get(NOBODY, 0.0) + left
    return weights


def assign_processes(
    holders: Sequence[Holder],
    pids: Iterable[int],
    owners: Mapping[int, ProcessOwner],
    serving: Mapping[int, str] = MappingProxyType({}),
) -> dict[int, Holder]:
    """The holder of each process on a device; processes of none or several are left out.

    `serving` maps processes to the names of their engines.
    """
    assigned: dict[int, Holder] = {}
    for pid in pids:
        engine = serving.get(pid)
        if engine is not None:
            own = Holder("workload", workload=engine)
            if own in holders:
                assigned[pid] = own
                continue
        owner = owners.get(pid)
        if owner is None:
            continue
        candidates = [holder for holder in holders if _may_own(holder, owner)]
        if len(candidates) > 1:
            # The host name decides if containers of several pods share a name.
            candidates = [each for each in candidates if _is_pod(each, owner)] or candidates
        if len(candidates) == 1:
            assigned[pid] = candidates[0]
    return assigned


def process_holders(pids: Iterable[int], owners: Mapping[int, ProcessOwner]) -> tuple[Holder, ...]:
    """Processes as holders, by name: for devices without any other holder."""
    names = dict.fromkeys(owners[pid].name for pid in pids if pid in owners and owners[pid].name)
    return tuple(Holder("process", workload=name) for name in list(names)[:_PROCESS_NAMES_MAX])


def _unresolved(seconds: Mapping[int, float] | None, *, host_processes: bool) -> Unresolved | None:
    """Why no process of a shared device was assigned; None if none has run anything."""
    if seconds is None:
        return "driver"
    if not host_processes:
        return "namespace"
    return "owners" if seconds else None


def _serving(workloads: WorkloadsSnapshot) -> dict[int, str]:
    """The engine of each process; processes claimed by several engines are left out."""
    names: dict[int, str] = {}
    several: set[int] = set()
    for workload in workloads.workloads:
        for pid in workload.processes:
            if names.setdefault(pid, workload.name) != workload.name:
                several.add(pid)
    return {pid: name for pid, name in names.items() if pid not in several}


def _may_own(holder: Holder, owner: ProcessOwner) -> bool:
    if holder.kind == "job":
        return bool(owner.job) and holder.hpc_job == owner.job
    if holder.kind == "pod":
        return holder.container == owner.container if owner.container else _is_pod(holder, owner)
    return holder.kind == "process" and holder.workload == owner.name


def _is_pod(holder: Holder, owner: ProcessOwner) -> bool:
    return bool(owner.host_name) and holder.pod[:_HOST_NAME_CHARACTERS_MAX] == owner.host_name
