# ruff: noqa: D102 - what a method does is documented where it is declared
"""A CUDA GPU as the kernels see it. Worker only: this imports torch.

All work is on the default stream, whose priority is the lowest that CUDA has. That orders the
work of one process only: between processes the driver gives time slices.
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

from probes.allowance import Allowance
from probes.arena import Arena
from probes.device import CACHE_MULTIPLE, Chunk, Enqueue, ProbeDevice
from probes.protocol import Device as DeviceSpec


# For the tiny operands that tell which kernels there are; the rest is taken when they are loaded.
# Freed then, it is the segment that the patterns pass through which operands are filled from.
OPENING_BYTES: Final = 8 * 2**20
# With less, the only GEMMs of which two sets fit are so small that they say nothing of the silicon.
# Where CUDA itself leaves less of the limit, the limit is passed, and the daemon warns.
ARENA_BYTES_MIN: Final = 64 * 2**20
# Kept free below the limit, for what is loaded after the arena was taken: the code of larger GEMMs.
SLACK_BYTES: Final = 16 * 2**20
# Of the host's pinned memory for either direction, which is taken from everybody there, and of a
# peer's memory, which counts against the limit.
BESIDE_BYTES: Final = 32 * 2**20
# The least that a context with torch's kernels was seen to take (pytorch#86509); a smaller figure
# means that somebody else freed memory in the same moment.
CONTEXT_BYTES_MIN: Final = 280_000_000
# Three spins. The first one only gives the host the time to enqueue the other two: 90,000 cycles
# are 45 µs at 2 GHz, and five calls of a few microseconds take half of it. The difference of the others has
# the launch overhead divided out: 300,000 cycles are about 150 µs, of which an event's resolution
# of 0.5 µs is 0.3 %.
SPIN_CYCLES_LEAD: Final = 90_000
SPIN_CYCLES_SHORT: Final = 20_000
SPIN_CYCLES_LONG: Final = 320_000
SPIN_SECONDS: Final = 0.00023
# A spin that a tenant's time slice cut into looks like a far lower clock.
CLOCK_SPREAD: Final = 0.10

Spins = tuple[float, float]
"""What the short and the long spin took, seconds."""


class CudaDevice(ProbeDevice):
    """A CUDA GPU, timed by events."""

    kind = "cuda"
    # At two thirds of the clock the spins take that much longer; three runs still fit beside them.
    overhead_seconds = 1.5 * SPIN_SECONDS
    preemptible = False
    beside_bytes = BESIDE_BYTES

    def __init__(self, spec: DeviceSpec, ordinal: int, memory_limit_bytes: int) -> None:
        if torch.version.cuda is None:
            raise RuntimeError(
                "this torch is built without CUDA; install one that has it (pytorch.org/get-started)"
            )
        # First of all: what else would be made on the first visible GPU may not be wanted there.
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
        # Context, libraries and their kernels are not the allocator's. What others take or free in
        # the same seconds is counted in; there is no other way to see them from inside.
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
        # The first call may load code for a while, on the host: the device is said to be busy
        # only from then on, and the second run says how long the first took.
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
        # The first work on an idle stream begins a launch gap late; the gap must not lie between the
        # marks of a spin that the clock is measured by.
        torch.cuda._sleep(SPIN_CYCLES_LEAD)  # noqa: SLF001 - the only spin torch has
        marks[1].record()
        torch.cuda._sleep(SPIN_CYCLES_SHORT)  # noqa: SLF001
        marks[2].record()
        torch.cuda._sleep(SPIN_CYCLES_LONG)  # noqa: SLF001
        enqueued = now()
        # While this one spins, the host enqueues the rest: no launch gap lies between the marks.
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
        # A host that was kept from enqueuing the spins in time has left a gap between their marks.
        spins = (short, long) if enqueued - began < lead else None
        return Chunk(runs, sum(spans), spins)

    def clock_hertz(self, readings: Sequence[Spins]) -> float | None:
        """Cycles over seconds: SM cycles of `clock64`, which is what torch's spin counts.

        The shortest of the short spins stands for all: it was not cut into by a tenant's slice.
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
        # Charged by the wall: on a shared device the tenant may have waited all that time.
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
    """The version of the cuBLASLt that torch has loaded, as a number; "unknown" where it has none.

    It can be exchanged without torch, and chooses the algorithms that decide a GEMM's bits.
    """
    major = (cuda or "").split(".", maxsplit=1)[0]
    with contextlib.suppress(OSError, AttributeError):
        # By its soname: the loader gives the library that is there already.
        version = ctypes.CDLL(f"libcublasLt.so.{major}").cublasLtGetVersion
        version.restype = ctypes.c_size_t
        return str(version())
    return "unknown"
