"""A daemon that probes the host's processor with real workers, every second."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.daemon.process import DaemonProcess, Scrape


INTERVAL_SECONDS = 1
KERNELS = ("launch", "gemm_fp32")
# A dead worker is restarted after this (probes.schedule.Backoff).
BACKOFF_SECONDS = 30
# What the probes measured, as opposed to how they ran.
MEASURED = (
    "flopwatch_probe_flops",
    "flopwatch_probe_launch_latency_seconds",
    "flopwatch_probe_baseline_ratio",
)


def probing(
    directory: Path, state_file: Path, environment: Mapping[str, str] | None = None
) -> DaemonProcess:
    """The daemon; it has probed once when `probed` holds."""
    config = (
        "sampling: {interval: 250ms, slow_interval: 1s, deadline: 1s}\n"
        f"probes: {{interval: {INTERVAL_SECONDS}s, budget: 300ms, kernels: [{', '.join(KERNELS)}],"
        " pause_file: null}\n"
        f"state_file: {state_file}\n"
    )
    return DaemonProcess(directory, config=config, environment=environment)


def runs(scrape: Scrape, **labels: str) -> float:
    """Runs of the probes so far."""
    return scrape.total("flopwatch_probe_runs_total", **labels)


def children(pid: int) -> list[int]:
    """Processes that this one has started, zombies included."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has just ended
            found += map(int, (task / "children").read_text().split())
    return found
