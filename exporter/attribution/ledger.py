"""Divides a device's FLOP, bytes, joules and seconds among its holders.

The device's counters are divided as they grow, so that the shares sum to them: what one holder is
not charged, another one is, and what no holder can be charged goes to `NOBODY`. Pure: no clock and
no I/O.

Convention, with the sources of each share:

* One holder: everything is its own (`exclusive`).
* Several: work, and the time and energy in which the device was busy, in proportion to the SM time
  that the driver reports per process (`process_utilization`; NVML, nvmlDeviceGetProcessUtilization);
  equally if the driver reports none, or if processes cannot be assigned (`equal`).
* Idle time is divided equally among the holders, or goes to `NOBODY`. Energy is divided
  like the time of its tick: the idle part equally, the busy part by SM time.
* A partitioned GPU: FLOP and bytes in proportion to those of the holders' instances. Each holder has
  the time of its instances' SMs, of which the idle part follows the idle time of the instances.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from exporter.accounting.device import Counters
from exporter.attribution.snapshot import (
    IDLE_STATE,
    NOBODY,
    Account,
    Basis,
    Charges,
    Holder,
    Mark,
)
from exporter.device_state import DeviceState


# A holder that left is shown for this long, so that its last charges are scraped.
DEPARTED_SECONDS = 3600.0
# Pods that crash and restart every second must not fill memory and the exposition: of the holders
# that left, only the last ones are shown. On a real node, one or two per hour leave a device.
DEPARTED_MAX = 64
# SM time older than this says nothing about present use.
_USAGE_SECONDS = 10.0
# Marks of past charges, for recent use per holder: their number and spacing.
_MARKS = 7
_MARK_SECONDS = 10.0
_CLOCK_STATES = "clock_"


class Totals(NamedTuple):
    """A device's counters so far: FLOP of the tensor pipe, bytes, joules, seconds by state.

    None means never counted.
    """

    flop: float | None
    dram_bytes: float | None
    energy_joules: float | None
    state_seconds: Mapping[str, float]


class Division(NamedTuple):
    """Each holder's shares of one tick, every mapping summing to 1, and how they were found."""

    flop: Mapping[Holder, float]
    dram_bytes: Mapping[Holder, float]
    busy_energy: Mapping[Holder, float]
    busy_seconds: Mapping[Holder, float]
    idle: Mapping[Holder, float]
    basis: Mapping[Holder, Basis]


@dataclass(frozen=True, slots=True)
class Partition:
    """What the holders of a partitioned GPU have of it, and what their instances did in a tick.

    `sms` are shares of the GPU's SMs and sum to 1, free ones under `NOBODY`. `busy` is the part of
    them that was busy. `flop` and `dram_bytes` are in any unit. Without `basis` the instances did
    not report: all shares are those of the SMs.
    """

    sms: Mapping[Holder, float]
    flop: dict[Holder, float] = field(default_factory=dict)
    dram_bytes: dict[Holder, float] = field(default_factory=dict)
    busy: dict[Holder, float] = field(default_factory=dict)
    basis: dict[Holder, Basis] = field(default_factory=dict)

    def divided(self, idle: float) -> Division:
        """The shares of a tick in which the GPU was idle for this part of the time.

        Every holder has the time of its SMs. Where instances and GPU disagree about how much of it
        was idle, the larger part of the instances' time is scaled down.
        """
        at_work = {holder: self.busy.get(holder, 0.0) for holder in self.sms}
        busy = sum(at_work.values())
        unused = 1.0 - busy
        if busy > 0 and unused < idle:
            at_work = {holder: part * (1 - idle) / busy for holder, part in at_work.items()}
        elif unused > 0:
            at_work = {
                holder: held - (held - at_work[holder]) * idle / unused
                for holder, held in self.sms.items()
            }
        resting = {holder: max(held - at_work[holder], 0.0) for holder, held in self.sms.items()}
        assumed: Basis = "exclusive" if self.basis or len(self.sms) == 1 else "equal"
        return Division(
            flop=_shares(self.flop, self.sms),
            dram_bytes=_shares(self.dram_bytes, self.sms),
            busy_energy=_shares(self.busy, self.sms),
            busy_seconds=_shares(at_work, self.sms),
            idle=_shares(resting, self.sms),
            basis={holder: self.basis.get(holder, assumed) for holder in self.sms},
        )


class Instances:
    """The instances of one GPU: what their holders had been charged at its last charge."""

    def __init__(self) -> None:
        self._before: Mapping[str, Mapping[Holder, Account]] = {}
        # The last partition in which all instances reported.
        self._last: Partition | None = None

    def partition(
        self,
        gpu: DeviceState,
        holders: Mapping[str, Sequence[Holder]],
        charges: Mapping[str, Charges],
    ) -> Partition | None:
        """What the holders have of the GPU, and did since its last charge; None if not known.

        `holders` and `charges` are those of the devices, by UUID. If nothing was done since the last
        charge, what was done before counts.
        """
        sms = instance_weights(gpu, holders)
        if sms is None or len(sms) == 1:
            # One holder, or nobody, has all of it. What the instances do now is not charged later.
            self._before, self._last = {}, None
            return None if sms is None else Partition(sms)
        before = self._before
        self._before = {
            uuid: charges[uuid].accounts
            for instance in gpu.instances
            if (uuid := instance.identity.uuid) in charges
        }
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
        earlier = before.get(holder, Account())
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


