"""How the probes behave: the single place of every default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


MIB = 2**20


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """The probes' settings; every duration in seconds, every size in bytes.

    Raises ValueError, with a text made for people, on values that cannot work together.
    """

    enabled: bool = True
    interval_seconds: float = 60.0
    budget_seconds: float = 0.020
    """Device time per GPU and interval; over any hour the sum of it is never exceeded."""
    kernels: tuple[str, ...] | None = None
    """Names of the kernels to run; None: all that the device has."""
    pause_file: Path | None = Path("/run/flopwatch/pause")
    """Probes hold off while this file exists."""
    together: bool = False
    """Probe the GPUs of one host at the same moment (tensor-parallel groups lose one step
    rather than one each); otherwise one after the other."""
    mig: Literal["skip", "run"] = "skip"
    """What to do with partitioned GPUs. `run`: each MIG instance is a device to probe; its worker
    takes memory of the instance, which is often planned to the last MiB."""
    hold_off_seconds: float = 300.0
    """No probe for this long after a new process appears on a GPU: servers size their KV
    cache by the free memory they find at start."""
    min_free_memory_bytes: int = 2048 * MIB
    memory_limit_bytes: int = 600_000_000
    """The worker's device memory, context included, stays below this."""
    max_chunk_seconds: float = 0.001
    gap_seconds: float = 0.010
    """Pause between two chunks, so that a decode step loses one chunk at most."""
    chunk_deadline_seconds: float = 0.250
    """A chunk that has not ended by then is hung, and the worker is killed."""
    request_deadline_seconds: float = 30.0
    """Longest time for one kernel altogether, loading and preparing included."""
    start_deadline_seconds: float = 120.0
    """Longest time for a worker to start, and for it to open a device: a cold import of torch can
    take a minute, and so can waking the GPUs where no persistence daemon keeps them awake."""
    cpu_threads: int = 1
    """Threads of a probe on the host processor."""

    def __post_init__(self) -> None:
        for name in (
            "interval_seconds",
            "budget_seconds",
            "max_chunk_seconds",
            "chunk_deadline_seconds",
            "request_deadline_seconds",
            "start_deadline_seconds",
            "memory_limit_bytes",
            "cpu_threads",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0")
        for name in ("hold_off_seconds", "gap_seconds", "min_free_memory_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.mig not in ("skip", "run"):
            raise ValueError("mig must be skip or run")
        if self.budget_seconds > self.interval_seconds:
            raise ValueError("the budget must not exceed the interval")
        if self.max_chunk_seconds > self.chunk_deadline_seconds:
            raise ValueError("max_chunk_seconds must not exceed chunk_deadline_seconds")
