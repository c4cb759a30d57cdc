# ruff: noqa: D102 - what a method does is documented where it is declared
"""The host processor as a device of the kernels: all of its cores.

Worker only: this imports torch. A GEMM runs on each core separately, and the rates are added up:
even on a busy core some runs fit between two interruptions. A copy is split over one thread per
core, because the cores share the memory, and is as slow as its slowest thread. Runs in which a
thread had to wait for another program are marked and never used for a value.
"""

import itertools
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch

from flopwatch.processor import clock_hertz
from probes.device import (
    ARENA_BYTES_MIN,
    CACHE_MULTIPLE,
    MARGIN,
    Allowance,
    Arena,
    Chunk,
    Enqueue,
    ProbeDevice,
)
from probes.judgement import undisturbed_run
from probes.protocol import Device as DeviceSpec


# A thread with less processor time than this share of a run's time was interrupted. Threads that
# finish early spin until the others are done, which also counts as processor time.
PRESENT_SHARE: Final = 0.95
CLOCK_CPUTIME_THREAD: Final = 6  # CPUCLOCK_SCHED | CPUCLOCK_PERTHREAD_MASK (linux/posix-timers.h)
# Operands for copies, larger than the caches: at most this share of the host's memory, or this much.
ARENA_SHARE: Final = 1 / 64
ARENA_BYTES_MAX: Final = 320 * 2**20


class CpuDevice(ProbeDevice):
    """The host processor, timed by the monotonic clock and by its threads' processor time."""

    kind = "cpu"
    overhead_seconds = 0.0
    preemptible = True
    beside_bytes = 64 * 2**20

    def __init__(self, spec: DeviceSpec, threads: int, cores: Sequence[int] = ()) -> None:
        """`cores`: the logical CPUs for the threads, one each; if empty, the scheduler decides."""
        # Per-core L2 for the operands of GEMMs; copies exceed the last level anyway.
        cache = spec.l2_bytes or cache_size_bytes(2) or 2**20
        self.last_level_bytes = last_level_bytes()
        size = max(ARENA_BYTES_MIN, min(CACHE_MULTIPLE * self.last_level_bytes, _arena_limit()))
        super().__init__(torch.device("cpu"), Arena(torch.device("cpu"), size), cache)
        self.units = threads
        self._cores = tuple(cores)
        self._threads: list[ThreadPoolExecutor] = []

    def load(self, allowance: Allowance, enqueue: Enqueue) -> None:
        # The first call generates code, which must not count as kernel time.
        enqueue(0)
        self.chunk(allowance, enqueue, 0, 1)

    def chunk(self, allowance: Allowance, enqueue: Enqueue, first: int, count: int) -> Chunk:
        return self._timed(allowance, enqueue, first, count, team=self.units)

    def clock_hertz(self, readings: Sequence[Any]) -> float | None:
        return statistics.median(readings) if readings else None

    def launches(
        self, allowance: Allowance, launch: Callable[[], None], count: int, seconds: float
    ) -> Chunk:
        # Interruptions do not matter: the median of many launches is used.
        return self._timed(allowance, lambda _: launch(), 0, count, team=1)

    def core_by_core(self, allowance: Allowance, enqueue: Enqueue, least: int, most: int) -> Chunk:
        threads = self._core_threads()
        allowance.busy()
        before = ThreadTimes()
        limit = allowance.left_seconds / MARGIN
        pieces = [
            thread.submit(_pieces, enqueue, core, least, most, limit)
            for core, thread in enumerate(threads)
        ]
        done = [piece.result() for piece in pieces]
        by_core = [sorted(spans) for spans, _ in done]
        clocks = [clock for _, clock in done if clock is not None]
        clock = statistics.fmean(clocks) if clocks else None
        seconds = before.seconds_since() / self.units
        allowance.idle(seconds)
        # The rates add up, so the machine's time for a run on each core is the harmonic mean.
        spans = [statistics.harmonic_mean(times) for times in zip(*by_core, strict=False)]
        return Chunk(spans, seconds, clock)

    def work(self, allowance: Allowance, task: Callable[[], Any]) -> Any:
        allowance.busy()
        before = ThreadTimes()
        try:
            # On one core: a team of threads would spin for a member that other programs preempt.
            return self._core_threads()[0].submit(task).result()
        finally:
            allowance.idle(before.seconds_since() / self.units)

    def memory_bytes(self) -> int:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()

    def versions(self) -> str:
        capability = torch.backends.cpu.get_cpu_capability()
        return f"torch {torch.__version__} cpu {capability} threads {self.units}"

    def _core_threads(self) -> list[ThreadPoolExecutor]:
        """One thread per core, bound to it, in which torch starts no threads of its own."""
        if not self._threads:
            self._threads = [
                ThreadPoolExecutor(1, "core", _bind, self._cores[core : core + 1])
                for core in range(self.units)
            ]
            for thread in self._threads:
                thread.submit(int).result()
            # For threads that start later.
            torch.set_num_threads(self.units)
        return self._threads

    def _timed(
        self, allowance: Allowance, enqueue: Enqueue, first: int, count: int, *, team: int
    ) -> Chunk:
        """Time each run, and check whether `team` threads worked throughout.

        The charge is processor time divided by the number of cores, without the time of other
        programs.
        """
        now = time.perf_counter_ns
        allowance.busy()
        threads = ThreadTimes()
        spans, taken, switches = [], [threads.now()], [_involuntary_switches()]
        for number in range(first, first + count):
            start = now()
            enqueue(number)
            spans.append(now() - start)
            taken.append(threads.now())
            switches.append(_involuntary_switches())
        seconds = (sum(taken[-1]) - sum(taken[0])) / 1e9 / self.units
        preempted = [
            switched[0] != switched[1] or not _all_present(*times, span, team)
            for span, times, switched in zip(
                spans, itertools.pairwise(taken), itertools.pairwise(switches), strict=True
            )
        ]
        clock = clock_hertz() or kernel_clock_hertz()
        allowance.idle(seconds)
        return Chunk([span / 1e9 for span in spans], seconds, clock, preempted)


