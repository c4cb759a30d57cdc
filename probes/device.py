# ruff: noqa: D102 - what a method does is documented where it is declared
"""A device as the kernels see it, CUDA or host processor: where memory is and how time is told.

Worker only: this imports torch. The same kernel code runs on both. Here is the host processor;
`cuda` has the GPU.
"""

import itertools
import resource
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from probes.allowance import Allowance
from probes.arena import Arena
from probes.protocol import Device as DeviceSpec


# Rotating operands over this many times the cache leaves nothing of a run for the next one.
CACHE_MULTIPLE: Final = 5
ARENA_BYTES_MIN: Final = 64 * 2**20

Enqueue = Callable[[int], None]
"""Start the run with this number; it must allocate nothing."""


class Chunk:
    """The times of one chunk's runs, seconds."""

    __slots__ = ("clock", "device_seconds", "run_seconds")

    def __init__(self, run_seconds: list[float], device_seconds: float, clock: Any) -> None:
        self.run_seconds = run_seconds
        self.device_seconds = device_seconds
        self.clock = clock
        """What the device's `clock_hertz` makes the clock of; None: nothing was read."""


class ProbeDevice(ABC):
    """One device, opened."""

    kind: str
    units: int
    """SMs that a kernel can use; threads on the host processor."""
    overhead_seconds: float
    """Device time a chunk takes besides its runs."""
    preemptible: bool
    """Others get it in the middle of a run when they want it: runs need no chunks and no gaps."""
    beside_bytes: int
    """How much memory outside of it, of the host or of a peer, copies may use in each direction."""

    def __init__(self, torch_device: Any, arena: Arena, cache_bytes: int) -> None:
        self.torch_device = torch_device
        self.arena = arena
        self.cache_bytes = cache_bytes

    @property
    def rotation_bytes(self) -> int:
        """How many bytes of operands to rotate over, as far as memory allows."""
        return min(CACHE_MULTIPLE * self.cache_bytes, self.arena.size_bytes)

    def select(self) -> None:  # noqa: B027 - there is only one host processor
        """Make this the device that the next calls are about."""

    @abstractmethod
    def load(self, allowance: Allowance, enqueue: Enqueue) -> None:
        """Run twice what was never run before; libraries may load their code meanwhile."""

    @abstractmethod
    def chunk(self, allowance: Allowance, enqueue: Enqueue, first: int, count: int) -> Chunk:
        """Run `first` … `first + count − 1` back to back and time each of them."""

    @abstractmethod
    def clock_hertz(self, readings: Sequence[Any]) -> float | None:
        """The clock during the chunks whose `clock` is given; None where it cannot be told."""

    @abstractmethod
    def launches(
        self, allowance: Allowance, launch: Callable[[], None], count: int, seconds: float
    ) -> Chunk:
        """Launch up to `count` times, each time waiting for completion, timed on the host.

        None is begun after `seconds`: on a busy device each waits for a tenant's time slice.
        """

    @abstractmethod
    def work(self, allowance: Allowance, task: Callable[[], Any]) -> Any:
        """Do some untimed work on the device and wait for it; its time is accounted for."""

    def beside(self, path: str, peer: int | None) -> Arena:
        """The block outside of it that copies along `path` use: of pinned host memory, or a peer's.

        Taken once, of `beside_bytes`. Without a peer named it is the next device.
        """
        raise NotImplementedError(path)

    def check(self) -> None:  # noqa: B027 - a processor has no errors of its own
        """Raise what is wrong with the device, if anything: an error there outlives its cause."""

    def settle(self) -> None:  # noqa: B027 - host memory is taken at once
        """Take the arena's memory, now that everything else the kernels need is loaded."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """What the worker occupies: on CUDA device memory, else the resident set."""

    @abstractmethod
    def versions(self) -> str:
        """The software that decides a kernel's speed and bits."""


