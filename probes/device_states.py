"""The state of all devices: results, budgets and baselines, and the part saved on disk."""

import math
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from flopwatch.state_file import StateFile
from probes.budget import BudgetLimits, Charge, Ledger, limits
from probes.config import ProbeConfig
from probes.facts import DeviceFacts
from probes.gates import Reason
from probes.judgement import Baseline, Seconds
from probes.records import DeviceRecord, ProbeResults
from probes.schedule import Backoff, Clock
from probes.supervisor import outcome_of


SECTION: Final = "probes"  # of the state file
# Absent MIG instances that may return: several partitionings of a node of 16 GPUs.
INSTANCES_KEPT: Final = 256
# A worker that ends while idle twice within this time is restarted with a delay.
IDLE_DEATH_SECONDS: Final = 300.0
# Every device has it; it represents the planned run when nothing is known about the device.
FIRST_KERNEL: Final = "launch"

log = structlog.get_logger(__name__)


class SavedProbes(msgspec.Struct, frozen=True):
    """The section `probes` of the state file: the data that the probe service keeps."""

    baselines: dict[str, dict[str, Baseline]] = {}
    """By device UUID and kernel."""
    charges: dict[str, list[tuple[float, Seconds]]] = {}
    """By device UUID: Unix time and seconds of each charge of the last hours."""


def saved_probes(file: StateFile) -> SavedProbes:
    """The saved section; empty if it is missing or invalid."""
    return file.read(SECTION, SavedProbes) or SavedProbes()


@dataclass(slots=True)
class ProbedDevice:
    """The state kept for a device."""

    record: DeviceRecord
    ledger: Ledger
    name: str = ""
    gpu_uuid: str | None = None
    """Of a MIG instance: the GPU that it is cut from."""
    backoff: Backoff = field(default_factory=Backoff)
    held_back: dict[str, Backoff] = field(default_factory=dict)
    """By kernel, those in whose runs the worker ended."""
    baselines: dict[str, Baseline] = field(default_factory=dict)
    attempted: dict[str, float] = field(default_factory=dict)
    """By kernel, when it was last run, on the monotonic clock."""
    misfits: Counter[str] = field(default_factory=Counter)
    """By kernel, how often a whole interval's budget was too small for it."""
    credit_taken: float = 0.0
    """Device time that first headline figures took beyond an interval's budget."""
    last_idle_death: float = -math.inf
    died: bool = False
    """The last worker ended against its will: the next start is a restart."""
    missing_logged: bool = False
    memory_logged: bool = False

    def hold_back(self, kernel: str, now: float) -> None:
        """Leave out a kernel that ended the worker for a while, longer each time."""
        self.held_back.setdefault(kernel, Backoff()).failed(now)

    def holds_back(self, kernel: str, now: float) -> bool:
        """Whether a kernel is left out for now."""
        return kernel in self.held_back and self.held_back[kernel].active(now)


