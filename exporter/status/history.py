"""What is remembered of each device: its last hour, and what must survive a restart of the exporter.

The hour is in a fixed piece of memory, cut into slots of ten seconds on the monotonic clock. A slot
adds up seconds (where the time went, how long a cause held the clock) and products with seconds
(clock x seconds), so that any run of slots can be summed and divided: nothing is averaged twice.

Unrepaired faults, and the start times of findings, survive in the state file. A fault stays until
there is evidence of a repair: another boot of the host, or a reset of the GPU. That a GPU was reset
shows in its energy counter, which the driver begins again, and in a pending row remapping that is
done.
"""

import math
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from exporter.accounting.device import COARSE_SOURCE, PERF_SOURCE
from exporter.accounting.flop import PipeWork
from exporter.accounting.time_split import STATE_NAMES
from exporter.device_state import UNKNOWN, DeviceState
from exporter.findings import Finding, Severity
from flopwatch.state_file import StateFile


log = structlog.get_logger(__name__)

SLOT_SECONDS: Final = 10
SLOTS: Final = 360
COLUMN_SECONDS: Final = 60
COLUMNS: Final = SLOTS * SLOT_SECONDS // COLUMN_SECONDS
_MINUTE_SLOTS: Final = 60 // SLOT_SECONDS
_COLUMN_SLOTS: Final = COLUMN_SECONDS // SLOT_SECONDS

_POWER_REASONS: Final = ("sw_power_cap", "hw_power_brake_slowdown")
_THERMAL_REASONS: Final = ("sw_thermal_slowdown", "hw_thermal_slowdown")


# What a slot holds: the seconds of the states, then products with seconds, and those seconds.
_FIELDS: Final = (
    *STATE_NAMES,
    *("flop", "flop_seconds", "dram", "dram_seconds"),
    *("power_held", "power_held_clock", "thermal_held", "thermal_held_clock"),
)
_WIDTH: Final = len(_FIELDS)


