"""The bill of the host: what each holder is charged, and how much of an engine's FLOP became tokens.

One ledger per device is charged whenever a State is built.

An engine's executed FLOP are those charged to its holder on each of its devices. They are known
only if that holder is charged for nothing else: no other engine on the device, and no assumed share
(basis `equal`). Useful FLOP come from the engine's tokens; both are compared between scrapes of the
engine, over windows of a minute.
"""

import math
from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from exporter.attribution.ledger import DeviceLedger, Instances, totals_of
from exporter.attribution.snapshot import (
    NOBODY,
    Bill,
    Charges,
    Holder,
    ProcessOwner,
    Unresolved,
    WorkloadUse,
    nobody_before,
)
from exporter.device_state import DeviceState
from exporter.findings import limit
from exporter.inference.snapshot import WorkloadSnapshot, WorkloadsSnapshot
from exporter.state import State


# Host names have at most this length: a longer pod name is truncated.
_HOST_NAME_CHARACTERS_MAX = 63
# The limit of processes billed by name per device; further ones have no holder.
_PROCESS_NAMES_MAX = 16
# A process that the driver does not list counts as a holder for this long after its last SM time.
_SAMPLED_SECONDS = 60.0
WINDOW_SECONDS = 60.0
# The windows that a judgement needs and uses.
RECENT_WINDOWS = 10
USUAL_SECONDS = 6 * 3600.0
# Windows before those that are needed to know the usual share.
LEAST_USUAL_WINDOWS = 30
# A useful share far below the usual one becomes the usual one only after this long.
LONGEST_FALL_SECONDS = 14 * 86_400.0
# Below this a GPU did almost nothing in the window, and the probes may account for most of it.
_LEAST_FLOP_PER_SECOND = 1e9
# Workloads that are no longer listed are forgotten after this time.
_FORGET_SECONDS = 3600.0


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
        self._instances: dict[str, Instances] = {}  # by GPU
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
                partition = None
                if device.instances:
                    instances = self._instances.setdefault(uuid, Instances())
                    partition = instances.partition(device, held, charges)
                else:
                    self._instances.pop(uuid, None)
                ledger.charge(
                    totals_of(device.counters),
                    present,
                    process_seconds=seconds,
                    owners=assigned,
                    now=device.at_seconds,
                    partition=partition,
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


@dataclass(frozen=True, slots=True)
class Needed:
    """FLOP that an engine's tokens needed so far: useful FLOP, and all that are explained.

    `explained` is useful FLOP plus those that the engine counts as wasted.
    """

    useful: float
    explained: float


@dataclass(frozen=True, slots=True)
class _Window:
    seconds: float
    executed: float
    useful: float
    explained: float


@dataclass(slots=True)
class _Record:
    executed: float = 0.0
    known: bool = False
    # By device: the holder, and its charges when last seen.
    charged: dict[str, tuple[Holder, float]] = field(default_factory=dict)
    scraped_at: float | None = None
    # The start of the present window: monotonic time, executed FLOP, and needed FLOP.
    start: tuple[float, float, Needed] | None = None
    recent: deque[_Window] = field(default_factory=deque)
    usual_useful: float = 0.0
    usual_executed: float = 0.0
    usual_windows: int = 0
    fallen_seconds: float = 0.0
    seen_at: float = 0.0

    def usual(self) -> float | None:
        if self.usual_windows < LEAST_USUAL_WINDOWS or self.usual_executed <= 0:
            return None
        return self.usual_useful / self.usual_executed

    def add_executed(
        self, holders: Mapping[str, Holder] | None, charges: Mapping[str, Charges]
    ) -> None:
        flop: dict[str, tuple[Holder, float]] = {}
        for uuid, holder in (holders or {}).items():
            account = charges[uuid].accounts.get(holder) if uuid in charges else None
            if account is not None and account.flop is not None:
                flop[uuid] = holder, account.flop
        known = bool(holders) and len(flop) == len(holders or {})
        for uuid, (holder, total) in flop.items():
            before = self.charged.get(uuid)
            if before is not None and before[0] == holder:
                self.executed += max(0.0, total - before[1])
            else:
                known = False  # from here on
        self.charged = flop
        if not known or not self.known:
            self.start = None
        self.known = known

    def scraped(self, needed: Needed, now: float) -> None:
        """The engine was scraped: start a window, or end one that is long enough."""
        if self.start is None:
            self.start = now, self.executed, needed
            return
        began, executed, before = self.start
        window = _Window(
            seconds=now - began,
            executed=self.executed - executed,
            useful=needed.useful - before.useful,
            explained=needed.explained - before.explained,
        )
        if window.seconds < WINDOW_SECONDS:
            return
        self.start = now, self.executed, needed
        busy = window.executed >= _LEAST_FLOP_PER_SECOND * window.seconds
        if not busy or window.useful < 0 or window.explained <= 0:
            return
        self.recent.append(window)
        recent = _ratio(self.recent, "useful")
        usual = self.usual()
        fallen = usual is not None and recent < limit("usefulDrop") * usual
        self.fallen_seconds = self.fallen_seconds + window.seconds if fallen else 0.0
        while len(self.recent) > RECENT_WINDOWS:
            past = self.recent.popleft()
            if fallen and self.fallen_seconds < LONGEST_FALL_SECONDS:
                continue
            fade = math.exp(-past.seconds / USUAL_SECONDS)
            self.usual_useful = self.usual_useful * fade + past.useful
            self.usual_executed = self.usual_executed * fade + past.executed
            self.usual_windows += 1

    def use(self, needed: Needed | None) -> WorkloadUse:
        if not self.known:
            return WorkloadUse()
        if needed is None or len(self.recent) < RECENT_WINDOWS:
            return WorkloadUse(executed_flop=self.executed)
        shares = [window.explained / window.executed for window in self.recent]
        explained = _ratio(self.recent, "explained")
        return WorkloadUse(
            executed_flop=self.executed,
            useful_share=_ratio(self.recent, "useful"),
            usual_useful_share=self.usual(),
            explained_share=explained,
            explained_spread=(max(shares) - min(shares)) / explained,
        )


class UsefulnessLedger:
    """Keeps the usefulness records of the engines. Used by one thread at a time."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def enter(
        self,
        workload: WorkloadSnapshot,
        holders: Mapping[str, Holder] | None,
        charges: Mapping[str, Charges],
        now: float,
    ) -> WorkloadUse:
        """Record a workload's charges and reports at `now`, in monotonic seconds.

        `holders` are its holders on each of its devices, by UUID; None if one of them is not known.
        """
        record = self._records.setdefault(workload.name, _Record())
        record.seen_at = now
        record.add_executed(holders, charges)
        needed = needed_by(workload) if record.known else None
        if needed is None:
            record.start = None
        elif record.scraped_at != workload.last_success_timestamp_seconds:
            record.scraped_at = workload.last_success_timestamp_seconds
            record.scraped(needed, now)
        return record.use(needed)

    def forget_others(self, now: float) -> None:
        """Drop the records of workloads that were not updated for an hour."""
        for name, record in list(self._records.items()):
            if now - record.seen_at > _FORGET_SECONDS:
                del self._records[name]


def needed_by(workload: WorkloadSnapshot) -> Needed | None:
    """FLOP needed by the tokens of all its models; None unless known for every model."""
    useful = explained = 0.0
    for model in workload.models:
        if model.prefill_flop is None or model.decode_flop is None or not model.all_gpus_here:
            return None
        flop = model.prefill_flop + model.decode_flop
        wasted = model.wasted_flop
        useful += flop - wasted.get("lost_cache_hits", 0.0)
        explained += flop + wasted.get("preemption", 0.0) + wasted.get("rejected_drafts", 0.0)
    return Needed(useful, explained) if workload.up and workload.models else None


def _ratio(windows: Sequence[_Window], name: str) -> float:
    executed = sum(window.executed for window in windows)
    return float(sum(getattr(window, name) for window in windows)) / executed


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