class DeviceStates:
    """All devices' states. `lock` guards the records, which other threads read."""

    def __init__(self, config: ProbeConfig, file: StateFile, clock: Clock) -> None:
        self.lock = threading.Lock()
        self.clock = clock
        self.limits = _limits(config)
        self._file = file
        self._saved: SavedProbes | None = None
        self._devices: dict[str, ProbedDevice] = {}
        self._away: dict[str, ProbedDevice] = {}
        self.turns = 1
        """How many MIG instances take turns: each is probed once in so many intervals."""

    def __getitem__(self, uuid: str) -> ProbedDevice:
        return self._devices[uuid]

    def uuids(self) -> set[str]:
        """All devices seen so far."""
        return set(self._devices)

    def enter(self, facts: DeviceFacts) -> None:
        """Add a device with its saved state, unless it is known already."""
        with self.lock:
            state = self._devices.get(facts.uuid)
            if state is not None and facts.instance is not None and state.name != facts.name:
                # The driver assigned the UUID to an instance of another size.
                self._put_away(facts.uuid)
                state = None
            if state is None:
                state = self._new_state(facts)
                self._devices[facts.uuid] = state
            # The index of a GPU can change under the same UUID.
            state.record.device = facts.key
            state.record.model_gemms = tuple(gemm.name for gemm in facts.model_gemms)

    def leave(self, uuid: str) -> None:
        """Remove a MIG instance that is gone: its measurements are no longer shown.

        Its baselines and budget charges are kept for its return.
        """
        with self.lock:
            self._put_away(uuid)

    def configure(self, config: ProbeConfig) -> BudgetLimits:
        """Use another budget; earlier charges remain."""
        with self.lock:
            self.limits = _limits(config)
            for state in (*self._devices.values(), *self._away.values()):
                state.ledger.limits = self.limits
                state.misfits.clear()
        return self.limits

    def skip(self, uuid: str, reason: Reason, count: int = 1) -> None:
        """Count the runs that a gate held back."""
        with self.lock:
            self._devices[uuid].record.skips[reason] += count

    def settle(self, uuid: str, charge: Charge, seconds: float) -> None:
        """Record the device time that a pre-charged request actually used."""
        state = self._devices[uuid]
        state.ledger.settle(charge, self.clock.monotonic(), seconds)
        with self.lock:
            state.record.gpu_seconds += seconds

    def never_ran(self, uuid: str, config: ProbeConfig, word: str) -> None:
        """Count the planned run, if the worker could not even be prepared for it."""
        state = self._devices[uuid]
        first = config.kernels[0] if config.kernels else FIRST_KERNEL
        with self.lock:
            state.record.ended(first, outcome_of(word))

    def back_off(self, uuid: str, doing: str, text: str) -> None:
        """Record that a device's worker died, and wait before starting the next."""
        state = self._devices[uuid]
        state.died = True
        wait = state.backoff.failed(self.clock.monotonic())
        log.warning(
            "probe_worker_failed",
            gpu=state.record.device,
            doing=doing,
            error=text,
            retry_after_seconds=wait,
        )

    def died_idle(self, uuid: str) -> bool:
        """Record that a worker ended between two requests. Returns whether to start it at once.

        It was killed from outside, or by the OOM killer: no probe kernel failed. A worker that ends
        again soon is started after a wait.
        """
        state = self._devices[uuid]
        state.died = True
        now = self.clock.monotonic()
        again = now - state.last_idle_death < IDLE_DEATH_SECONDS
        state.last_idle_death = now
        if again:
            self.back_off(uuid, "idle", "it ended between two requests again")
        else:
            log.info("probe_worker_restarted", gpu=state.record.device, why="it ended while idle")
        return not again

    def restarting(self, uuid: str) -> None:
        """Record the start of a device's worker; after a death it counts as a restart."""
        state = self._devices[uuid]
        with self.lock:
            state.record.worker_restarts += state.died
        state.died = False

    def snapshots(self, interval: float) -> tuple[ProbeResults, ...]:
        """Every device's results now."""
        now, unix_time = self.clock.monotonic(), self.clock.time()
        with self.lock:
            return tuple(
                state.record.snapshot(
                    now,
                    interval if state.record.instance is None else interval * self.turns,
                    unix_time=unix_time,
                )
                for state in self._devices.values()
            )

    def save(self) -> None:
        """Save baselines and charges to disk."""
        now, unix_time = self.clock.monotonic(), self.clock.time()
        old = self._read_saved()
        # Absent devices keep their saved state.
        states = {**self._away, **self._devices}
        baselines = {**old.baselines, **{u: s.baselines for u, s in states.items()}}
        instances = [u for u in baselines if u.startswith("MIG-") and u not in self._devices]
        for uuid in instances[:-INSTANCES_KEPT]:
            del baselines[uuid]
        for state in states.values():
            state.ledger.forget_old(now)
        charges = {
            uuid: [(unix_time - (now - at), seconds) for at, seconds in state.ledger.charges()]
            for uuid, state in states.items()
        }
        self._file.save(SECTION, SavedProbes(baselines=baselines, charges=charges))

    def _read_saved(self) -> SavedProbes:
        if self._saved is None:
            self._saved = saved_probes(self._file)
        return self._saved

    def _new_state(self, facts: DeviceFacts) -> ProbedDevice:
        state = ProbedDevice(
            DeviceRecord(facts.key, facts.uuid, facts.instance),
            Ledger(self.limits),
            name=facts.name,
            gpu_uuid=facts.gpu_uuid,
        )
        before = self._away.pop(facts.uuid, None)
        if before is None:
            self._restore(facts.uuid, state)
        else:
            state.ledger, state.baselines = before.ledger, before.baselines
            state.backoff, state.died = before.backoff, before.died
            state.held_back = before.held_back
        return state

    def _put_away(self, uuid: str) -> None:
        self._away[uuid] = self._devices.pop(uuid)
        while len(self._away) > INSTANCES_KEPT:
            del self._away[next(iter(self._away))]

    def _restore(self, uuid: str, state: ProbedDevice) -> None:
        saved = self._read_saved()
        state.baselines = dict(saved.baselines.get(uuid, {}))
        now, unix_time = self.clock.monotonic(), self.clock.time()
        # A charge in the future is from before a clock step: treat it as made now.
        state.ledger.restore(
            (now - max(0.0, unix_time - at), seconds) for at, seconds in saved.charges.get(uuid, [])
        )


def _limits(config: ProbeConfig) -> BudgetLimits:
    return limits(config.interval_seconds, config.budget_seconds, config.chunk_deadline_seconds)
