"""The probes' settings and all their defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flopwatch.option_parsers import boolean, choice, duration, integer, items, optional, size, text
from flopwatch.options import option


MIB = 2**20


def _kernel(value: Any) -> str:
    """A parser of the name of a kernel."""
    # Loaded only where the option is used: the sampling of devices begins before.
    from probes.kernels import kernel_names

    name: str = choice(*kernel_names())(value)
    return name


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """The probes' settings; every duration in seconds, every size in bytes.

    Raises ValueError, with a message for the user, for values that cannot work together.
    """

    enabled: bool = option("probes.enabled", boolean(), True, "Run probes.", "true")
    interval_seconds: float = option(
        "probes.interval", duration(at_least=1), 60.0, "Time between cycles.", "60s"
    )
    budget_seconds: float = option(
        "probes.budget",
        duration(at_least=0.001),
        0.020,
        "Device time per GPU and interval; never exceeded over any hour.",
        "20ms",
    )
    kernels: tuple[str, ...] | None = option(
        "probes.kernels",
        optional(items(_kernel)),
        None,
        "Which kernels to run; not given: all that the device has.",
        "[gemm_bf16, gemm_fp8, copy_device]",
    )
    # Some faults show only in the kernels and data paths of the model itself.
    shapes: Literal["fixed", "auto"] = option(
        "probes.shapes",
        choice("fixed", "auto"),
        "fixed",
        "Shapes of GEMMs: fixed ones alone, or also those of the model that is served on the device.",
        "auto",
    )
    pause_file: Path | None = option(
        "probes.pause_file",
        optional(text()),
        "/run/flopwatch/pause",
        "No probe runs while this file exists.",
        "/run/flopwatch/pause",
        convert=Path,
    )
    # A tensor-parallel group then loses one step instead of one per GPU.
    together: bool = option(
        "probes.together",
        boolean(),
        False,
        "Probe the GPUs of a host at the same moment instead of one after the other.",
        "false",
    )
    # A worker takes memory from its MIG instance, which is often planned to the last MiB.
    mig: Literal["skip", "run"] = option(
        "probes.mig",
        choice("skip", "run"),
        "skip",
        "Partitioned GPUs: skip them, or run probes on each MIG instance in turn (a worker for each).",
        "skip",
    )
    # Servers size their KV cache by the free memory at their start.
    hold_off_seconds: float = option(
        "probes.hold_off",
        duration(),
        300.0,
        "No probe runs for this long after a new process appears on a GPU.",
        "5m",
    )
    min_free_memory_bytes: int = option(
        "probes.min_free_memory",
        size(),
        2048 * MIB,
        "No probe runs while less device memory is free.",
        "2GiB",
    )
    memory_limit_bytes: int = option(
        "probes.memory_limit",
        size(),
        600_000_000,
        "Device memory that the worker may take, its context included.",
        "600MB",
    )
    max_chunk_seconds: float = option(
        "probes.max_chunk",
        duration(at_least=0.0001, at_most=0.1),
        0.001,
        "Longest uninterrupted device time of a probe.",
        "1ms",
    )
    # A decode step is delayed by one chunk at most.
    gap_seconds: float = option(
        "probes.gap", duration(at_most=10), 0.010, "Pause between two chunks.", "10ms"
    )
    chunk_deadline_seconds: float = 0.250
    """A chunk that has not ended by then is hung, and the worker is killed."""
    request_deadline_seconds: float = 30.0
    """Longest time for one kernel altogether, loading and preparing included."""
    start_deadline_seconds: float = 120.0
    """Longest time for a worker to start, and for it to open a device: a cold import of torch can
    take a minute, and so can waking the GPUs where no persistence daemon keeps them awake."""
    cpu_threads: int | None = option(
        "probes.cpu_threads",
        optional(integer(at_least=1, at_most=1024)),
        None,
        "Threads of a probe on the host processor; without it one for each physical core that the daemon may use.",
        "2",
    )

    def __post_init__(self) -> None:
        for name in (
            "interval_seconds",
            "budget_seconds",
            "max_chunk_seconds",
            "chunk_deadline_seconds",
            "request_deadline_seconds",
            "start_deadline_seconds",
            "memory_limit_bytes",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0")
        for name in ("hold_off_seconds", "gap_seconds", "min_free_memory_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ValueError("cpu_threads must be greater than 0")
        if self.shapes not in ("fixed", "auto"):
            raise ValueError("shapes must be fixed or auto")
        if self.mig not in ("skip", "run"):
            raise ValueError("mig must be skip or run")
        if self.budget_seconds > self.interval_seconds:
            raise ValueError("the budget must not exceed the interval")
        if self.max_chunk_seconds > self.chunk_deadline_seconds:
            raise ValueError("max_chunk_seconds must not exceed chunk_deadline_seconds")
