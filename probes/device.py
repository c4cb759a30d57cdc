# ruff: noqa: D102 - what a method does is documented where it is declared
"""A device as the kernels see it, CUDA or host processor: where memory is and how time is told.

Worker only: this imports torch. The same kernel code runs on both.
"""

import itertools
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from probes.arena import Arena
from probes.meter import Meter
from probes.protocol import Device as DeviceSpec


# Rotating operands over this many times the cache leaves nothing of a run for the next one.
CACHE_MULTIPLE: Final = 5
# Kept free below the memory limit: the cuBLAS workspace (32 MiB from Hopper on) and slack.
WORKSPACE_BYTES: Final = 48 * 2**20
ARENA_BYTES_MIN: Final = 64 * 2**20
# Two spins; their difference has the launch overhead divided out. 300,000 cycles are about
# 150 µs, of which an event's resolution of 0.5 µs is 0.3 %.
SPIN_CYCLES_SHORT: Final = 20_000
SPIN_CYCLES_LONG: Final = 320_000
SPIN_SECONDS: Final = 0.00019

Enqueue = Callable[[int], None]
"""Start the run with this number; it must allocate nothing."""


class Chunk:
    """The times of one chunk's runs, seconds."""

    __slots__ = ("clock_hertz", "device_seconds", "run_seconds")

    def __init__(
        self, run_seconds: list[float], device_seconds: float, clock_hertz: float | None
    ) -> None:
        self.run_seconds = run_seconds
        self.device_seconds = device_seconds
        self.clock_hertz = clock_hertz


class ProbeDevice(ABC):
    """One device, opened."""

    kind: str
    units: int
    """SMs that a kernel can use; threads on the host processor."""
    overhead_seconds: float
    """Device time a chunk takes besides its runs."""
    preemptible: bool
    """Others get it in the middle of a run when they want it: runs need no chunks and no gaps."""

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
    def load(self, meter: Meter, enqueue: Enqueue) -> None:
        """Run twice what was never run before; libraries may load their code meanwhile."""

    @abstractmethod
    def chunk(self, meter: Meter, enqueue: Enqueue, first: int, count: int) -> Chunk:
        """Run `first` … `first + count − 1` back to back and time each of them."""

    @abstractmethod
    def launches(self, meter: Meter, launch: Callable[[], None], count: int) -> Chunk:
        """Launch `count` times, each time waiting for completion, timed on the host."""

    @abstractmethod
    def work(self, meter: Meter, task: Callable[[], Any]) -> Any:
        """Do some untimed work on the device and wait for it; its time is accounted for."""

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

    def __init__(self, spec: DeviceSpec, threads: int) -> None:
        # Per-core L2 for the operands of GEMMs; copies go past the last level by themselves.
        cache = spec.l2_bytes or cache_size_bytes(2) or 2**20
        self.last_level_bytes = cache_size_bytes(3) or 32 * 2**20
        size = max(ARENA_BYTES_MIN, CACHE_MULTIPLE * min(self.last_level_bytes, 64 * 2**20))
        super().__init__(torch.device("cpu"), Arena(torch.device("cpu"), size), cache)
        self.units = threads

    def load(self, meter: Meter, enqueue: Enqueue) -> None:
        # The first call generates code for a while, which is no kernel's time.
        enqueue(0)
        self.chunk(meter, enqueue, 0, 1)

    def chunk(self, meter: Meter, enqueue: Enqueue, first: int, count: int) -> Chunk:
        now = time.perf_counter_ns
        meter.busy()
        # Charged is what was taken, not how long others kept the processor meanwhile.
        taken = time.process_time_ns()
        marks = [now()]
        for number in range(first, first + count):
            enqueue(number)
            marks.append(now())
        spans = [(end - start) / 1e9 for start, end in itertools.pairwise(marks)]
        seconds = (time.process_time_ns() - taken) / 1e9
        meter.idle(seconds)
        return Chunk(spans, seconds, current_clock_hertz())

    def launches(self, meter: Meter, launch: Callable[[], None], count: int) -> Chunk:
        return self.chunk(meter, lambda _: launch(), 0, count)

    def work(self, meter: Meter, task: Callable[[], Any]) -> Any:
        meter.busy()
        start = time.process_time_ns()
        try:
            return task()
        finally:
            meter.idle((time.process_time_ns() - start) / 1e9)

    def memory_bytes(self) -> int:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()

    def versions(self) -> str:
        capability = torch.backends.cpu.get_cpu_capability()
        return f"torch {torch.__version__} cpu {capability} threads {self.units}"