def totals_of(counters: Counters) -> Totals:
    """The device's counters that are divided."""
    tensor = [flop for (work, _source), flop in counters.flop.items() if work.pipe == "tensor"]
    return Totals(
        flop=sum(tensor) if tensor else None,
        dram_bytes=sum(counters.dram_bytes.values()) if counters.dram_bytes else None,
        energy_joules=counters.energy_joules,
        state_seconds=counters.state_seconds,
    )


def shares_of(
    holders: Sequence[Holder], usage: Mapping[Holder, float]
) -> tuple[Mapping[Holder, float], Basis]:
    """The share of the work of each of several holders, summing to 1, and its basis.

    `usage` is SM time by holder, in any unit; SM time of no known holder is under `NOBODY`.
    """
    used = sum(usage.values())
    known = sum(usage.get(holder, 0.0) for holder in holders)
    if known <= 0:
        return dict.fromkeys(holders, 1.0 / len(holders)), "equal"
    shares = {holder: usage.get(holder, 0.0) / used for holder in holders}
    if known < used:
        shares[NOBODY] = 1.0 - known / used
    return shares, "process_utilization"


class DeviceLedger:
    """The accounts of one device. Used by one thread at a time."""

    def __init__(self, earlier: Holder = NOBODY) -> None:
        """`earlier` is charged the energy that the device had used before the first charge."""
        self._earlier = earlier
        self._totals = Totals(None, None, None, {})
        self._accounts: dict[Holder, Account] = {}
        self._process_seconds: Mapping[int, float] = {}
        self._usage: Mapping[Holder, float] = {}
        self._usage_at = 0.0
        self._basis: dict[Holder, Basis] = {}
        self._marks: deque[Mark] = deque(maxlen=_MARKS)

    def charge(
        self,
        totals: Totals,
        holders: Iterable[Holder],
        *,
        process_seconds: Mapping[int, float] | None,
        owners: Mapping[int, Holder],
        now: float,
        partition: Partition | None = None,
    ) -> None:
        """Divide the increase of the device's counters since the last call.

        `process_seconds` is the SM time that the driver has reported so far, by process id; None if
        it reports none. `owners` maps processes to holders. `now` is in seconds of any monotonic
        clock. `partition` describes a GPU with MIG instances.
        """
        self._take_usage(process_seconds, owners, now)
        before, self._totals = self._totals, totals
        if totals.energy_joules is not None and before.energy_joules is None:
            # A device's own energy counter started long before the first holder was watched.
            earlier = self._open(self._earlier)
            earlier.energy_joules = (earlier.energy_joules or 0.0) + totals.energy_joules
            before = before._replace(energy_joules=totals.energy_joules)
        present = tuple(dict.fromkeys(holders)) or (NOBODY,)
        if partition is None and len(present) == 1:
            self._charge_one(present[0], totals, before, now)
        else:
            self._divide(totals, before, present, partition, now)
        self._drop_departed(now)
        if not self._marks or now - self._marks[-1].at_seconds >= _MARK_SECONDS:
            self._marks.append(self._mark(now))

    def _charge_one(self, holder: Holder, totals: Totals, before: Totals, now: float) -> None:
        """The usual case, without a division: one holder, or nobody, is charged everything."""
        self._set_basis({holder: "exclusive"})
        account = self._open(holder)
        account.last_held_seconds = now
        if totals.flop is not None:
            account.flop = (account.flop or 0.0) + _grown(totals.flop, before.flop)
        if totals.dram_bytes is not None:
            read = _grown(totals.dram_bytes, before.dram_bytes)
            account.dram_bytes = (account.dram_bytes or 0.0) + read
        if totals.energy_joules is not None:
            used = _grown(totals.energy_joules, before.energy_joules)
            account.energy_joules = (account.energy_joules or 0.0) + used
        spent, earlier = account.state_seconds, before.state_seconds
        for state, seconds in totals.state_seconds.items():
            spent[state] = spent.get(state, 0.0) + _grown(seconds, earlier.get(state))

    def _divide(
        self,
        totals: Totals,
        before: Totals,
        holders: Sequence[Holder],
        partition: Partition | None,
        now: float,
    ) -> None:
        """Several holders, or MIG instances: each is charged its share."""
        seconds = {
            state: _grown(total, before.state_seconds.get(state))
            for state, total in totals.state_seconds.items()
        }
        elapsed = sum(seconds.values())
        idle = seconds.get(IDLE_STATE, 0.0) / elapsed if elapsed > 0 else 1.0
        division = partition.divided(idle) if partition else _division(holders, self._usage)
        self._set_basis(division.basis)
        for holder in {**division.idle, **division.flop}:
            self._open(holder).last_held_seconds = now
        self._share("flop", _delta(totals.flop, before.flop), division.flop)
        self._share("dram_bytes", _delta(totals.dram_bytes, before.dram_bytes), division.dram_bytes)
        energy = _delta(totals.energy_joules, before.energy_joules)
        if energy is not None:
            self._share("energy_joules", energy * idle, division.idle)
            self._share("energy_joules", energy * (1 - idle), division.busy_energy)
        for state, spent in seconds.items():
            shares = division.idle if state == IDLE_STATE else division.busy_seconds
            self._share_seconds(state, spent, shares)

    def _open(self, holder: Holder) -> Account:
        """The holder's account, for writing: a copy, as earlier charges keep what they were given."""
        before = self._accounts.get(holder)
        account = self._accounts[holder] = Account()
        if before is not None:
            account.flop = before.flop
            account.dram_bytes = before.dram_bytes
            account.energy_joules = before.energy_joules
            account.state_seconds = dict(before.state_seconds)
            account.last_held_seconds = before.last_held_seconds
        return account

    def _set_basis(self, basis: Mapping[Holder, Basis]) -> None:
        if basis != self._basis:  # usually the same: its rows are not read again then
            self._basis = dict(basis)

    def charges(self) -> Charges:
        """The accounts as they are now."""
        return Charges(
            accounts=dict(self._accounts),
            basis=self._basis,
            before=self._marks[0] if self._marks else None,
            watched_seconds=sum(self._totals.state_seconds.values()),
        )

    def _mark(self, now: float) -> Mark:
        charged = {
            holder: (account.flop, account.busy_seconds)
            for holder, account in self._accounts.items()
        }
        return Mark(now, sum(self._totals.state_seconds.values()), charged)

    def _take_usage(
        self,
        process_seconds: Mapping[int, float] | None,
        owners: Mapping[int, Holder],
        now: float,
    ) -> None:
        """Keep the SM time by holder since the last call; without any, the latest known."""
        if process_seconds is None:
            self._process_seconds, self._usage = {}, {}
            return
        usage: dict[Holder, float] = {}
        for pid, seconds in process_seconds.items():
            grown = seconds - self._process_seconds.get(pid, 0.0)
            if grown > 0:
                holder = owners.get(pid, NOBODY)
                usage[holder] = usage.get(holder, 0.0) + grown
        self._process_seconds = process_seconds
        if usage:
            self._usage, self._usage_at = usage, now
        elif now - self._usage_at > _USAGE_SECONDS:
            self._usage = {}

    def _share(
        self,
        name: Literal["flop", "dram_bytes", "energy_joules"],
        amount: float | None,
        shares: Mapping[Holder, float],
    ) -> None:
        if amount is None:
            return
        for holder, part in _parts(amount, shares):
            account = self._accounts[holder]
            setattr(account, name, (getattr(account, name) or 0.0) + part)

    def _share_seconds(self, state: str, amount: float, shares: Mapping[Holder, float]) -> None:
        for holder, part in _parts(amount, shares):
            seconds = self._accounts[holder].state_seconds
            seconds[state] = seconds.get(state, 0.0) + part

    def _drop_departed(self, now: float) -> None:
        departed = {
            holder: account.last_held_seconds
            for holder, account in self._accounts.items()
            if account.last_held_seconds < now and holder.kind != NOBODY.kind
        }
        for holder, last_held in departed.items():
            if now - last_held > DEPARTED_SECONDS:
                del self._accounts[holder]
        if len(departed) > DEPARTED_MAX:
            for holder in sorted(departed, key=departed.__getitem__)[:-DEPARTED_MAX]:
                self._accounts.pop(holder, None)