class CpuDevice(ProbeDevice):
    """The host processor, timed by the monotonic clock."""

    kind = "cpu"
    overhead_seconds = 0.0
    preemptible = True
    beside_bytes = 64 * 2**20

    def __init__(self, spec: DeviceSpec, threads: int) -> None:
        # Per-core L2 for the operands of GEMMs; copies go past the last level by themselves.
        cache = spec.l2_bytes or cache_size_bytes(2) or 2**20
        self.last_level_bytes = cache_size_bytes(3) or 32 * 2**20
        size = max(ARENA_BYTES_MIN, CACHE_MULTIPLE * min(self.last_level_bytes, 64 * 2**20))
        super().__init__(torch.device("cpu"), Arena(torch.device("cpu"), size), cache)
        self.units = threads

    def load(self, allowance: Allowance, enqueue: Enqueue) -> None:
        # The first call generates code for a while, which is no kernel's time.
        enqueue(0)
        self.chunk(allowance, enqueue, 0, 1)

    def chunk(self, allowance: Allowance, enqueue: Enqueue, first: int, count: int) -> Chunk:
        now = time.perf_counter_ns
        allowance.busy()
        # Charged is what was taken, not how long others kept the processor meanwhile.
        taken = time.process_time_ns()
        marks = [now()]
        for number in range(first, first + count):
            enqueue(number)
            marks.append(now())
        spans = [(end - start) / 1e9 for start, end in itertools.pairwise(marks)]
        seconds = (time.process_time_ns() - taken) / 1e9
        allowance.idle(seconds)
        return Chunk(spans, seconds, current_clock_hertz())

    def clock_hertz(self, readings: Sequence[Any]) -> float | None:
        return statistics.median(readings) if readings else None

    def launches(
        self, allowance: Allowance, launch: Callable[[], None], count: int, seconds: float
    ) -> Chunk:
        # Its scheduler takes the processor away for milliseconds, but nobody waits for a launch.
        return self.chunk(allowance, lambda _: launch(), 0, count)

    def work(self, allowance: Allowance, task: Callable[[], Any]) -> Any:
        allowance.busy()
        start = time.process_time_ns()
        try:
            return task()
        finally:
            allowance.idle((time.process_time_ns() - start) / 1e9)

    def memory_bytes(self) -> int:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()

    def versions(self) -> str:
        capability = torch.backends.cpu.get_cpu_capability()
        return f"torch {torch.__version__} cpu {capability} threads {self.units}"


def open_device(
    spec: DeviceSpec, ordinal: int, threads: int, memory_limit_bytes: int
) -> ProbeDevice:
    """The device behind `spec`; `ordinal` counts the visible CUDA devices."""
    if spec.kind == "cpu":
        return CpuDevice(spec, threads)
    from probes.cuda import CudaDevice

    return CudaDevice(spec, ordinal, memory_limit_bytes)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or the host had no memory left; torch has no one type for that."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "out of memory" in text or "ALLOC_FAILED" in text)
    )


def cache_size_bytes(level: int) -> int | None:
    """The size of cpu0's data or unified cache of this level, from sysfs."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if int((index / "level").read_text(encoding="ascii")) != level:
                continue
            size = (index / "size").read_text(encoding="ascii").strip()
            return int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return None


def current_clock_hertz() -> float | None:
    """The clock of the core this runs on, as the kernel reports it; None where it does not."""
    try:
        # Field 39 of stat, counted from 1: the processor last run on; the name may hold spaces.
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        core = int(stat.rsplit(")", 1)[1].split()[36])
    except (OSError, ValueError, IndexError):
        return None
    scaling = Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
    try:
        return float(scaling.read_text(encoding="ascii")) * 1e3
    except (OSError, ValueError):
        return _cpuinfo_clock_hertz(core)


def _cpuinfo_clock_hertz(core: int) -> float | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    clocks = [line.split(":")[1] for line in lines if line.startswith("cpu MHz")]
    try:
        return float(clocks[core]) * 1e6
    except (ValueError, IndexError):
        return None
