"""One block of device memory shared by all kernels, so that the footprint never changes.

Worker only: this imports torch. Servers size their caches by the free memory that they find; a
worker that allocated on demand could take that memory away from them.
"""

import math
from typing import Any, Final

import torch


SEED: Final = 20_240_229
# A prime number of elements, so that the repeated pattern never lines up with a matrix's rows.
PATTERN_LENGTH: Final = 1_000_003
# Kernels and copies run at full speed only on well aligned operands.
ALIGNMENT_BYTES: Final = 4096


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
