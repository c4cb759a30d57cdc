"""A device as the kernels see it, CUDA GPU or host processor: its memory and its timing.

Worker only: this imports torch. The same kernel code runs on both. `cpu` implements the host
processor, `cuda` the GPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from probes.allowance import Allowance
from probes.arena import Arena


# Operands rotate over this many times the cache size, so that no run finds its operands cached.
CACHE_MULTIPLE: Final = 5
ARENA_BYTES_MIN: Final = 64 * 2**20

Enqueue = Callable[[int], None]
"""Start the run with this number; it must allocate nothing."""


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or the host ran out of memory; torch has no single type for that."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "out of memory" in text or "ALLOC_FAILED" in text)
    )
