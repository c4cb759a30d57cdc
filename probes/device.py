"""A device as the kernels see it, CUDA GPU or host processor: its memory, timing and allowance.

Worker only: this imports torch. The same kernel code runs on both. `cpu` implements the host
processor, `cuda` the GPU.

All kernels share one block of device memory, so that the footprint never changes: servers size their
caches by the free memory that they find, and a worker that allocated on demand could take that memory
away from them. The worker tells the daemon when the device becomes busy and idle, and starts no work
that would exceed the allowance of the request.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from probes.protocol import Busy, FromWorker, Idle


# Operands rotate over this many times the cache size, so that no run finds its operands cached.
CACHE_MULTIPLE: Final = 5
ARENA_BYTES_MIN: Final = 64 * 2**20

Enqueue = Callable[[int], None]
"""Start the run with this number; it must allocate nothing."""


# A chunk starts only if this many times its expected duration still fits the allowance.
MARGIN: Final = 1.2

SEED: Final = 20_240_229
# A prime number of elements, so that the repeated pattern never lines up with a matrix's rows.
PATTERN_LENGTH: Final = 1_000_003
# Kernels and copies run at full speed only on well aligned operands.
ALIGNMENT_BYTES: Final = 4096


class AllowanceError(Exception):
    """The allowance is too small to measure the kernel."""


class Allowance:
    """Reports to the daemon when the device is busy, and adds up the busy time."""

    def __init__(self, send: Callable[[FromWorker], None], allowance_seconds: float) -> None:
        self._send = send
        self._allowance = allowance_seconds
        self.spent_seconds = 0.0

    @property
    def left_seconds(self) -> float:
        """Remaining device time of the allowance."""
        return self._allowance - self.spent_seconds

    def fits(self, seconds: float) -> bool:
        """Whether a chunk expected to take `seconds` may start."""
        return seconds * MARGIN <= self.left_seconds

    def require(self, seconds: float) -> None:
        """Raise AllowanceError unless a chunk of `seconds` may start."""
        if not self.fits(seconds):
            raise AllowanceError(
                f"a chunk of {seconds * 1e3:.2f} ms does not fit"
                f" the {self.left_seconds * 1e3:.2f} ms left"
            )

    def busy(self) -> None:
        """Report that the device is busy from now on."""
        self._send(Busy())

    def idle(self, seconds: float) -> None:
        """Report that the device was busy for `seconds` and is idle again."""
        self.spent_seconds += seconds
        self._send(Idle(device_seconds=seconds))


class ArenaFullError(Exception):
    """The block has too little space left; `reset` it first."""


class Arena:
    """A bump allocator over one block. `epoch` grows when all tensors handed out become invalid."""

    def __init__(self, torch_device: Any, size_bytes: int, *, pinned: bool = False) -> None:
        self.size_bytes = size_bytes
        # Zeros, not empty: on the host, a page never written has no physical memory.
        self._block = torch.zeros(
            size_bytes + ALIGNMENT_BYTES, dtype=torch.uint8, device=torch_device, pin_memory=pinned
        )
        self._start = -self._block.data_ptr() % ALIGNMENT_BYTES
        self._used = 0
        self.epoch = 0

    @property
    def free_bytes(self) -> int:
        """Bytes still available."""
        return self.size_bytes - self._used

    def reset(self) -> None:
        """Release everything."""
        self._used = 0
        self.epoch += 1

    def take(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An uninitialized tensor inside the block; raises ArenaFullError."""
        bytes_needed = footprint(shape, dtype)
        if bytes_needed > self.free_bytes:
            raise ArenaFullError(f"{bytes_needed} bytes wanted, {self.free_bytes} left")
        start = self._start + self._used
        self._used += bytes_needed
        length = math.prod(shape) * dtype.itemsize
        return self._block.narrow(0, start, length).view(dtype).view(shape)


class Chunk:
    """The times of one chunk's runs, in seconds."""

    __slots__ = ("clock", "device_seconds", "preempted", "run_seconds")

    def __init__(
        self,
        run_seconds: list[float],
        device_seconds: float,
        clock: Any,
        preempted: Sequence[bool] = (),
    ) -> None:
        self.run_seconds = run_seconds
        self.device_seconds = device_seconds
        self.clock = clock
        """What the device's `clock_hertz` makes the clock of; None: nothing was read."""
        self.preempted = tuple(preempted) or (False,) * len(run_seconds)
        """For each run, whether one of its threads had to wait for others."""

    @property
    def undisturbed_seconds(self) -> list[float]:
        """Times of the runs in which no thread had to wait."""
        return [s for s, gone in zip(self.run_seconds, self.preempted, strict=True) if not gone]