def _division(holders: Sequence[Holder], usage: Mapping[Holder, float]) -> Division:
    """The shares of a whole device: work by SM time, idle time equally."""
    work, basis = shares_of(holders, usage)
    held = dict.fromkeys(holders, 1.0 / len(holders))
    return Division(work, work, work, work, held, dict.fromkeys(held, basis))


def _shares(
    amounts: Mapping[Holder, float], otherwise: Mapping[Holder, float]
) -> Mapping[Holder, float]:
    """The amounts as shares of their sum; without any, the other shares.

    What a holder did that has left meanwhile is charged to nobody.
    """
    whole = sum(amounts.values())
    if whole <= 0:
        return otherwise
    shares = {holder: amounts.get(holder, 0.0) / whole for holder in otherwise}
    left = sum(amount for holder, amount in amounts.items() if holder not in otherwise)
    if left > 0:
        shares[NOBODY] = shares.get(NOBODY, 0.0) + left / whole
    return shares


def _parts(amount: float, shares: Mapping[Holder, float]) -> Iterable[tuple[Holder, float]]:
    """The divided amount; the last holder gets the remainder, so that nothing is lost."""
    left = amount
    *others, last = shares
    for holder in others:
        part = amount * shares[holder]
        left -= part
        yield holder, part
    yield last, max(left, 0.0)


def _grown(total: float, before: float | None) -> float:
    return max(0.0, total - (before or 0.0))


def _delta(total: float | None, before: float | None) -> float | None:
    return None if total is None else _grown(total, before)
