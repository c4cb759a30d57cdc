"""Conditions for not probing: pure functions from facts to the reason that holds a run back."""

from collections.abc import Sequence
from typing import Final, Literal, get_args

from probes.config import ProbeConfig
from probes.facts import DeviceFacts, ProcessFacts


Reason = Literal[
    "paused",
    "mig",
    "compute_mode",
    "new_process",
    "free_memory",
    "throttled_hot",
    "budget",
    "turn",
    "backoff",
    "no_facts",
    "torch_missing",
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

# NVML's clock event reasons that indicate heat. A power cap is normal under load and no reason to
# skip.
HOT_REASONS: Final = frozenset(
    {"sw_thermal_slowdown", "hw_thermal_slowdown", "hw_slowdown", "hw_power_brake_slowdown"}
)
# The error of a process's age in the driver's list, which is read every 15 s.
AGE_TOLERANCE_SECONDS: Final = 20.0


def other_processes(
    processes: Sequence[ProcessFacts], worker_pid: int | None, worker_age_seconds: float | None
) -> tuple[ProcessFacts, ...]:
    """The processes on a device that are not our worker.

    In a container the driver may list the worker under its host process id, which is not visible
    inside. So if the worker is open and its own id is not listed, the process closest to it in age
    is taken for the worker, if it is close enough.
    """
    others = tuple(process for process in processes if process.pid != worker_pid)
    if worker_pid is None or worker_age_seconds is None or len(others) < len(processes):
        return others
    age = worker_age_seconds
    near = [p for p in others if abs(p.age_seconds - age) <= AGE_TOLERANCE_SECONDS]
    if not near:
        return others
    ours = min(near, key=lambda process: abs(process.age_seconds - age))
    return tuple(process for process in others if process is not ours)


def device_gate(
    facts: DeviceFacts, others: Sequence[ProcessFacts], config: ProbeConfig, *, worker_open: bool
) -> Reason | None:
    """Why the device must not be probed now, or None if it may be.

    `worker_open`: our worker already holds its memory there and takes no more.
    """
    if facts.kind == "cpu":
        # Host memory is allocated once, and servers do not size their KV cache by it.
        short = (facts.free_memory_bytes or config.memory_limit_bytes) < config.memory_limit_bytes
        return "free_memory" if short and not worker_open else None
    if facts.mig:
        return "mig"
    if facts.compute_mode == "prohibited":
        return "compute_mode"
    if facts.compute_mode != "default" and others:
        return "compute_mode"
    if any(process.age_seconds < config.hold_off_seconds for process in others):
        return "new_process"
    if not worker_open and (facts.free_memory_bytes or 0) < config.min_free_memory_bytes:
        # Unknown free memory counts as too little: the inference server comes first.
        return "free_memory"
    if facts.clock_event_reasons & HOT_REASONS:
        return "throttled_hot"
    return None


def paused(config: ProbeConfig, *, by_operator: bool) -> bool:
    """Whether an operator or the pause file has paused the probes."""
    if by_operator:
        return True
    try:
        return config.pause_file is not None and config.pause_file.exists()
    except OSError:
        # A file that cannot be checked may exist.
        return True
