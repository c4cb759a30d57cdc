"""Assigns workers to devices: one for each device in use, one for all idle devices.

A permanent worker keeps its context and memory constant beside a server. Idle GPUs share one worker
that lives for a cycle: an open context alone costs 26–66 W per GPU (arXiv 2605.23918), and one
process can also copy between GPUs. A MIG instance always has its own worker: CUDA shows a process
one instance only (MIG User Guide, "CUDA device enumeration").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from probes.config import ProbeConfig
from probes.facts import DeviceFacts, ProcessFacts
from probes.gates import other_processes
from probes.protocol import Described, Device
from probes.supervisor import Worker, WorkerProcess


WorkerFactory = Callable[[Sequence[DeviceFacts], ProbeConfig], Worker]


def real_worker(devices: Sequence[DeviceFacts], config: ProbeConfig) -> Worker:
    """A worker process for `devices`, not started yet."""
    specs = tuple(
        Device(
            kind=facts.kind,
            key=facts.key,
            l2_bytes=facts.l2_bytes,
            free_memory_bytes=facts.free_memory_bytes,
        )
        for facts in devices
    )
    visible = [facts.uuid for facts in devices if facts.kind == "cuda"]
    if len(visible) > 1 and any(facts.instance is not None for facts in devices):
        raise ValueError("a process can use one MIG instance and nothing beside it")
    return WorkerProcess(specs, visible, config)


@dataclass(slots=True)
class PooledWorker:
    """A worker, its devices in order, and its descriptions of them."""

    worker: Worker
    uuids: tuple[str, ...]
    stays: bool
    described: dict[str, Described] = field(default_factory=dict)
    started: bool = False
    """It was started and not stopped by us: if it is gone, it ended by itself or was killed."""

    def note_end(self) -> None:
        """Record that the worker has ended for a known reason."""
        self.started = False
        self.described.clear()

    def holds(self, uuid: str) -> bool:
        """Whether the worker has the device open, and thus its memory."""
        return self.worker.alive and uuid in self.described


class WorkerPool:
    """All workers of a host."""

    def __init__(self, factory: WorkerFactory) -> None:
        self._factory = factory
        self._pool: list[PooledWorker] = []

    def of(self, uuid: str) -> PooledWorker | None:
        """The current worker of a device."""
        return next((pooled for pooled in self._pool if uuid in pooled.uuids), None)

    def others(self, facts: DeviceFacts) -> tuple[ProcessFacts, ...]:
        """The processes on the device that are not our worker."""
        pooled = self.of(facts.uuid)
        if pooled is None or not pooled.holds(facts.uuid):
            return facts.processes
        return other_processes(facts.processes, pooled.worker.pid, pooled.worker.age_seconds)

    def arrange(self, devices: Sequence[DeviceFacts], config: ProbeConfig) -> list[PooledWorker]:
        """The workers for a cycle over `devices`; workers that no longer fit are closed."""
        idle = []
        wanted: list[PooledWorker] = []
        for facts in devices:
            if facts.kind == "cuda" and not self.others(facts):
                if facts.instance is None:
                    idle.append(facts)
                else:
                    worker = self._factory((facts,), config)
                    wanted.append(PooledWorker(worker, (facts.uuid,), stays=False))
                continue
            pooled = self.of(facts.uuid)
            if pooled is None or not pooled.stays:
                pooled = PooledWorker(self._factory((facts,), config), (facts.uuid,), stays=True)
            wanted.append(pooled)
        if idle:
            worker = self._factory(idle, config)
            wanted.append(PooledWorker(worker, tuple(facts.uuid for facts in idle), stays=False))
        for pooled in self._pool:
            if pooled not in wanted:
                pooled.worker.close()
        self._pool = wanted
        return list(wanted)

    def stopped(self) -> list[PooledWorker]:
        """Permanent workers that have ended by themselves."""
        return [
            pooled
            for pooled in self._pool
            if pooled.stays and pooled.started and not pooled.worker.alive
        ]

    def release_idle(self) -> None:
        """Close the workers that must not outlive a cycle."""
        for pooled in self._pool:
            if not pooled.stays:
                pooled.worker.close()
                pooled.note_end()

    def close(self) -> None:
        """Close all workers."""
        for pooled in self._pool:
            pooled.worker.close()
        self._pool = []

    def interrupt(self) -> None:
        """Kill all workers from another thread."""
        for pooled in list(self._pool):
            pooled.worker.interrupt()
