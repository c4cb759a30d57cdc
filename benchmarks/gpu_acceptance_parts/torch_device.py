"""Where a workload runs, CUDA or the host processor: waiting, timing, the clock. Imports torch.

Independent of the probes' own device code, which is under test.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


# Two spins of known cycles; their difference has the launch overhead divided out.
_SPIN_CYCLES = (20_000, 320_000)
# Larger than any GPU's last-level cache, as in mamf-finder.
_FLUSH_BYTES = 256 * 2**20


class TorchDevice:
    """One device. On the host processor there is no spin, and so no measured clock."""

    def __init__(self, kind: str) -> None:
        self.is_cuda = kind == "cuda"
        self.torch_device = torch.device(kind)
        self._flush: Any = None

    def properties(self) -> dict[str, Any]:
        """Name, SM count and versions as torch reports them; opens the context."""
        found: dict[str, Any] = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda)}
        if self.is_cuda:
            properties = torch.cuda.get_device_properties(0)
            found |= {
                "name": properties.name,
                "sm_count": int(properties.multi_processor_count),
                "memory_bytes": int(properties.total_memory),
                "capability": [int(properties.major), int(properties.minor)],
            }
        return found

    def wait(self) -> None:
        """Wait until everything enqueued is done."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give cached memory back, so that the next operands find room."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    def seconds_of(self, runs: Sequence[Callable[[], object]], *, cold: bool) -> list[float]:
        """Time of each run on the device; `cold`: the last-level cache is overwritten before each."""
        if not self.is_cuda:
            return [_on_host(run) for run in runs]
        if cold and self._flush is None:
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        marks = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in runs
        ]
        for run, (start, end) in zip(runs, marks, strict=True):
            if cold:
                self._flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in marks]

    def clock_hertz(self) -> float | None:
        """The SM clock, by spins of known cycles timed on the device."""
        if not self.is_cuda:
            return None
        short, long = _SPIN_CYCLES
        # While the first one spins, the host enqueues the others: no launch gap is included in
        # their time.
        spins = [_spin(cycles) for cycles in (long, short, long)]
        _, brief, lengthy = self.seconds_of(spins, cold=False)
        return (long - short) / (lengthy - brief) if lengthy > brief else None


def _spin(cycles: int) -> Callable[[], object]:
    return lambda: torch.cuda._sleep(cycles)


def _on_host(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
