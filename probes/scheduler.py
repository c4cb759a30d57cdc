"""One cycle over the devices of a host: gates, workers, and each device's turn.

The scheduler has no thread and no clock of its own; `service` gives it both.
"""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from flopwatch.threads import BoundedThread
from probes import gates
from probes.clock import Clock
from probes.config import ProbeConfig
from probes.device_states import Books
from probes.facts import DeviceFacts
from probes.prober import Prober
from probes.records import ProbesSnapshot
from probes.state import StateFile
from probes.supervisor import WorkerFailedError
from probes.worker_pool import Slot, Slots, WorkerFactory, real_worker


log = structlog.get_logger(__name__)

FactsSource = Callable[[], Sequence[DeviceFacts]]


class Scheduler:
    """Runs cycles; `snapshot`, `interrupt` and `paused_by_operator` are for other threads too."""

    def __init__(
        self,
        config: ProbeConfig,
        facts: FactsSource,
        state: StateFile,
        clock: Clock,
        worker_factory: WorkerFactory = real_worker,
    ) -> None:
        self.config = config
        self.stopping = threading.Event()
        self.paused_by_operator = False
        self._facts = facts
        self._slots = Slots(worker_factory)
        self._books = Books(config, state, clock)
        # Advancing it is atomic, so slots probed together need no lock for it.
        self._identifiers = itertools.count(1)
        self._torch_missing_logged = False
        # The cycle in which a MIG instance last had its turn.
        self._cycles = 0
        self._turns: dict[str, int] = {}

    def cycle(self) -> None:
        """Probe every device that its gates and budget allow. Never raises for a device's sake."""
        devices = self._read_facts()
        if self._paused():
            for facts in devices:
                self._books.skip(facts.uuid, "paused")
            return
        ready = {facts.uuid: facts for facts in devices if self._may_probe(facts)}
        self._take_turns(ready)
        self._run_slots(self._started_slots(devices, ready), ready)
        self._slots.release_idle()
        self._note_workers()
        self._books.save()

    def close(self) -> None:
        """End all workers and keep the state."""
        self._slots.close()
        self._note_workers()
        self._books.save()

    def interrupt(self) -> None:
        """Make a running cycle end soon."""
        self.stopping.set()
        self._slots.interrupt()

    def reconfigure(self, config: ProbeConfig) -> None:
        """Use `config` from the next cycle on; workers are made anew."""
        self._slots.close()
        self.config = config
        self._books.configure(config)

    def note_torch_missing(self) -> None:
        """Count the cycle that cannot be, and say so once."""
        for facts in self._read_facts():
            self._books.skip(facts.uuid, "torch_missing")
        self._log_torch_missing("torch is not installed")

    def snapshot(self, *, running: bool) -> ProbesSnapshot:
        """What is known now."""
        devices = self._books.snapshots(self.config.interval_seconds)
        return ProbesSnapshot(running=running, paused=self._paused(), devices=devices)

    def _read_facts(self) -> list[DeviceFacts]:
        try:
            devices = list(self._facts())
        except Exception as error:  # noqa: BLE001 - whatever a driver does, the next cycle asks again
            log.warning("probe_facts_failed", error=str(error))
            devices = []
        told = {facts.uuid for facts in devices}
        devices = self._wanted(devices)
        for facts in devices:
            self._books.enter(facts)
        for uuid in self._books.uuids() - {facts.uuid for facts in devices}:
            if self._books[uuid].gpu_uuid in told:
                self._books.leave(uuid)  # its GPU answers, and has no such instance
                self._turns.pop(uuid, None)
            elif uuid not in told:
                self._books.skip(uuid, "no_facts")
        return devices

    def _wanted(self, devices: Sequence[DeviceFacts]) -> list[DeviceFacts]:
        """Partitioned GPUs, or their instances in place of them, as the configuration says."""
        if self.config.mig == "skip":
            return [facts for facts in devices if facts.instance is None]
        partitioned = {facts.gpu_uuid for facts in devices}
        return [facts for facts in devices if facts.uuid not in partitioned]

    def _take_turns(self, ready: dict[str, DeviceFacts]) -> None:
        """Of the MIG instances that need a worker started, leave in `ready` the one whose turn it is.

        Each needs a process of its own, and starting one takes seconds of a core: one a cycle costs no
        more than the one for all idle GPUs does.
        """
        self._cycles += 1
        waiting = sorted(
            (facts for facts in ready.values() if facts.instance is not None),
            key=lambda facts: self._turns.get(facts.uuid, 0),
        )
        waiting = [facts for facts in waiting if not self._is_open(facts.uuid)]
        self._books.turns = max(1, len(waiting))
        for facts in waiting[:1]:
            self._turns[facts.uuid] = self._cycles
        for facts in waiting[1:]:
            self._books.skip(facts.uuid, "turn")
            del ready[facts.uuid]

    def _is_open(self, uuid: str) -> bool:
        slot = self._slots.of(uuid)
        return slot is not None and slot.holds(uuid)

    def _may_probe(self, facts: DeviceFacts) -> bool:
        if self._books[facts.uuid].backoff.active(self._books.clock.monotonic()):
            self._books.skip(facts.uuid, "backoff")
            return False
        others = self._slots.others(facts)
        reason = gates.device_gate(
            facts, others, self.config, worker_open=self._is_open(facts.uuid)
        )
        if reason is not None:
            self._books.skip(facts.uuid, reason)
        return reason is None

    def _paused(self) -> bool:
        return gates.paused(self.config, by_operator=self.paused_by_operator)

    def _started_slots(
        self, devices: Sequence[DeviceFacts], ready: Mapping[str, DeviceFacts]
    ) -> list[Slot]:
        """The slots to run now, with their workers started."""
        # A GPU held back keeps its worker as it is: memory taken or freed beside a server that
        # is starting would end up in its KV cache's size.
        kept = [
            facts
            for facts in devices
            if facts.uuid in ready or self._slots.of(facts.uuid) is not None
        ]
        deadline = self._books.limits.chunk_deadline_seconds
        slots = self._slots.arrange(kept, replace(self.config, chunk_deadline_seconds=deadline))
        # All are started before any kernel runs, and from this thread: a worker dies with the
        # thread that started it, and those that probe together do so at the same moment.
        return [
            slot
            for slot in slots
            if not self.stopping.is_set()
            and any(uuid in ready for uuid in slot.uuids)
            and self._started(slot)
        ]

    def _started(self, slot: Slot) -> bool:
        if slot.worker.alive:
            return True
        slot.described.clear()
        for uuid in slot.uuids:
            self._books.restarting(uuid)
        try:
            slot.worker.start()
        except WorkerFailedError as error:
            if error.outcome == "torch_missing":
                self._log_torch_missing(error.text)
                for uuid in slot.uuids:
                    self._books.skip(uuid, "torch_missing")
            elif not self.stopping.is_set():
                for uuid in slot.uuids:
                    self._books.never_ran(uuid, self.config, error.outcome)
                    self._books.back_off(uuid, "start", error.text)
            return False
        return True

    def _log_torch_missing(self, text: str) -> None:
        if not self._torch_missing_logged:
            log.warning("probes_off", why=text, remedy="pip install 'flopwatch[probes]'")
        self._torch_missing_logged = True

    def _run_slots(self, slots: Sequence[Slot], ready: Mapping[str, DeviceFacts]) -> None:
        if not self.config.together or len(slots) < 2:
            for slot in slots:
                self._run_slot(slot, ready)
            return
        threads = []
        for slot in slots:
            thread = BoundedThread(target=self._run_slot, args=(slot, ready), name="probe-slot")
            try:
                thread.start()
            except RuntimeError:
                self._run_slot(slot, ready)  # no thread to be had: in turn, then
            else:
                threads.append(thread)
        for thread in threads:
            thread.join()

    def _run_slot(self, slot: Slot, ready: Mapping[str, DeviceFacts]) -> None:
        prober = Prober(
            self.config, self._books, self.stopping, self._paused, lambda: next(self._identifiers)
        )
        for index, uuid in enumerate(slot.uuids):
            if uuid not in ready or self.stopping.is_set():
                continue
            if not slot.worker.alive:
                # It died on another device of the same slot; this one waits for the next cycle.
                self._books.skip(uuid, "backoff")
                continue
            prober.turn(slot, index, ready, shared=bool(self._slots.others(ready[uuid])))

    def _note_workers(self) -> None:
        with self._books.lock:
            for uuid in self._books.uuids():
                slot, record = self._slots.of(uuid), self._books[uuid].record
                if slot is not None and slot.holds(uuid):
                    record.worker_pid = slot.worker.pid
                else:
                    record.worker_memory_bytes = record.worker_pid = None
