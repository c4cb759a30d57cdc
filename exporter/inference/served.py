"""Facts about a served model that advice needs in addition to the exposed ones."""

from dataclasses import dataclass

from exporter.inference.models.description import ModelDescription
from exporter.inference.snapshot import GpuRef, ModelSnapshot


@dataclass(frozen=True, slots=True)
class Served:
    """One model that an engine currently serves.

    `passes` and `prompts` are cumulative like the counts of `shown`; `passes_missed` counts the
    scrapes whose passes were not known. `gpu_count` includes GPUs on other hosts.
    """

    workload: str
    engine: str
    shown: ModelSnapshot
    gpus: tuple[GpuRef, ...]
    gpu_count: int
    tensor_parallel: int
    description: ModelDescription | None = None
    passes: float = 0.0
    passes_missed: int = 0
    prompts: float = 0.0
