"""What can be configured of workloads, and what they ask of the rest of the daemon."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import ConfigError
from exporter.inference.discovery import ListPods
from exporter.inference.engines.registry import ENGINES


DISCOVERY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class WorkloadConfig:
    """One engine to scrape. What is None is left to the engine, the model's file or the driver.

    `gpus` are NVML indices or UUIDs; without any, the GPUs that the engine's processes use.
    """

    name: str
    engine: str
    url: str
    model: Path | None = None
    gpus: tuple[int | str, ...] = ()
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    # GPUs of the whole engine, where some are on other hosts.
    gpus_total: int | None = None
    precision: str | None = None
    kv_cache_dtype: str | None = None
    interval_seconds: float = 15.0
    timeout_seconds: float = 5.0

    def __post_init__(self) -> None:
        """Refuse an engine that nobody here can read."""
        if self.engine not in ENGINES:
            known = ", ".join(ENGINES)
            raise ConfigError(
                [f"workloads: {self.name}: engine {self.engine!r} is not one of {known}"]
            )


@dataclass(frozen=True, slots=True)
class DiscoveryConfig:
    """How to look for engines that nobody configured; off by default."""

    ports: tuple[int, ...] = ()
    list_pods: ListPods | None = None
    interval_seconds: float = DISCOVERY_SECONDS


def check_names(config: Sequence[WorkloadConfig]) -> None:
    """Raise ConfigError where two workloads have one name: their series would be the same."""
    names = Counter(entry.name for entry in config)
    mistakes = [
        f"workloads: name {name!r} is used {count} times"
        for name, count in names.items()
        if count > 1
    ]
    if mistakes:
        raise ConfigError(mistakes)