class CudaDevice(ProbeDevice):
    """A CUDA GPU, timed by events on its own stream."""

    kind = "cuda"
    overhead_seconds = 2 * SPIN_SECONDS
    preemptible = False

    def __init__(self, spec: DeviceSpec, ordinal: int, memory_limit_bytes: int) -> None:
        torch.cuda.set_device(ordinal)
        torch.cuda.init()
        free, _ = torch.cuda.mem_get_info(ordinal)
        before = spec.free_memory_bytes
        # What others take or free in the same second is counted in; there is no other way
        # to see a context's size from inside.
        self._context_bytes = max(0, before - free) if before is not None else 0
        properties = torch.cuda.get_device_properties(ordinal)
        self.units = int(properties.multi_processor_count)
        self.capability = (int(properties.major), int(properties.minor))
        cache = spec.l2_bytes or int(getattr(properties, "L2_cache_size", 0)) or 64 * 2**20
        room = memory_limit_bytes - self._context_bytes - WORKSPACE_BYTES
        size = max(ARENA_BYTES_MIN, min(CACHE_MULTIPLE * cache, room))
        device = torch.device("cuda", ordinal)
        super().__init__(device, Arena(device, size), cache)
        self._ordinal = ordinal
        self._events: list[Any] = []

    def select(self) -> None:
        torch.cuda.set_device(self._ordinal)

    def load(self, meter: Meter, enqueue: Enqueue) -> None:
        # The first call may load code for a while, on the host: the device is said to be busy
        # only from then on, and the second run says how long the first took.
        start, end = self._marks(2)
        enqueue(0)
        start.record()
        enqueue(0)
        end.record()
        meter.busy()
        end.synchronize()
        meter.idle(2 * start.elapsed_time(end) / 1e3)

    def chunk(self, meter: Meter, enqueue: Enqueue, first: int, count: int) -> Chunk:
        marks = self._marks(count + 3)
        # The first work on an idle stream begins a launch gap late; the gap must not lie between the
        # marks of the spin that the clock is measured by.
        torch.cuda._sleep(SPIN_CYCLES_SHORT)  # noqa: SLF001 - the only spin torch has
        marks[0].record()
        torch.cuda._sleep(SPIN_CYCLES_SHORT)  # noqa: SLF001
        marks[1].record()
        # While this one spins, the host enqueues the rest: no launch gap lies between the marks.
        torch.cuda._sleep(SPIN_CYCLES_LONG)  # noqa: SLF001
        marks[2].record()
        for index in range(count):
            enqueue(first + index)
            marks[index + 3].record()
        meter.busy()
        marks[-1].synchronize()
        spans = [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(marks)]
        taken = spans[0] + sum(spans)  # the first spin took as long as the second
        meter.idle(taken)
        difference = spans[1] - spans[0]
        clock = (SPIN_CYCLES_LONG - SPIN_CYCLES_SHORT) / difference if difference > 0 else None
        return Chunk(spans[2:], taken, clock)

    def launches(self, meter: Meter, launch: Callable[[], None], count: int) -> Chunk:
        now = time.perf_counter_ns
        stream = torch.cuda.current_stream(self._ordinal)
        spans = []
        stream.synchronize()
        meter.busy()
        for _ in range(count):
            start = now()
            launch()
            stream.synchronize()
            spans.append((now() - start) / 1e9)
        # Charged by the wall: on a shared device the tenant may have waited all that time.
        meter.idle(sum(spans))
        return Chunk(spans, sum(spans), None)

    def work(self, meter: Meter, task: Callable[[], Any]) -> Any:
        start, end = self._marks(2)
        start.record()
        result = task()
        end.record()
        meter.busy()
        end.synchronize()
        meter.idle(start.elapsed_time(end) / 1e3)
        return result

    def memory_bytes(self) -> int:
        return self._context_bytes + int(torch.cuda.memory_reserved(self._ordinal))

    def versions(self) -> str:
        driver = Path("/proc/driver/nvidia/version")
        words = driver.read_text(encoding="ascii").split() if driver.exists() else []
        number = next((word for word in words if word[:1].isdigit()), "unknown")
        return f"torch {torch.__version__} cuda {torch.version.cuda} driver {number}"

    def _marks(self, count: int) -> list[Any]:
        while len(self._events) < count:
            self._events.append(torch.cuda.Event(enable_timing=True))
        return self._events[:count]


def open_device(
    spec: DeviceSpec, ordinal: int, threads: int, memory_limit_bytes: int
) -> ProbeDevice:
    """The device behind `spec`; `ordinal` counts the visible CUDA devices."""
    if spec.kind == "cpu":
        return CpuDevice(spec, threads)
    return CudaDevice(spec, ordinal, memory_limit_bytes)


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
