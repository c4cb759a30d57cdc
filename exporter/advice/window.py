"""The input of advice: the means of one workload over some minutes, as seen by the exporter.

Nothing is guessed: a value that the exporter could not read is None, and a lever that needs it
reports that instead of predicting.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.accounting.peaks import Peaks
from exporter.inference.models import ModelDescription


@dataclass(frozen=True, slots=True)
class GpuWindow:
    """One GPU of the workload. Activities are shares 0..1 of the window, at its actual clock.

    `clock_ratio` is the mean SM clock over its maximum, `clock_lost_to` the share of the missing
    clock by cause. `tensor` and `dram` are GPM's values. Probe results are the device's
    present rates in bytes/s and FLOP/s by precision; `fault` is the reason why it needs repair
    first, `shared_with` who else works on it: its time is then not the engine's alone.
    """

    gpu: str
    uuid: str
    name: str
    peaks: Peaks
    clock_ratio: float | None = None
    clock_lost_to: Mapping[str, float] = field(default_factory=dict)
    graphics: float | None = None
    tensor: float | None = None
    dram: float | None = None
    reachable_bandwidth_bytes_per_second: float | None = None
    reachable_flops: Mapping[str, float] = field(default_factory=dict)
    link_bytes_per_second: float | None = None  # sent by this GPU, mean of the window
    reachable_link_bytes_per_second: float | None = None
    memory_size_bytes: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    power_limit_max_watts: float | None = None
    fault: str | None = None
    shared_with: str | None = None

    @property
    def title(self) -> str:
        """The name for display."""
        return "the processor" if self.gpu.startswith("cpu") else f"GPU {self.gpu}"


@dataclass(frozen=True, slots=True)
class Reference:
    """Medians of the probe results of healthy GPUs of the same product on this host."""

    devices: int
    bandwidth_bytes_per_second: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one GPU-hour."""

    per_gpu_hour: float
    currency: str


@dataclass(frozen=True, slots=True)
class WorkloadWindow:
    """One served model of one engine over `seconds`.

    Counts are totals of the window; `running_requests`, `waiting_requests` and `cache_usage_ratio`
    are means. `gpu_count` counts all GPUs that the engine uses, `gpus` are those visible on this
    host. `replicas` is the number of engines on this host that serve the same model, including this
    one.
    """

    workload: str
    model: str
    seconds: float
    gpus: tuple[GpuWindow, ...]
    gpu_count: int
    tensor_parallel: int = 1
    replicas: int = 1
    engine: str = ""
    description: ModelDescription | None = None
    precision: str | None = None
    prefill_tokens: float | None = None
    cached_tokens: float | None = None
    decode_tokens: float | None = None
    prompts: float | None = None
    passes: float | None = None
    running_requests: float | None = None
    waiting_requests: float | None = None
    cache_usage_ratio: float | None = None
    decode_context: float | None = None
    useful_flops: float | None = None  # model FLOP/s, mean of the window
    # The best share of prompt tokens from the prefix cache in the last days.
    best_cache_hit_ratio: float | None = None
    reference: Reference | None = None
    price: Price | None = None

    @property
    def tokens(self) -> float:
        """Tokens produced in the window: the throughput that levers raise."""
        return self.decode_tokens or 0.0

    @property
    def cache_hit_ratio(self) -> float | None:
        """Share of the prompt tokens that came from the prefix cache."""
        if self.cached_tokens is None or self.prefill_tokens is None:
            return None
        total = self.cached_tokens + self.prefill_tokens
        return self.cached_tokens / total if total > 0 else None
