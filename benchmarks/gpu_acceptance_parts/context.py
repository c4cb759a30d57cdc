"""What a part is given."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.gpu_acceptance_parts.report import Reporter
from benchmarks.gpu_acceptance_parts.schema import Machine


class Survey(msgspec.Struct, frozen=True):
    """What the machine has, determined in a separate process."""

    machine: Machine
    uuid: str = ""
    no_gpu: str = ""
    """Why there is no GPU; empty: there is one."""
    no_cuda: str = ""
    """Why torch cannot use it; empty: it can."""
    in_use_by: int = 0
    """Other processes on the GPU: figures taken beside them are not of the product alone."""


class Order(msgspec.Struct, frozen=True):
    """What a part's process is asked to do."""

    part: str
    lines: str
    """Path of the file for its findings."""
    seconds: float
    gpu: int
    rehearsal: bool
    out: str
    scratch: str
    survey: Survey


@dataclass(frozen=True, slots=True)
class Context:
    """A part's surroundings."""

    report: Reporter
    survey: Survey
    gpu: int
    rehearsal: bool
    out: Path
    scratch: Path

    @property
    def device(self) -> str:
        """Where workloads run: `cuda`, or `cpu` in a rehearsal."""
        return "cpu" if self.rehearsal else "cuda"

    @property
    def has_device(self) -> bool:
        """Whether workloads can run at all."""
        return self.rehearsal or not self.survey.no_cuda
