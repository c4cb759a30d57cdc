"""One cycle over the devices of a host: gates, workers, and the turn of each device.

The scheduler has no thread or clock of its own; `service` provides both.
"""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from flopwatch.state_file import StateFile
from flopwatch.threads import BoundedThread
from probes import gates
from probes.config import ProbeConfig
from probes.device_states import DeviceStates
from probes.environment import torch_remedy
from probes.facts import DeviceFacts
from probes.prober import Prober
from probes.records import ProbesSnapshot
from probes.schedule import Clock
from probes.supervisor import WorkerFailedError
from probes.worker_pool import PooledWorker, WorkerFactory, WorkerPool, real_worker


log = structlog.get_logger(__name__)

FactsSource = Callable[[], Sequence[DeviceFacts]]


class Scheduler:
    """Runs cycles. `snapshot`, `interrupt` and `paused_by_operator` are safe in other threads."""

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
        self._pool = WorkerPool(worker_factory)
        self._states = DeviceStates(config, state, clock)
        # Advancing it is atomic, so workers that probe together need no lock for it.
        self._identifiers = itertools.count(1)
        self._torch_missing_logged = False
        # The cycle in which a MIG instance last had its turn.
        self._cycles = 0
        self._turns: dict[str, int] = {}

    def cycle(self) -> None:
        """Probe every device whose gates and budget allow it. No device error is raised."""
        devices = self._read_facts()
        if self._paused():
            for facts in devices:
                self._states.skip(facts.uuid, "paused")
            return
        ready = {facts.uuid: facts for facts in devices if self._may_probe(facts)}
        self._take_turns(ready)
        self._run_all(self._started_workers(devices, ready), ready)
        self._pool.release_idle()
        self._note_workers()
        self._states.save()

    def close(self) -> None:
        """End all workers and save the state."""
        self._pool.close()
        self._note_workers()
        self._states.save()

    def interrupt(self) -> None:
        """End a running cycle soon."""
        self.stopping.set()
        self._pool.interrupt()

    def reconfigure(self, config: ProbeConfig) -> None:
        """Use `config` from the next cycle on, with new workers."""
        self._pool.close()
        self.config = config
        self._states.configure(config)

    def note_torch_missing(self) -> None:
        """Count the cycle that cannot run, and log it once."""
        for facts in self._read_facts():
            self._states.skip(facts.uuid, "torch_missing")
        self._log_torch_missing("torch is not installed")

    def snapshot(self, *, running: bool) -> ProbesSnapshot:
        """The current results."""
        devices = self._states.snapshots(self.config.interval_seconds)
        return ProbesSnapshot(running=running, paused=self._paused(), devices=devices)

    def _read_facts(self) -> list[DeviceFacts]:
        try:
            devices = list(self._facts())
        except Exception as error:  # noqa: BLE001 - whatever the driver does, the next cycle tries again
            log.warning("probe_facts_failed", error=str(error))
            devices = []
        told = {facts.uuid for facts in devices}
        devices = self._wanted(devices)
        if self.config.shapes == "fixed":
            devices = [replace(facts, model_gemms=()) for facts in devices]
        for facts in devices:
            self._states.enter(facts)
        for uuid in self._states.uuids() - {facts.uuid for facts in devices}:
            if self._states[uuid].gpu_uuid in told:
                self._states.leave(uuid)  # its GPU answers and has no such instance
                self._turns.pop(uuid, None)
            elif uuid not in told:
                self._states.skip(uuid, "no_facts")
        return devices

    def _wanted(self, devices: Sequence[DeviceFacts]) -> list[DeviceFacts]:
        """Partitioned GPUs or, if so configured, their MIG instances instead."""
        if self.config.mig == "skip":
            return [facts for facts in devices if facts.instance is None]
        partitioned = {facts.gpu_uuid for facts in devices}
        return [facts for facts in devices if facts.uuid not in partitioned]

    def _take_turns(self, ready: dict[str, DeviceFacts]) -> None:
        """Of the MIG instances that need a new worker, keep in `ready` only the next one.

        Each needs its own process, and starting one takes seconds of CPU time: one per cycle costs
        no more than the shared worker of all idle GPUs.
        """
        self._cycles += 1
        waiting = sorted(
            (facts for facts in ready.values() if facts.instance is not None),
            key=lambda facts: self._turns.get(facts.uuid, 0),
        )
        waiting = [facts for facts in waiting if not self._is_open(facts.uuid)]
        self._states.turns = max(1, len(waiting))
        for facts in waiting[:1]:
            self._turns[facts.uuid] = self._cycles
        for facts in waiting[1:]:
            self._states.skip(facts.uuid, "turn")
            del ready[facts.uuid]

    def _is_open(self, uuid: str) -> bool:
        pooled = self._pool.of(uuid)
        return pooled is not None and pooled.holds(uuid)

    def _may_probe(self, facts: DeviceFacts) -> bool:
        if self._states[facts.uuid].backoff.active(self._states.clock.monotonic()):
            self._states.skip(facts.uuid, "backoff")
            return False
        others = self._pool.others(facts)
        reason = gates.device_gate(
            facts, others, self.config, worker_open=self._is_open(facts.uuid)
        )
        if reason is not None:
            self._states.skip(facts.uuid, reason)
        return reason is None

    def _paused(self) -> bool:
        return gates.paused(self.config, by_operator=self.paused_by_operator)

    def _started_workers(
        self, devices: Sequence[DeviceFacts], ready: Mapping[str, DeviceFacts]
    ) -> list[PooledWorker]:
        """The workers of this cycle, started."""
        # A GPU held back keeps its worker unchanged: memory taken or freed while a server is
        # starting would change the size of its KV cache.
        kept = [
            facts
            for facts in devices
            if facts.uuid in ready or self._pool.of(facts.uuid) is not None
        ]
        deadline = self._states.limits.chunk_deadline_seconds
        workers = self._pool.arrange(kept, replace(self.config, chunk_deadline_seconds=deadline))
        # Start all workers before any kernel runs, and from this thread: a worker dies with the
        # thread that started it, and workers that probe together must do so at the same moment.
        return [
            pooled
            for pooled in workers
            if not self.stopping.is_set()
            and any(uuid in ready for uuid in pooled.uuids)
            and self._started(pooled)
        ]

    def revive(self) -> None:
        """Restart the workers that ended between two cycles although they should have stayed."""
        if self._paused() or self.stopping.is_set():
            return
        for pooled in self._pool.stopped():
            if not any(
                self._states[uuid].backoff.active(self._states.clock.monotonic())
                for uuid in pooled.uuids
            ):
                self._started(pooled)

    def _started(self, pooled: PooledWorker) -> bool:
        if pooled.worker.alive:
            return True
        # Its end was not noticed: it came between two requests.
        waits = pooled.started and [
            uuid for uuid in pooled.uuids if not self._states.died_idle(uuid)
        ]
        pooled.note_end()
        if waits:
            return False
        for uuid in pooled.uuids:
            self._states.restarting(uuid)
        try:
            pooled.worker.start()
        except WorkerFailedError as error:
            if error.outcome == "torch_missing":
                self._log_torch_missing(error.text)
                for uuid in pooled.uuids:
                    self._states.skip(uuid, "torch_missing")
            elif not self.stopping.is_set():
                for uuid in pooled.uuids:
                    self._states.never_ran(uuid, self.config, error.outcome)
                    self._states.back_off(uuid, "start", error.text)
            return False
        pooled.started = True
        return True

    def _log_torch_missing(self, text: str) -> None:
        if not self._torch_missing_logged:
            log.warning("probes_off", why=text, remedy=torch_remedy())
        self._torch_missing_logged = True

    def _run_all(self, workers: Sequence[PooledWorker], ready: Mapping[str, DeviceFacts]) -> None:
        if not self.config.together or len(workers) < 2:
            for pooled in workers:
                self._run_one(pooled, ready)
            return
        threads = []
        for pooled in workers:
            thread = BoundedThread(target=self._run_one, args=(pooled, ready), name="probe-worker")
            try:
                thread.start()
            except RuntimeError:
                self._run_one(pooled, ready)  # no thread available: run one after another
            else:
                threads.append(thread)
        for thread in threads:
            thread.join()

    def _run_one(self, pooled: PooledWorker, ready: Mapping[str, DeviceFacts]) -> None:
        prober = Prober(
            self.config, self._states, self.stopping, self._paused, lambda: next(self._identifiers)
        )
        for index, uuid in enumerate(pooled.uuids):
            if uuid not in ready or self.stopping.is_set():
                continue
            if not pooled.worker.alive:
                # It died on another of its devices; this one waits for the next cycle.
                self._states.skip(uuid, "backoff")
                continue
            prober.turn(pooled, index, ready, shared=bool(self._pool.others(ready[uuid])))

    def _note_workers(self) -> None:
        with self._states.lock:
            for uuid in self._states.uuids():
                pooled, record = self._pool.of(uuid), self._states[uuid].record
                if pooled is not None and pooled.holds(uuid):
                    record.worker_pid = pooled.worker.pid
                else:
                    record.worker_memory_bytes = record.worker_pid = None
