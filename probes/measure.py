"""Measures a kernel: load, drop the first runs, time the others, verify.

Worker only.
"""

import contextlib
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Final

from probes.device import MARGIN, Allowance, AllowanceError, ArenaFullError, Chunk, ProbeDevice
from probes.judgement import undisturbed_run
from probes.kernels.base import Kernel, Prepared, Verification
from probes.protocol import Result, Run
from probes.sizing import Shape


# Fewer runs do not show whether they agree.
TIMED_RUNS_MIN: Final = 3
RUNS_PER_CHUNK_MAX: Final = 64
# On a processor, where other programs preempt runs: up to this many times the runs asked for, until
# enough of them agree.
DISTURBED_FACTOR: Final = 6
# Longest stretch without a message to the daemon, which treats a chunk of 250 ms as hung. A stretch
# has at least two runs.
STRETCH_SECONDS: Final = 0.020
LAUNCHES_WARM: Final = 10
LAUNCHES_PER_CHUNK: Final = 50


@dataclass(slots=True)
class Workbench:
    """Kernels that stay prepared between requests, until the arena is reset."""

    device: ProbeDevice
    _prepared: dict[tuple[str, Shape, int | None], tuple[int, Prepared]] = field(
        default_factory=dict
    )

    def prepared(
        self, kernel: Kernel, shape: Shape, peer: int | None, allowance: Allowance
    ) -> tuple[Prepared, bool]:
        """The kernel with its operands, and whether it is new (never run)."""
        key = (kernel.name, shape, peer)
        arena = self.device.arena
        known = self._prepared.get(key)
        if known is not None and known[0] == arena.epoch:
            return known[1], False
        try:
            made = kernel.prepare(self.device, allowance, shape, peer)
        except ArenaFullError:
            arena.reset()
            self._prepared.clear()
            made = kernel.prepare(self.device, allowance, shape, peer)
        self._prepared[key] = (arena.epoch, made)
        return made, True

    def choose(self, kernel: Kernel, allowance: Allowance, max_chunk_seconds: float) -> Shape:
        """Choose the shape to measure with. Nothing stays prepared."""
        shape = kernel.choose(self.device, allowance, max_chunk_seconds)
        self.device.arena.reset()
        self._prepared.clear()
        return shape


def measure(bench: Workbench, kernel: Kernel, request: Run, allowance: Allowance) -> Result:
    """Measure `kernel` within the request's allowance; raises AllowanceError if it is too small."""
    device = bench.device
    prepared, new = _prepared(bench, kernel, request, allowance)
    prepared.activate()
    counted = _Counted(prepared)
    core_by_core = device.preemptible and kernel.core_by_core
    if new and not core_by_core:
        device.load(allowance, counted.run)
    if core_by_core:
        timed = _core_by_core(device, counted, request, allowance)
    elif kernel.quantity == "latency":
        timed = _launches(device, counted, request, allowance)
    elif device.preemptible:
        timed = _stretches(device, counted, request, allowance)
    else:
        timed = _chunks(device, counted, request, allowance)
    runs = timed.run_seconds
    verification = Verification() if not runs else prepared.verify(device, allowance)
    if len(runs) < TIMED_RUNS_MIN:
        raise AllowanceError(f"the allowance ended after {len(runs)} runs")
    return Result(
        identifier=request.identifier,
        shape=prepared.shape,
        work_per_run=prepared.work_per_run * (device.units if core_by_core else 1),
        run_seconds=tuple(runs),
        executed_runs=counted.runs,
        clock_hertz=device.clock_hertz(timed.clocks),
        digest=verification.digest,
        repeats_agree=verification.repeats_agree,
        exact=verification.exact,
        memory_bytes=device.memory_bytes(),
        preempted=tuple(timed.preempted) if any(timed.preempted) else (),
    )


def _prepared(
    bench: Workbench, kernel: Kernel, request: Run, allowance: Allowance
) -> tuple[Prepared, bool]:
    """The kernel in the requested shape, or in another one if that no longer fits the device.

    The daemon recognizes the new shape by the result.
    """
    if request.shape:
        with contextlib.suppress(ArenaFullError, ValueError):
            return bench.prepared(kernel, request.shape, request.peer, allowance)
    shape = bench.choose(kernel, allowance, request.max_chunk_seconds)
    return bench.prepared(kernel, shape, request.peer, allowance)


