# ruff: noqa: D102 - what a method does is documented where it is declared
"""A CUDA GPU as the kernels see it. Worker only: this imports torch.

All work is on the default stream, which has the lowest CUDA priority. Priorities order only the
work of one process: between processes the driver uses time slices.
"""

import contextlib
import ctypes
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from probes.device import CACHE_MULTIPLE, Allowance, Arena, Chunk, Enqueue, ProbeDevice
from probes.protocol import Device as DeviceSpec


# For the tiny operands that show which kernels are available; the rest is taken after they are
# loaded. Once freed, this segment holds the patterns that operands are filled from.
OPENING_BYTES: Final = 8 * 2**20
# With less, the only GEMMs of which two sets fit are too small to characterize the silicon. If CUDA
# itself leaves less than this below the limit, the limit is exceeded and the daemon warns.
ARENA_BYTES_MIN: Final = 64 * 2**20
# Kept free below the limit for the code of larger GEMMs, loaded after the arena was taken.
SLACK_BYTES: Final = 16 * 2**20
# The limit per direction of pinned host memory, which is lost to all other programs, and of a
# peer's memory, which counts against the limit.
BESIDE_BYTES: Final = 32 * 2**20
# The smallest observed size of a context with torch's kernels (pytorch#86509); a smaller figure
# means that another process freed memory at the same moment.
CONTEXT_BYTES_MIN: Final = 280_000_000
# Three spins. The first one only gives the host time to enqueue the other two: 90,000 cycles are 45
# µs at 2 GHz, and five calls of a few microseconds take half of it. The difference of the other two
# cancels the launch overhead: 300,000 cycles are about 150 µs, of which an event's resolution of
# 0.5 µs is 0.3 %.
SPIN_CYCLES_LEAD: Final = 90_000
SPIN_CYCLES_SHORT: Final = 20_000
SPIN_CYCLES_LONG: Final = 320_000
SPIN_SECONDS: Final = 0.00023
# A spin interrupted by a tenant's time slice looks like a far lower clock.
CLOCK_SPREAD: Final = 0.10

Spins = tuple[float, float]
"""What the short and the long spin took, seconds."""