def _bind(*core: int) -> None:
    """Bind the calling thread to this core, and let torch use no other thread for it."""
    if core:
        os.sched_setaffinity(0, core)
    torch.set_num_threads(1)
    # A thread inherits the last value set by any thread, unless it has read the setting itself.
    torch.get_num_threads()


def _pieces(
    enqueue: Enqueue, core: int, least: int, most: int, limit_seconds: float
) -> tuple[list[float], float | None]:
    """Times of uninterrupted runs on this core, until enough agree, and the core's clock.

    In such a run the thread never leaves the core, and its processor time equals the elapsed time.
    """
    spans: list[float] = []
    begun = time.thread_time()
    for number in range(1 + most):
        if time.thread_time() - begun >= limit_seconds:
            break
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        taken = time.thread_time_ns()
        start = time.perf_counter_ns()
        enqueue(core)
        span = time.perf_counter_ns() - start
        present = time.thread_time_ns() - taken >= PRESENT_SHARE * span
        # The first run fills the caches.
        if number and present and resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw == before:
            spans.append(span / 1e9)
            if len(spans) >= least and undisturbed_run(spans) is not None:
                break
    return spans, clock_hertz() or kernel_clock_hertz()


class ThreadTimes:
    """The processor time of each thread of this process, exact to the nanosecond.

    The process's own clock is less exact: for threads on other cores it lags by up to one timer
    tick.
    """

    def __init__(self) -> None:
        self._clocks = [(~int(tid) << 3) | CLOCK_CPUTIME_THREAD for tid in _thread_ids()]
        self._start = sum(self.now())

    def now(self) -> list[int]:
        """Nanoseconds per thread; 0 for a thread that has ended."""
        return [_clock_nanoseconds(clock) for clock in self._clocks]

    def seconds_since(self) -> float:
        """Processor time of all threads together since this object was created."""
        return max(0, sum(self.now()) - self._start) / 1e9


def _all_present(before: Sequence[int], after: Sequence[int], span: int, team: int) -> bool:
    """Whether `team` threads worked, or spun waiting for each other, during the whole run."""
    taken = sorted((b - a for a, b in zip(before, after, strict=True)), reverse=True)
    return len(taken) >= team and taken[team - 1] >= PRESENT_SHARE * span


def _clock_nanoseconds(clock: int) -> int:
    try:
        return time.clock_gettime_ns(clock)
    except OSError:
        return 0


def _thread_ids() -> list[str]:
    return [path.name for path in Path("/proc/self/task").iterdir()]


def _involuntary_switches() -> int:
    """How often a thread of this process was preempted by another program."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def last_level_bytes() -> int:
    """Total size of the last-level caches of the processors that this process may use."""
    caches: dict[str, int] = {}
    for number in os.sched_getaffinity(0):
        for index in Path(f"/sys/devices/system/cpu/cpu{number}/cache").glob("index*"):
            if _cache_field(index, "level") == "3" and (size := _cache_bytes(index)):
                caches[_cache_field(index, "shared_cpu_list") or str(number)] = size
    return sum(caches.values()) or 32 * 2**20


def cache_size_bytes(level: int) -> int | None:
    """The size of cpu0's data or unified cache of this level, from sysfs."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _cache_field(index, "level") == str(level) and (size := _cache_bytes(index)):
            return size
    return None


def _cache_field(index: Path, name: str) -> str | None:
    try:
        return (index / name).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def _cache_bytes(index: Path) -> int | None:
    text = (_cache_field(index, "size") or "").removesuffix("K")
    return int(text) * 1024 if text.isdigit() else None


def _arena_limit() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(ARENA_BYTES_MAX, int(memory * ARENA_SHARE))


def kernel_clock_hertz() -> float | None:
    """The clock of the current core as the kernel reports it; None if it does not."""
    try:
        # Field 39 of stat, counted from 1: the processor last run on. The command name may contain
        # spaces.
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        core = int(stat.rsplit(")", 1)[1].split()[36])
        scaling = Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
        return float(scaling.read_text(encoding="ascii")) * 1e3
    except (OSError, ValueError, IndexError):
        return None