@dataclass(frozen=True, slots=True)
class Held:
    """How long a cause held the clock down, as a share 0..1, and the mean clock meanwhile."""

    share: float
    mean_hertz: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A span of the ring. `seconds` is the time that was watched; shares are of that.

    `states` holds the states that took any time; means are None where nothing was read.
    """

    seconds: float
    states: Mapping[str, float]
    achieved_flops: float | None
    dram_bandwidth: float | None
    power_held: Held
    thermal_held: Held


class Ring:
    """Follows one device. `observe` takes microseconds; the memory never grows."""

    def __init__(self) -> None:
        # Single precision: a slot's sums need seven digits, and there may be 64 devices.
        self._cells = array("f", bytes(4 * _WIDTH * SLOTS))
        self._newest: int | None = None
        self._at_seconds = -math.inf
        self._states: dict[str, float] | None = None
        self._reasons: dict[str, float] = {}
        self._flop: dict[tuple[PipeWork, str], float] = {}

    def observe(self, snapshot: DeviceState) -> None:
        """Book what the counters gained since the snapshot before.

        A snapshot seen twice, or of a device that is down, changes nothing. The first one, and one
        whose counters went back, only sets where to count from.
        """
        if not snapshot.up or snapshot.at_seconds <= self._at_seconds:
            return
        before = self._states
        states = dict(snapshot.counters.state_seconds)
        gained = {name: states[name] - (before or {}).get(name, 0.0) for name in states}
        reasons = self._gained_reasons(snapshot)
        flop = self._gained_flop(snapshot)
        self._states = states
        self._at_seconds = snapshot.at_seconds
        watched = sum(gained.values())
        if before is None or min(gained.values(), default=0.0) < 0 or watched <= 0:
            return
        cells = gained | dict(_products(snapshot, reasons, flop, watched))
        self._book(snapshot.at_seconds, watched, [cells.get(name, 0.0) for name in _FIELDS])

    def minute(self, now_seconds: float) -> Summary:
        """The last minute, to the slot: 50 to 60 seconds."""
        return self._summary(now_seconds, _MINUTE_SLOTS)

    def hour(self, now_seconds: float) -> Summary:
        """All that the ring holds."""
        return self._summary(now_seconds, SLOTS)

    def columns(self, now_seconds: float) -> dict[str, list[float | None]]:
        """Shares by state and minute, oldest first; None in a minute that was not watched.

        Only states that took any time are there.
        """
        newest = _slot(now_seconds) // _COLUMN_SLOTS
        first = (newest - COLUMNS + 1) * _COLUMN_SLOTS
        seconds = {name: self._minutes(field, first) for field, name in enumerate(STATE_NAMES)}
        seconds = {name: column for name, column in seconds.items() if any(column)}
        # Thousandths per second watched: whole numbers make short JSON.
        scale = [
            1000 / watched if watched else None
            for watched in map(sum, zip(*seconds.values(), strict=True))
        ]
        return {
            name: [
                None if thousandths is None else int(part * thousandths + 0.5) / 1000
                for part, thousandths in zip(column, scale, strict=True)
            ]
            for name, column in seconds.items()
        }

    @property
    def size_bytes(self) -> int:
        """What the cells take."""
        return len(self._cells) * self._cells.itemsize

    def _gained_reasons(self, snapshot: DeviceState) -> dict[str, float]:
        before, self._reasons = self._reasons, dict(snapshot.counters.event_reason_seconds)
        return {
            name: max(0.0, seconds - before.get(name, seconds))
            for name, seconds in self._reasons.items()
        }

    def _gained_flop(self, snapshot: DeviceState) -> float | None:
        """FLOP of the tensor pipe in the headline precision; None where they are not counted.

        Of a processor, all that its own counters (perf) counted.
        """
        before, self._flop = self._flop, dict(snapshot.counters.flop)
        if snapshot.is_processor:
            gained = [
                max(0.0, flop - before[key])
                for key, flop in self._flop.items()
                if key[1] == PERF_SOURCE and key in before
            ]
            return sum(gained) if gained else None
        if snapshot.last is None or snapshot.last.activity.source == COARSE_SOURCE:
            return None
        wanted = ("tensor", snapshot.precision)
        return sum(
            max(0.0, flop - before.get(key, 0.0))
            for key, flop in self._flop.items()
            if key[0] == wanted
        )

    def _book(self, at_seconds: float, watched: float, cells: list[float]) -> None:
        """Spread the cells over the slots that the watched span touches."""
        first = max(_slot(at_seconds - watched), _slot(at_seconds) - SLOTS + 1)
        for slot in range(first, _slot(at_seconds) + 1):
            begin = max(slot * SLOT_SECONDS, at_seconds - watched)
            end = min((slot + 1) * SLOT_SECONDS, at_seconds)
            part = max(0.0, end - begin) / watched
            if part > 0 and self._turn_to(slot):
                base = slot % SLOTS * _WIDTH
                for position, value in enumerate(cells):
                    self._cells[base + position] += value * part

    def _turn_to(self, slot: int) -> bool:
        """Empty the slots up to this one; False for one that the ring has lost already."""
        if self._newest is None:
            self._newest = slot
        if slot <= self._newest - SLOTS:
            return False
        for emptied in range(max(self._newest + 1, slot - SLOTS + 1), slot + 1):
            base = emptied % SLOTS * _WIDTH
            self._cells[base : base + _WIDTH] = array("f", bytes(4 * _WIDTH))
        self._newest = max(self._newest, slot)
        return True

    def _sums(self, first: int, end: int) -> list[float]:
        """Sums of the slots from `first` to before `end`, as far as the ring holds them."""
        if self._newest is None:
            return [0.0] * _WIDTH
        first, end = max(first, self._newest - SLOTS + 1), min(end, self._newest + 1)
        if first >= end:
            return [0.0] * _WIDTH
        start, stop = first % SLOTS * _WIDTH, ((end - 1) % SLOTS + 1) * _WIDTH
        cells = self._cells
        if start < stop:
            return [sum(cells[start + field : stop : _WIDTH]) for field in range(_WIDTH)]
        return [
            sum(cells[start + field :: _WIDTH]) + sum(cells[field:stop:_WIDTH])
            for field in range(_WIDTH)
        ]

    def _minutes(self, field: int, first: int) -> list[float]:
        """Sums of one field by minute, for an hour of slots from `first` on."""
        held = self._cells[field::_WIDTH]
        if self._newest is None or not any(held):
            return []
        turn = first % SLOTS
        ordered = held[turn:] + held[:turn]
        # What the ring holds in the place of slots before its own time, or still to come.
        before = range(first, self._newest - SLOTS + 1)
        for slot in (*before, *range(max(first, self._newest + 1), first + SLOTS)):
            ordered[slot - first] = 0.0
        # Written out: a sum over tuples takes three times as long, and this runs for every state.
        minutes = zip(*[iter(ordered)] * _COLUMN_SLOTS, strict=True)
        return [a + b + c + d + e + f for a, b, c, d, e, f in minutes]

    def _summary(self, now_seconds: float, slots: int) -> Summary:
        end = _slot(now_seconds) + 1
        sums = dict(zip(_FIELDS, self._sums(end - slots, end), strict=True))
        watched = sum(sums[name] for name in STATE_NAMES)

        def mean(product: str, seconds: str) -> float | None:
            return sums[product] / sums[seconds] if sums[seconds] > 0 else None

        def held(name: str) -> Held:
            share = min(1.0, sums[name] / watched) if watched > 0 else 0.0
            return Held(share, mean(f"{name}_clock", name))

        return Summary(
            seconds=watched,
            states={name: sums[name] / watched for name in STATE_NAMES if sums[name] > 0},
            achieved_flops=mean("flop", "flop_seconds"),
            dram_bandwidth=mean("dram", "dram_seconds"),
            power_held=held("power_held"),
            thermal_held=held("thermal_held"),
        )


def _slot(at_seconds: float) -> int:
    return math.floor(at_seconds / SLOT_SECONDS)


def _products(
    snapshot: DeviceState, reasons: Mapping[str, float], flop: float | None, watched: float
) -> Iterator[tuple[str, float]]:
    """A slot's products with seconds, and those seconds, of what was gained in `watched` seconds."""
    if flop is not None:
        yield from (("flop", flop), ("flop_seconds", watched))
    last = snapshot.last
    dram = last.activity.dram if last else None
    if dram is not None:
        yield from (("dram", dram * watched), ("dram_seconds", watched))
    clock = last.clock.mean_hertz if last else None
    if clock is None:
        return
    for field, names in (("power_held", _POWER_REASONS), ("thermal_held", _THERMAL_REASONS)):
        # The longest of the reasons: how far they overlap is not known, so never more than was.
        held = min(watched, max(reasons.get(name, 0.0) for name in names))
        yield from ((field, held), (f"{field}_clock", held * clock))


