# ruff: noqa: D102 - what a method does is documented where it is declared
"""Copies: within device memory, between host and device over pinned memory, and GPU to GPU."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from probes.kernels.base import Kernel, Prepared, Verification, column_sums, digest
from probes.protocol import Quantity
from probes.sizing import Shape


if TYPE_CHECKING:
    from probes.device import Allowance, ProbeDevice


CopyPath = Literal["device", "host_to_device", "device_to_host", "peer"]

MIB: Final = 2**20
SIZES: Final = tuple(size * MIB for size in (1, 2, 4, 8, 16, 32, 64))
# Large enough that launch overhead does not matter, and several, so that caches do not help.
TRIAL_BYTES: Final = 2 * MIB
TRIAL_PIECES: Final = 8
# A copy takes at most this share of a chunk, so that two fit; larger ones come closer to the bus's
# full speed.
RUN_SHARE: Final = 0.45
# On a processor, short copies are less often preempted.
CPU_RUN_SHARE: Final = 0.25
SEED: Final = 3
# Pieces are summed as matrices of this many 8-byte columns; every size is a multiple of a row.
COLUMNS: Final = 1024


class PreparedCopy(Prepared):
    """Pieces copied in turn, enough of them that the next one is never cached."""

    def __init__(self, sources: list[Any], targets: list[Any], factor: int) -> None:
        size = sources[0].numel()
        self.shape = (size,)
        self.work_per_run = float(size * factor)
        self._pairs = list(zip(sources, targets, strict=True))
        self._last = 0

    def run(self, number: int) -> None:
        index = number % len(self._pairs)
        source, target = self._pairs[index]
        target.copy_(source, non_blocking=True)
        self._last = index

    def verify(self, device: "ProbeDevice", allowance: "Allowance") -> Verification:
        import torch

        # One piece, the last one written: checking all would take as long as copying them.
        expected, got = (_sums(piece, device, allowance) for piece in self._pairs[self._last])
        return Verification(digest=digest(got), exact=torch.equal(expected, got))


@dataclass(frozen=True, slots=True)
class Copy(Kernel):
    """Copies one piece of memory along a path."""

    path: CopyPath
    name: str = field(init=False)
    label: str = field(init=False)
    quantity: Quantity = field(init=False, default="bandwidth")

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"copy_{self.path}")
        object.__setattr__(self, "label", self.path)

    def available(self, device: "ProbeDevice", allowance: "Allowance") -> bool:
        import torch

        if device.kind == "cpu":
            # If memory is too small for operands larger than the cache, the rate would be the
            # cache's.
            return self.path == "device" and device.arena.size_bytes >= 2 * _last_level(device)
        if self.path == "device":
            return True
        return self.path != "peer" or torch.cuda.device_count() > 1

    def choose(
        self, device: "ProbeDevice", allowance: "Allowance", max_chunk_seconds: float
    ) -> Shape:
        device.arena.reset()
        trial = self._pieces(device, allowance, TRIAL_BYTES, TRIAL_PIECES, peer=None)
        device.load(allowance, trial.run)
        seconds = min(device.chunk(allowance, trial.run, 1, TRIAL_PIECES - 1).run_seconds)
        per_byte = seconds / TRIAL_BYTES
        share = CPU_RUN_SHARE if device.kind == "cpu" else RUN_SHARE
        largest = device.arena.size_bytes // 4
        if self.path != "device":
            largest = min(largest, device.beside_bytes)
        fitting = [
            size
            for size in SIZES
            if size * per_byte <= share * max_chunk_seconds and size <= largest
        ]
        return (fitting[-1] if fitting else SIZES[0],)

    def prepare(
        self, device: "ProbeDevice", allowance: "Allowance", shape: Shape, peer: int | None
    ) -> PreparedCopy:
        from probes.device import CACHE_MULTIPLE

        size = shape[0]
        if self.path == "device":
            total, sides = device.arena.size_bytes, 2
        else:
            total, sides = min(device.beside_bytes, device.arena.size_bytes), 1
        total = min(total, CACHE_MULTIPLE * _last_level(device))
        return self._pieces(device, allowance, size, max(1, total // (sides * size)), peer)

    def _pieces(
        self, device: "ProbeDevice", allowance: "Allowance", size: int, count: int, peer: int | None
    ) -> PreparedCopy:
        import torch

        from probes.device import fill, pattern

        def take(block: Any) -> list[Any]:
            return [block.take((size,), torch.uint8) for _ in range(count)]

        def outside() -> list[Any]:
            block = device.beside(self.path, peer)
            block.reset()
            return take(block)

        inside = take(device.arena)
        if self.path == "device":
            sources, targets = inside, take(device.arena)
        elif self.path == "host_to_device":
            sources, targets = outside(), inside
        else:
            sources, targets = inside, outside()
        values = pattern(torch.int8, SEED)
        if self.path != "host_to_device":
            values = values.to(device.torch_device)

        def fill_all() -> None:
            for source in sources:
                fill(source, values)

        if device.kind == "cpu" or self.path == "host_to_device":
            fill_all()
        else:
            device.work(allowance, fill_all)
        # On the device every byte is read and written; over a bus it passes once.
        return PreparedCopy(sources, targets, 2 if self.path == "device" else 1)


def _sums(piece: Any, device: "ProbeDevice", allowance: "Allowance") -> Any:
    """The sums of a piece's bits, computed where it is stored; host memory takes no device time."""
    if piece.device != device.torch_device:
        return column_sums(_matrix(piece)).cpu()
    return device.work(allowance, lambda: column_sums(_matrix(piece))).cpu()


def _last_level(device: "ProbeDevice") -> int:
    """The size of the last cache before memory: on the host processor, not the core's own cache."""
    return int(getattr(device, "last_level_bytes", device.cache_bytes))


def _matrix(piece: Any) -> Any:
    import torch

    return piece.view(torch.int64).view(-1, COLUMNS)


KERNELS: Final = (
    Copy("device"),
    Copy("host_to_device"),
    Copy("device_to_host"),
    Copy("peer"),
)