class ProbeDevice(ABC):
    """An open device."""

    kind: str
    units: int
    """SMs that a kernel can use; cores of the host processor."""
    overhead_seconds: float
    """Device time that a chunk takes in addition to its runs."""
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
        """Bytes of operands to rotate over, as far as memory allows."""
        return min(CACHE_MULTIPLE * self.cache_bytes, self.arena.size_bytes)

    def select(self) -> None:  # noqa: B027 - the host has only one processor device
        """Make this the current device of the next calls."""

    @abstractmethod
    def load(self, allowance: Allowance, enqueue: Enqueue) -> None:
        """Run new work twice; libraries may load their code meanwhile."""

    @abstractmethod
    def chunk(self, allowance: Allowance, enqueue: Enqueue, first: int, count: int) -> Chunk:
        """Run `first` … `first + count − 1` back to back and time each of them."""

    @abstractmethod
    def clock_hertz(self, readings: Sequence[Any]) -> float | None:
        """The clock during the chunks whose `clock` is given; None if it cannot be determined."""

    @abstractmethod
    def launches(
        self, allowance: Allowance, launch: Callable[[], None], count: int, seconds: float
    ) -> Chunk:
        """Launch up to `count` times, each time waiting for completion, timed on the host.

        Starts no launch after `seconds`: on a busy device each waits for a tenant's time slice.
        """

    def core_by_core(self, allowance: Allowance, enqueue: Enqueue, least: int, most: int) -> Chunk:
        """On all cores at once, run `i` on core `i`: once to fill the caches, then until runs agree.

        A core does at least `least` uninterrupted runs and at most `most` runs in all; it stops
        early when its part of the allowance is used up. The result holds the times in which the
        machine does one run on each core, the fastest first.
        """
        raise NotImplementedError(self.kind)

    @abstractmethod
    def work(self, allowance: Allowance, task: Callable[[], Any]) -> Any:
        """Do some untimed work on the device and wait for it; its time is accounted for."""

    def beside(self, path: str, peer: int | None) -> Arena:
        """The other block of copies along `path`: in pinned host memory or in a peer's memory.

        Allocated once, of `beside_bytes`. The default peer is the next device.
        """
        raise NotImplementedError(path)

    def check(self) -> None:  # noqa: B027 - a processor has no pending errors
        """Raise any pending error of the device: an error there persists after its cause."""

    def settle(self) -> None:  # noqa: B027 - host memory is allocated at the start
        """Allocate the arena, now that everything else that the kernels need is loaded."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """Memory that the worker occupies: device memory on CUDA, else the resident set."""

    @abstractmethod
    def versions(self) -> str:
        """Versions of the software that determines a kernel's speed and bits."""


def footprint(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes that a tensor takes in the arena, padding included."""
    size = math.prod(shape) * int(dtype.itemsize)
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def pattern(dtype: Any, seed: int) -> Any:
    """Random numbers on the host, the same for every device and run.

    Random data, because zeros and constants toggle few wires and draw less power, so that a
    power-limited GPU would appear up to 15 % too fast.
    """
    generator = torch.Generator().manual_seed(SEED + seed)
    if dtype == torch.int8:
        return torch.randint(-128, 128, (PATTERN_LENGTH,), dtype=torch.int8, generator=generator)
    return torch.randn(PATTERN_LENGTH, generator=generator).to(dtype)


def fill(tensor: Any, values: Any) -> None:
    """Fill a contiguous tensor with repeated `values`, by copies that double in size each time.

    Bytes are copied, so that every data type is filled the same way.
    """
    target = tensor.view(-1).view(torch.uint8)
    source = values.view(torch.uint8)
    done = min(target.numel(), source.numel())
    target[:done].copy_(source[:done])
    while done < target.numel():
        # Copy only whole repetitions, to keep the period.
        step = min(done, target.numel() - done)
        target[done : done + step].copy_(target[:step])
        done += step


def repeated(values: Any, count: int) -> Any:
    """The values that `fill` writes into `count` elements, on the host."""
    times = -(-count // values.numel())
    return values.repeat(times)[:count]


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or the host ran out of memory; torch has no single type for that."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "out of memory" in text or "ALLOC_FAILED" in text)
    )