_SECTION = "findings"
# The state file is written when something changed, and this often for the energy counters.
_SAVE_SECONDS = 30.0
_REFRESH_SECONDS = 600.0
# A finding that was absent for less than this has not ended: a reading failed in between.
_GONE_SECONDS = 120.0
# Rounding and a driver's own smoothing; a reset takes away thousands.
_ENERGY_NOISE_JOULES = 10.0


class DeviceMemory(msgspec.Struct):
    """One device. Times are Unix seconds; `uncorrected` is the count of memory errors at the last repair."""

    energy_joules: float | None = None
    reset_at: float | None = None
    uncorrected: float | None = None
    power_limit_watts: float | None = None
    remap_pending: bool = False
    xids: dict[str, float] = {}
    since: dict[str, float] = {}
    seen: dict[str, float] = {}

    def repaired(self, at: float) -> None:
        """The GPU was reset: forget earlier faults."""
        self.reset_at = at
        self.xids = {}
        self.uncorrected = None


class _Section(msgspec.Struct):
    boot_id: str | None = None
    devices: dict[str, DeviceMemory] = {}


class Memory:
    """The memories of all devices by UUID. Not thread-safe: Histories' lock guards it."""

    def __init__(
        self,
        file: StateFile | None = None,
        boot: str | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._wall_clock = wall_clock
        self._saved_at = 0.0
        self._changed = False
        section = (file.read(_SECTION, _Section) if file else None) or _Section()
        if boot is not None and section.boot_id != boot:
            for memory in section.devices.values():
                memory.xids, memory.uncorrected, memory.energy_joules = {}, None, None
                memory.remap_pending = False
        self._section = _Section(boot, section.devices)

    def of(self, uuid: str) -> DeviceMemory:
        """The device's memory; a new one where there was none."""
        if uuid == UNKNOWN:
            return DeviceMemory()
        return self._section.devices.setdefault(uuid, DeviceMemory())

    def forget(self, uuid: str) -> None:
        """Forget a device that is permanently gone."""
        self._changed |= self._section.devices.pop(uuid, None) is not None

    def observe(self, device: DeviceState) -> None:
        """Take the device's next state."""
        memory = self.of(device.identity.uuid)
        before = msgspec.structs.replace(memory)
        fast, slow = device.fast, device.slow
        energy = fast.energy_joules if fast is not None else None
        is_reset = slow is not None and memory.remap_pending and slow.row_remap_pending is False
        if energy is not None:
            memory.energy_joules = energy
            known = before.energy_joules
            is_reset |= known is not None and energy < known - _ENERGY_NOISE_JOULES
        if is_reset:
            memory.repaired(self._wall_clock())
        for code, at in device.xids.last_unix_seconds.items():
            if at > max(memory.xids.get(str(code), 0.0), memory.reset_at or 0.0):
                memory.xids = {**memory.xids, str(code): at}
        if slow is not None:
            if slow.row_remap_pending is not None:
                memory.remap_pending = slow.row_remap_pending
            if memory.uncorrected is None:
                memory.uncorrected = slow.ecc_errors.get("uncorrected")
            limits = (slow.power_limit_watts, memory.power_limit_watts)
            memory.power_limit_watts = max(filter(None, limits), default=None)
        # The energy counter changes all the time: it is saved now and then.
        self._changed |= (
            msgspec.structs.replace(memory, energy_joules=before.energy_joules) != before
        )

    def judged(self, uuid: str, findings: Iterable[Finding]) -> dict[str, float]:
        """Since when each kind holds (Unix seconds), now that these do."""
        memory, now = self.of(uuid), self._wall_clock()
        held = {found.kind: found.severity for found in findings}
        for kind, severity in held.items():
            memory.seen[kind] = now
            if kind not in memory.since:
                memory.since[kind] = now
                self._changed |= severity is not Severity.INFO
        for kind in [
            kind for kind in memory.since if now - memory.seen.get(kind, now) > _GONE_SECONDS
        ]:
            del memory.since[kind]
            memory.seen.pop(kind, None)
            self._changed = True
        for kind in memory.since:  # as loaded from the file: its grace period begins now
            memory.seen.setdefault(kind, now)
        return {kind: memory.since[kind] for kind in held}

    def save(self) -> None:
        """Write the state file if there is something to write, and not too often."""
        now = self._wall_clock()
        patience = _SAVE_SECONDS if self._changed else _REFRESH_SECONDS
        if self._file is None or now - self._saved_at < patience or not self._section.devices:
            return
        self._saved_at, self._changed = now, False
        self._file.save(_SECTION, self._section)


# Eight GPUs in seven MIG instances each, and room for those that were swapped. A device that has
# been away for longer than the ring remembers is forgotten when another one comes.
DEVICES_MAX = 128
_FORGET_SECONDS = 3600.0


class DeviceHistory:
    """One device: its ring, the ECC counts it was first seen with, and why it last failed."""

    def __init__(self) -> None:
        self.ring = Ring()
        self.seen_at_seconds = 0.0
        self.failure: str | None = None
        self._first_ecc: dict[str, float] = {}
        self._errors: Mapping[str, int] = {}

    def observe(self, snapshot: DeviceState) -> None:
        """Take the device's next snapshot."""
        self.seen_at_seconds = snapshot.at_seconds
        if snapshot.slow is not None:
            for kind, errors in snapshot.slow.ecc_errors.items():
                self._first_ecc.setdefault(kind, errors)
        nvml = snapshot.sources.get("nvml")
        errors_now = nvml.errors if nvml else {}
        if snapshot.up:
            self.failure = None
        else:
            grown = [name for name, n in errors_now.items() if n > self._errors.get(name, 0)]
            self.failure = grown[-1] if grown else self.failure
        self._errors = errors_now
        self.ring.observe(snapshot)

    def new_ecc_errors(self, ecc_errors: Mapping[str, float]) -> dict[str, float]:
        """Errors since the device was first seen."""
        return {
            kind: max(0.0, errors - self._first_ecc.get(kind, errors))
            for kind, errors in ecc_errors.items()
        }


class Histories:
    """The histories of all devices, by UUID. `lock` guards them while they are read."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.lock = threading.Lock()
        self.memory = memory or Memory()
        self._by_uuid: dict[str, DeviceHistory] = {}
        self._failed_at = float("-inf")

    def observe(self, snapshot: DeviceState) -> None:
        """Take a snapshot of any device; never raises, because sampling must continue."""
        uuid = snapshot.identity.uuid
        if uuid == UNKNOWN:
            return
        try:
            with self.lock:
                history = self._by_uuid.get(uuid)
                if history is None:
                    self._forget(snapshot.at_seconds)
                    if len(self._by_uuid) >= DEVICES_MAX:
                        return
                    history = self._by_uuid[uuid] = DeviceHistory()
                history.observe(snapshot)
                self.memory.observe(snapshot)
        except Exception:  # a bug of the page must not cost a reading
            now = time.monotonic()
            if now - self._failed_at > _FORGET_SECONDS:
                self._failed_at = now
                log.exception("status_history_failed", gpu=snapshot.identity.index)

    def get(self, snapshot: DeviceState) -> DeviceHistory:
        """The history of a device; an empty one if it was never observed. Hold the lock."""
        return self._by_uuid.get(snapshot.identity.uuid) or DeviceHistory()

    def __len__(self) -> int:
        return len(self._by_uuid)

    def _forget(self, now_seconds: float) -> None:
        """Forget devices that have been away for long."""
        for uuid, history in tuple(self._by_uuid.items()):
            if now_seconds - history.seen_at_seconds > _FORGET_SECONDS:
                del self._by_uuid[uuid]
                self.memory.forget(uuid)