class CudaDevice(ProbeDevice):
    """A CUDA GPU, timed by events."""

    kind = "cuda"
    # At two thirds of the clock the spins take 1.5 times as long; three runs still fit beside them.
    overhead_seconds = 1.5 * SPIN_SECONDS
    preemptible = False
    beside_bytes = BESIDE_BYTES

    def __init__(self, spec: DeviceSpec, ordinal: int, memory_limit_bytes: int) -> None:
        if torch.version.cuda is None:
            raise RuntimeError(
                "this torch is built without CUDA; install one that has it (pytorch.org/get-started)"
            )
        # Must come first: anything created before would land on the first visible GPU.
        torch.cuda.set_device(ordinal)
        torch.cuda.init()
        properties = torch.cuda.get_device_properties(ordinal)
        self.units = int(properties.multi_processor_count)
        self.capability = (int(properties.major), int(properties.minor))
        cache = spec.l2_bytes or int(getattr(properties, "L2_cache_size", 0)) or 64 * 2**20
        device = torch.device("cuda", ordinal)
        super().__init__(device, Arena(device, OPENING_BYTES), cache)
        self._ordinal = ordinal
        self._limit_bytes = memory_limit_bytes
        self._free_before = spec.free_memory_bytes
        self._outside_bytes = 0
        self._events: list[Any] = []
        self._beside: dict[str, Arena] = {}

    def select(self) -> None:
        torch.cuda.set_device(self._ordinal)

    def beside(self, path: str, peer: int | None) -> Arena:
        if path == "peer":
            number = (self._ordinal + 1) % torch.cuda.device_count() if peer is None else peer
            key, place = f"peer {number}", torch.device("cuda", number)
        else:
            key, place = path, torch.device("cpu")
        if key not in self._beside:
            self._beside[key] = Arena(place, BESIDE_BYTES, pinned=path != "peer")
        return self._beside[key]

    def check(self) -> None:
        torch.cuda.current_stream(self._ordinal).synchronize()

    def settle(self) -> None:
        # The allocator does not count the context, the libraries and their kernels. Memory that
        # other processes take or free in the same seconds is included; it cannot be told apart from
        # inside.
        free, _ = torch.cuda.mem_get_info(self._ordinal)
        reserved = int(torch.cuda.memory_reserved(self._ordinal))
        taken = 0 if self._free_before is None else self._free_before - free - reserved
        self._outside_bytes = max(CONTEXT_BYTES_MIN, taken)
        room = self._limit_bytes - self._outside_bytes - reserved - SLACK_BYTES
        if torch.cuda.device_count() > 1:
            room -= BESIDE_BYTES
        size = max(ARENA_BYTES_MIN, min(CACHE_MULTIPLE * self.cache_bytes, room))
        self.arena = Arena(self.torch_device, size)

    def load(self, allowance: Allowance, enqueue: Enqueue) -> None:
        # The first call may spend time loading code on the host: the device is reported busy only
        # after that, and the second run shows how long the first took.
        start, end = self._marks(2)
        enqueue(0)
        start.record()
        enqueue(0)
        end.record()
        allowance.busy()
        end.synchronize()
        allowance.idle(2 * start.elapsed_time(end) / 1e3)

    def chunk(self, allowance: Allowance, enqueue: Enqueue, first: int, count: int) -> Chunk:
        now = time.perf_counter
        marks = self._marks(count + 4)
        marks[0].record()
        began = now()
        # The first work on an idle stream starts a launch gap late; the gap must not fall between
        # the marks of a spin that measures the clock.
        torch.cuda._sleep(SPIN_CYCLES_LEAD)  # noqa: SLF001 - the only spin torch has
        marks[1].record()
        torch.cuda._sleep(SPIN_CYCLES_SHORT)  # noqa: SLF001
        marks[2].record()
        torch.cuda._sleep(SPIN_CYCLES_LONG)  # noqa: SLF001
        enqueued = now()
        # While this one spins, the host enqueues the rest: there is no launch gap between the
        # marks.
        marks[3].record()
        for index in range(count):
            enqueue(first + index)
            marks[index + 4].record()
        allowance.busy()
        marks[-1].synchronize()
        spans = [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(marks)]
        allowance.idle(sum(spans))
        _, short, long, *runs = spans
        lead = long * SPIN_CYCLES_LEAD / SPIN_CYCLES_LONG
        # A host that was too late in enqueuing the spins has left a gap between their marks.
        spins = (short, long) if enqueued - began < lead else None
        return Chunk(runs, sum(spans), spins)

    def clock_hertz(self, readings: Sequence[Spins]) -> float | None:
        """Cycles over seconds: SM cycles of `clock64`, which torch's spin counts.

        The shortest of the short spins is used: no tenant's slice interrupted it.
        """
        if not readings:
            return None
        short = min(short for short, _ in readings)
        differences = [long - short for _, long in readings if long > short]
        if not differences:
            return None
        cycles = SPIN_CYCLES_LONG - SPIN_CYCLES_SHORT
        clocks = [cycles / seconds for seconds in differences]
        return statistics.median(
            clock for clock in clocks if clock >= (1 - CLOCK_SPREAD) * max(clocks)
        )

    def launches(
        self, allowance: Allowance, launch: Callable[[], None], count: int, seconds: float
    ) -> Chunk:
        now = time.perf_counter_ns
        stream = torch.cuda.current_stream(self._ordinal)
        spans: list[float] = []
        stream.synchronize()
        allowance.busy()
        while len(spans) < count and sum(spans) < seconds:
            start = now()
            launch()
            stream.synchronize()
            spans.append((now() - start) / 1e9)
        # Charged by wall time: on a shared device the tenant may have waited that long.
        allowance.idle(sum(spans))
        return Chunk(spans, sum(spans), None)

    def work(self, allowance: Allowance, task: Callable[[], Any]) -> Any:
        start, end = self._marks(2)
        start.record()
        result = task()
        end.record()
        allowance.busy()
        end.synchronize()
        allowance.idle(start.elapsed_time(end) / 1e3)
        return result

    def memory_bytes(self) -> int:
        return self._outside_bytes + int(torch.cuda.memory_reserved(self._ordinal))

    def versions(self) -> str:
        driver = Path("/proc/driver/nvidia/version")
        words = driver.read_text(encoding="ascii").split() if driver.exists() else []
        number = next((word for word in words if word[:1].isdigit()), "unknown")
        return (
            f"torch {torch.__version__} cuda {torch.version.cuda}"
            f" cublas {cublas_version(torch.version.cuda)} driver {number}"
        )

    def _marks(self, count: int) -> list[Any]:
        while len(self._events) < count:
            self._events.append(torch.cuda.Event(enable_timing=True))
        return self._events[:count]


def cublas_version(cuda: str | None) -> str:
    """The version of the cuBLASLt that torch has loaded, as a number; "unknown" if none is loaded.

    It can be replaced independently of torch, and its choice of algorithm decides a GEMM's bits.
    """
    major = (cuda or "").split(".", maxsplit=1)[0]
    with contextlib.suppress(OSError, AttributeError):
        # By soname: the loader returns the library that is already loaded.
        version = ctypes.CDLL(f"libcublasLt.so.{major}").cublasLtGetVersion
        version.restype = ctypes.c_size_t
        return str(version())
    return "unknown"
