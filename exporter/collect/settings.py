"""What the sampling threads need to know of the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GpuRule:
    """One entry of `gpus`: a device fits when all given patterns do.

    `peaks` is dense FLOP/s by precision, `dram_bandwidth` bytes/s; with `sm_count` they overrule
    what table and driver say.
    """

    uuid: str | None
    index: int | None
    name: str | None
    precision: str | None
    sm_count: int | None = None
    peaks: Mapping[str, float] = field(default_factory=dict)
    dram_bandwidth: float | None = None


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Intervals in seconds. `deadline` is how long a driver call may take before it counts as hung.

    `modes` says auto, on or off of each source. The first of `gpus` that fits a device applies.
    """

    interval: float = 1.0
    slow_interval: float = 15.0
    deadline: float = 2.0
    modes: Mapping[str, str] = field(
        default_factory=lambda: dict.fromkeys(("nvml", "gpm", "dcgm", "cpu"), "auto")
    )
    dcgm_url: str = "http://127.0.0.1:9400/metrics"
    gpus: tuple[GpuRule, ...] = ()

    @property
    def max_window(self) -> float:
        """The longest span that counts as watched: a missed tick is, a hung call is not."""
        return 2 * self.interval + self.deadline

    @property
    def max_age(self) -> float:
        """How long a tick's values are shown when no newer tick follows."""
        return 2 * self.interval + self.deadline
