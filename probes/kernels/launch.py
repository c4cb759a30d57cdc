# ruff: noqa: D102 - what a method does is documented where it is declared
"""Launch latency: from the host's call to the completion of an empty kernel."""

from typing import TYPE_CHECKING, Any, Final

from probes.kernels.base import Kernel, Prepared
from probes.protocol import Quantity
from probes.sizing import Shape


if TYPE_CHECKING:
    from probes.device import Allowance, ProbeDevice


class PreparedLaunch(Prepared):
    """An empty kernel; on the host processor, the shortest operation in torch."""

    shape: Shape = (1,)
    work_per_run = 1.0

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def run(self, number: int) -> None:
        import torch

        if self._tensor.is_cuda:
            torch.cuda._sleep(0)  # noqa: SLF001 - a kernel that ends at once
        else:
            self._tensor.add_(0)


class Launch(Kernel):
    """The empty kernel."""

    name = "launch"
    quantity: Quantity = "latency"

    def available(self, device: "ProbeDevice", allowance: "Allowance") -> bool:
        return True

    def choose(
        self, device: "ProbeDevice", allowance: "Allowance", max_chunk_seconds: float
    ) -> Shape:
        return (1,)

    def prepare(
        self, device: "ProbeDevice", allowance: "Allowance", shape: Shape, peer: int | None
    ) -> PreparedLaunch:
        import torch

        return PreparedLaunch(device.arena.take((1,), torch.int32))


KERNELS: Final = (Launch(),)
