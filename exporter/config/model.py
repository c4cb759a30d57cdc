"""The configuration as the daemon uses it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.collect.settings import GpuRule, SamplingSettings
from exporter.config.schema import Values
from probes.config import ProbeConfig


@dataclass(frozen=True, slots=True)
class Workload:
    """One entry of `workloads`; see the schema for the meaning of each field."""

    name: str
    engine: str
    url: str
    model: str | None
    gpus: tuple[int | str, ...]
    gpus_total: int | None
    tensor_parallel: int | None
    pipeline_parallel: int
    precision: str | None
    kv_cache_precision: str | None
    interval: float
    timeout: float


@dataclass(frozen=True, slots=True)
class Web:
    """Where and how the daemon listens."""

    listen_address: tuple[str, ...]
    telemetry_path: str
    config_file: str | None
    allowed_hosts: tuple[str, ...]
    enable_lifecycle: bool


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. `values` is the same as plain data, for `flopwatch config`."""

    values: Values
    sampling: SamplingSettings
    probes: ProbeConfig
    workloads: tuple[Workload, ...]
    discovery_ports: tuple[int, ...]
    discovery_interval: float
    pod_resources: str
    pod_resources_socket: str
    holder_labels: frozenset[str]
    job_mapping_dir: str | None
    job_processes: bool
    process_memory: bool
    state_file: Path
    series_limit: int
    web: Web
    log_level: str
    log_format: str


def build_config(values: Values) -> Config:
    """The typed configuration. Raises ValueError where values cannot work together."""
    return Config(
        values=values,
        sampling=SamplingSettings(
            **values["sampling"],
            modes=dict(values["sources"]),
            dcgm_url=values["dcgm"]["url"],
            gpus=tuple(
                GpuRule(**rule["match"], **{key: rule[key] for key in rule if key != "match"})
                for rule in values["gpus"]
            ),
        ),
        probes=_probe_config(values["probes"]),
        workloads=tuple(Workload(**workload) for workload in values["workloads"]),
        discovery_ports=values["workload_discovery"]["ports"],
        discovery_interval=values["workload_discovery"]["interval"],
        pod_resources=values["kubernetes"]["pod_resources"],
        pod_resources_socket=values["kubernetes"]["socket"],
        holder_labels=frozenset(values["kubernetes"]["labels"]),
        job_mapping_dir=values["hpc"]["job_mapping_dir"],
        job_processes=values["hpc"]["job_processes"],
        process_memory=values["processes"]["memory"],
        state_file=Path(values["state_file"]),
        series_limit=values["limits"]["series"],
        web=Web(**values["web"]),
        log_level=values["log"]["level"],
        log_format=values["log"]["format"],
    )


def _probe_config(values: dict[str, Any]) -> ProbeConfig:
    pause_file = values["pause_file"]
    return ProbeConfig(
        enabled=values["enabled"],
        interval_seconds=values["interval"],
        budget_seconds=values["budget"],
        kernels=values["kernels"],
        pause_file=Path(pause_file) if pause_file else None,
        together=values["together"],
        mig=values["mig"],
        hold_off_seconds=values["hold_off"],
        min_free_memory_bytes=values["min_free_memory"],
        memory_limit_bytes=values["memory_limit"],
        max_chunk_seconds=values["max_chunk"],
        gap_seconds=values["gap"],
        cpu_threads=values["cpu_threads"],
    )
