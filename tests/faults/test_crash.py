"""A driver library that takes the process with it."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.fake_nvml import H100, FakeNvml, Load
from tests.faults.supervisor import Supervisor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "kind", "ended_by"),
    [
        ("nvmlGpmMetricsGet", "segfault", signal.SIGSEGV),
        ("nvmlDeviceGetFieldValues", "abort", signal.SIGABRT),
    ],
)
def test_a_crash_inside_the_driver_costs_a_restart(
    tmp_path: Path, function: str, kind: str, ended_by: int
) -> None:
    """The supervisor starts it again, and it serves all GPUs: nothing on disk keeps it from it."""
    with FakeNvml([H100, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with Supervisor(tmp_path, {**os.environ, **fake.env}) as supervisor:
            first = supervisor.until(whole)
            for _crash in range(2):
                exits = len(supervisor.exits)
                fake.crash(function, kind)
                while len(supervisor.exits) == exits:
                    time.sleep(0.05)
                fake.clear(function)
                again = supervisor.until(whole)
                assert supervisor.exits[exits] == -ended_by
                assert again.value("process_start_time_seconds") > first.value(
                    "process_start_time_seconds"
                )
            assert fake.gpm_misuses == 0


def whole(scrape) -> bool:
    return all(scrape.has("flopwatch_sm_active_ratio", gpu=str(gpu)) for gpu in (0, 1))