@dataclass(slots=True)
class _Timed:
    """The runs that count, whether each was preempted, and readings of the clock."""

    run_seconds: list[float] = field(default_factory=list)
    preempted: list[bool] = field(default_factory=list)
    clocks: list[Any] = field(default_factory=list)

    def add(self, chunk: Chunk, dropped: int = 0) -> None:
        """Add a chunk without its first `dropped` runs."""
        self.run_seconds += chunk.run_seconds[dropped:]
        self.preempted += chunk.preempted[dropped:]
        if chunk.clock is not None:
            self.clocks.append(chunk.clock)

    @property
    def undisturbed_seconds(self) -> list[float]:
        """The times of the runs that were not preempted."""
        return [s for s, gone in zip(self.run_seconds, self.preempted, strict=True) if not gone]


class _Counted:
    """A prepared kernel that counts its runs."""

    def __init__(self, prepared: Prepared) -> None:
        self._start = prepared.run
        # Appending is atomic: the threads of all cores count here.
        self._numbers: list[int] = []

    @property
    def runs(self) -> int:
        """The number of runs."""
        return len(self._numbers)

    def run(self, number: int) -> None:
        """Start run `number` and count it."""
        self._numbers.append(number)
        self._start(number)


def _chunks(device: ProbeDevice, prepared: _Counted, request: Run, allowance: Allowance) -> _Timed:
    """Time the runs in chunks with gaps between them.

    Within a time slice nothing preempts a kernel on a GPU, so the gaps let other processes in.
    """
    # These two do not count: the first has cold caches, the second shows how long a run takes.
    expected = min(device.chunk(allowance, prepared.run, 0, 2).run_seconds)
    number = 2
    timed = _Timed()
    while len(timed.run_seconds) < request.timed_runs:
        room = request.max_chunk_seconds - device.overhead_seconds
        count = max(1, min(RUNS_PER_CHUNK_MAX, int(room / expected)))
        # After a gap, the first run has cold caches. It is dropped if a second one fits the chunk.
        dropped = 1 if count > 1 else 0
        count = min(count, request.timed_runs - len(timed.run_seconds) + dropped)
        if not allowance.fits(count * expected + device.overhead_seconds):
            break
        time.sleep(request.gap_seconds)  # for other processes
        chunk = device.chunk(allowance, prepared.run, number, count)
        number += count
        timed.add(chunk, dropped)
        expected = min(timed.run_seconds)
    return timed


def _stretches(
    device: ProbeDevice, prepared: _Counted, request: Run, allowance: Allowance
) -> _Timed:
    """Time the runs back to back, until enough of the fastest agree.

    The scheduler can take a core away in the middle of a run, so other programs need no gaps. In a
    gap, a core would go to sleep and be slow for its first milliseconds.
    """
    first = device.chunk(allowance, prepared.run, 0, 2)
    expected, cost = min(first.run_seconds), first.device_seconds / 2
    number = 2
    timed = _Timed()
    while not timed.run_seconds or (
        len(timed.run_seconds) < DISTURBED_FACTOR * request.timed_runs
        and undisturbed_run(timed.undisturbed_seconds) is None
    ):
        # The first run of each stretch fills the caches and is dropped. A preempted run takes
        # longer, but its cost is only its processor time.
        if not allowance.fits(2 * cost):
            break
        fitting = min(STRETCH_SECONDS / expected, allowance.left_seconds / MARGIN / cost)
        count = max(2, min(request.timed_runs + 1, int(fitting)))
        stretch = device.chunk(allowance, prepared.run, number, count)
        number += count
        timed.add(stretch, 1)
        expected = min(timed.undisturbed_seconds or timed.run_seconds)
        cost = stretch.device_seconds / count
    return timed


def _core_by_core(
    device: ProbeDevice, prepared: _Counted, request: Run, allowance: Allowance
) -> _Timed:
    """Measure all cores at once, each on its own.

    On a busy processor all cores are hardly ever free at the same moment, but each of them does a
    short run between two preemptions.
    """
    timed = _Timed()
    most = DISTURBED_FACTOR * request.timed_runs
    timed.add(device.core_by_core(allowance, prepared.run, request.timed_runs, most))
    return timed


def _launches(
    device: ProbeDevice, prepared: _Counted, request: Run, allowance: Allowance
) -> _Timed:
    """Time single launches; the first ones are dropped."""

    def launch() -> None:
        prepared.run(0)

    limit = request.max_chunk_seconds
    warm = device.launches(allowance, launch, LAUNCHES_WARM, limit)
    expected = statistics.median(warm.run_seconds)
    count = max(1, min(LAUNCHES_PER_CHUNK, int(limit / expected)))
    timed = _Timed()
    # On a busy device, one launch may take longer than a chunk should. A few are needed anyway.
    while len(timed.run_seconds) < TIMED_RUNS_MIN:
        allowance.require(count * expected)
        time.sleep(request.gap_seconds)  # for other processes
        timed.add(device.launches(allowance, launch, count, limit))
    timed.clocks.clear()
    return timed
