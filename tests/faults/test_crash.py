"""Drivers that end the process: by a crash, a version change, or lost access."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.fake_nvml import H100, FakeNvml, Load
from tests.faults.supervisor import Supervisor
from tests.faults.test_error_codes import OF_THE_HOST


LIB_RM_VERSION_MISMATCH, UNKNOWN = 18, 999


@pytest.mark.parametrize(
    ("function", "kind", "ended_by"),
    [
        ("nvmlGpmMetricsGet", "segfault", signal.SIGSEGV),
        pytest.param("nvmlDeviceGetFieldValues", "abort", signal.SIGABRT, marks=pytest.mark.slow),
    ],
)
def test_a_crash_inside_the_driver_costs_a_restart(
    tmp_path: Path, function: str, kind: str, ended_by: int
) -> None:
    """The supervisor restarts it, and it serves all GPUs: nothing on disk prevents that."""
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


def test_a_driver_that_is_replaced_by_another_version(tmp_path: Path) -> None:
    """Each run shows it to a scrape and ends with 1; the first run after the update serves all GPUs."""
    with FakeNvml([H100, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with Supervisor(tmp_path, {**os.environ, **fake.env}) as supervisor:
            supervisor.until(whole)
            fake.mismatch_driver()
            shown = supervisor.until(
                lambda scrape: scrape.has("flopwatch_source_errors_total", reason="driver_mismatch")
            )
            assert shown.total("flopwatch_gpu_up") == 0
            supervisor.until(lambda _scrape: len(supervisor.exits) >= 2)
            fake.mismatch_driver(False)

            supervisor.until(whole)
            assert set(supervisor.exits) == {1}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_function_can_report_a_driver_mismatch(tmp_path: Path) -> None:
    """Every function of the matrix, alone: each ends the process with 1, and the next run serves again."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with Supervisor(tmp_path, {**os.environ, **fake.env}) as supervisor:
            supervisor.until(lambda scrape: scrape.has("flopwatch_processes"))
            # XIDs are watched in parallel with the sampling, which learns of it soon enough.
            others = (*OF_THE_HOST, "nvmlDeviceRegisterEvents")
            functions = [name for name in fake.functions_called() if not name.startswith(others)]
            assert len(functions) > 30
            for function in functions:
                exits = len(supervisor.exits)
                fake.fail(function, LIB_RM_VERSION_MISMATCH)
                fake.lose(0)  # so that functions called once at the start are called, too
                supervisor.until(
                    lambda scrape: scrape.total("flopwatch_gpu_up") == 0 or supervisor.exits[exits:]  # noqa: B023
                )
                fake.restore(0)
                supervisor.until(lambda _scrape: supervisor.exits[exits:], 90)  # noqa: B023
                fake.clear()
                supervisor.until(lambda scrape: scrape.has("flopwatch_sm_active_ratio"))
            assert set(supervisor.exits) == {1}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_container_that_lost_its_devices(tmp_path: Path) -> None:
    """ "Unknown Error" for half a minute causes one restart; if that does not help, it waits and says so."""
    with FakeNvml([H100, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with Supervisor(tmp_path, {**os.environ, **fake.env}) as supervisor:
            supervisor.until(whole)
            fake.fail("nvmlInitWithFlags", UNKNOWN)
            fake.unload_driver()
            fake.load_driver()
            began = time.monotonic()
            down = supervisor.until(lambda scrape: scrape.total("flopwatch_gpu_up") == 0)
            assert down.has("flopwatch_gpu_up", gpu="1")
            supervisor.until(lambda _scrape: supervisor.exits, 120)
            assert time.monotonic() - began > 29
            supervisor.until(lambda scrape: scrape.has("flopwatch_gpu_up", gpu="unknown"))
            time.sleep(5)
            assert supervisor.exits == [1]

            fake.clear()
            supervisor.until(whole)
            assert supervisor.exits == [1]


def whole(scrape) -> bool:
    return all(scrape.has("flopwatch_sm_active_ratio", gpu=str(gpu)) for gpu in (0, 1))
