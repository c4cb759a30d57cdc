"""The settings of workloads and of engine discovery."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.accounting.flop import PRECISIONS
from exporter.errors import ConfigError
from flopwatch.option_parsers import (
    choice,
    duration,
    http_url,
    integer,
    items,
    one_of,
    optional,
    text,
)
from flopwatch.options import option


# Lists endpoints as pairs of a name and a metrics address, for instance of Kubernetes pods.
ListPods = Callable[[], Iterable[tuple[str, str]]]

_GPU = one_of(integer(at_least=0, at_most=10_000), text(), otherwise="a GPU index or a device UUID")


def _engine(value: Any) -> str:
    """A parser of the name of an engine."""
    # Loaded only where workloads are configured: sampling begins before the engines are loaded.
    from exporter.inference.engines import ENGINES  # noqa: PLC0415

    name: str = choice(*ENGINES)(value)
    return name


@dataclass(frozen=True, slots=True)
class WorkloadConfig:
    """One engine to scrape. None values are taken from the engine, the model's file or the driver.

    `gpus` are NVML indices or UUIDs; if empty, the GPUs that the engine's processes use.
    """

    name: str = option("name", text(), "", "Name of the workload.", "chat", required=True)
    engine: str = option("engine", _engine, "vllm", "Inference engine.", "vllm", required=True)
    url: str = option(
        "url",
        http_url(),
        "",
        "URL of its metrics.",
        "http://127.0.0.1:8000/metrics",
        required=True,
    )
    model: Path | None = option(
        "model",
        optional(text()),
        None,
        "Path of the model's config.json or GGUF file. Default: the model that the engine reports.",
        "/models/chat/config.json",
        convert=Path,
    )
    gpus: tuple[int | str, ...] = option(
        "gpus",
        items(_GPU),
        (),
        "Its GPUs, by index or UUID. Default: the GPUs that its processes use.",
        "[0, 1]",
    )
    tensor_parallel: int | None = option(
        "tensor_parallel",
        optional(integer(at_least=1)),
        None,
        "Tensor-parallel size. Default: the number of GPUs divided by pipeline_parallel.",
        "2",
    )
    pipeline_parallel: int = option(
        "pipeline_parallel", integer(at_least=1), 1, "Pipeline-parallel size.", "1"
    )
    gpus_total: int | None = option(
        "gpus_total",
        optional(integer(at_least=1)),
        None,
        "Total GPUs of the engine, if some are on other hosts. All must be of the same kind.",
        "16",
    )
    precision: str | None = option(
        "precision",
        optional(choice(*PRECISIONS)),
        None,
        "Serving precision. Default: the precision that the model or the engine reports.",
        "fp8",
    )
    kv_cache_precision: str | None = option(
        "kv_cache_precision",
        optional(choice(*PRECISIONS)),
        None,
        "Precision of the KV cache. Default: the precision that the model or the engine reports.",
        "fp8",
    )
    interval_seconds: float = option(
        "interval", duration(at_least=1), 15.0, "Scrape interval.", "15s"
    )
    timeout_seconds: float = option("timeout", duration(at_least=0.1), 5.0, "Scrape timeout.", "5s")


@dataclass(frozen=True, slots=True)
class DiscoveryConfig:
    """How to discover engines that are not configured."""

    ports: tuple[int, ...] = option(
        "workload_discovery.ports",
        items(integer(at_least=1, at_most=65535), at_most=64),
        (),
        "Local ports to query for an engine's metrics.",
        "[8000, 30000]",
        reload=False,
    )
    interval_seconds: float = option(
        "workload_discovery.interval",
        duration(at_least=5),
        60.0,
        "Discovery interval.",
        "60s",
        reload=False,
    )
    processes: str = option(
        "workload_discovery.processes",
        choice("auto", "on", "off"),
        "auto",
        "Discover engines through the processes that hold a GPU, including those in containers. On a "
        "host without a GPU: through the processes that look like an engine. "
        "`auto`: if the processes are visible. `on`: the same, and warn if they are not.",
        "off",
        reload=False,
    )
    list_pods: ListPods | None = None


def check_names(config: Sequence[WorkloadConfig]) -> None:
    """Raise ConfigError if two workloads have the same name: their series would collide."""
    names = Counter(entry.name for entry in config)
    mistakes = [
        f"workloads: name {name!r} is used {count} times"
        for name, count in names.items()
        if count > 1
    ]
    if mistakes:
        raise ConfigError(mistakes)
