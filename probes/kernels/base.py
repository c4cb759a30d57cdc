"""The kernel interface."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probes.protocol import KernelInfo, Quantity
from probes.sizing import Shape


if TYPE_CHECKING:  # the registry is also read without torch
    from probes.device import Allowance, ProbeDevice


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of checking the results' bits."""

    digest: str = ""
    """Equal inputs and versions give equal digests; empty: not checked."""
    repeats_agree: bool = True
    exact: bool | None = None
    """Whether the result is the one known exactly; None: not known."""


class Prepared(ABC):
    """A kernel with its operands in place: everything that the timed path needs is allocated."""

    shape: Shape
    work_per_run: float
    """FLOP or bytes."""

    @abstractmethod
    def run(self, number: int) -> None:
        """Start run `number` on the next set of operands. Allocates nothing."""

    def activate(self) -> None:  # noqa: B027 - most kernels need none
        """Set the library switches that this kernel needs; called before its runs."""

    def verify(self, device: "ProbeDevice", allowance: "Allowance") -> Verification:
        """Check the results of the runs so far."""
        return Verification()


class Kernel(ABC):
    """One kernel: a stateless description that makes `Prepared` ones on a device."""

    name: str
    quantity: Quantity
    label: str = ""
    """What its metric is labelled with: the precision or the path."""
    core_by_core: bool = False
    """On a processor each core is measured on its own, and the rates are added up.

    Runs with different numbers must be able to run at once then, as many as there are cores.
    """

    @property
    def info(self) -> KernelInfo:
        """The kernel's description for the protocol."""
        return KernelInfo(name=self.name, quantity=self.quantity, label=self.label)

    @abstractmethod
    def available(self, device: "ProbeDevice", allowance: "Allowance") -> bool:
        """Whether the device supports the kernel; if necessary, found by running a tiny one."""

    @abstractmethod
    def choose(
        self, device: "ProbeDevice", allowance: "Allowance", max_chunk_seconds: float
    ) -> Shape:
        """Choose the shape for this device; may run candidates within the allowance."""

    @abstractmethod
    def prepare(
        self, device: "ProbeDevice", allowance: "Allowance", shape: Shape, peer: int | None
    ) -> Prepared:
        """Place the operands in the device's arena. Raises ArenaFullError if they do not fit."""


def column_sums(tensor: Any) -> Any:
    """The sum of each column of a matrix's bits, as integers, on the tensor's device.

    A single flipped bit always changes its column's sum; several flips do too, except in the rare
    case that they cancel out. Unlike a copy, the sums take almost no memory.
    """
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(integers[tensor.dtype.itemsize]).sum(dim=0, dtype=torch.int64)


def digest(sums: Any) -> str:
    """A short digest of the sums, equal only for equal sums."""
    import hashlib  # loads OpenSSL, 4 MB that only the worker needs

    return hashlib.blake2b(sums.cpu().numpy().tobytes(), digest_size=16).hexdigest()
