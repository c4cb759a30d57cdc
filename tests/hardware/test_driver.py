"""Drivers that disappear, return, start late or deny access: through the real daemon."""

import time
from pathlib import Path

import pytest

from exporter.collect.nvml import library
from exporter.collect.nvml.library import DriverLibrary, NvmlError
from tests.daemon.process import DaemonProcess, Scrape
from tests.fake_nvml import H100, FakeNvml, Load


CONFIG = """
sampling: {interval: 250ms, slow_interval: 1s, deadline: 1s}
sources: {dcgm: "off"}
probes: {enabled: false}
"""
UP, EXPECTED = "flopwatch_gpu_up", "flopwatch_expected_gpus"
DRIVER_NOT_LOADED, NO_PERMISSION, UNKNOWN = 9, 4, 999
# From the driver's return to every device's: far below the hour that a failed device would wait, and
# enough for a machine that does much else. Without other load it takes less than ten seconds.
BACK_SECONDS = 120.0


def patched(*statements: str) -> tuple[str, str]:
    """The daemon with other constants: minutes become seconds, or the other way round."""
    return "-c", "\n".join(
        ("import sys", *statements, "from exporter.cli.main import main", "sys.exit(main())")
    )


# A device that failed waits an hour.
PATIENT = patched(
    "import exporter.collect.sampler as sampler",
    "sampler.BACKOFF_FIRST_SECONDS = sampler.BACKOFF_LAST_SECONDS = 3600.0",
)
QUICKLY_BARRED = patched(
    "import exporter.collect.nvml.library as library",
    "library.BARRED_TIMES, library.BARRED_SECONDS, library._RETRY_SECONDS = 2, 1.0, 0.1",
)


def is_up(scrape: Scrape, gpu: str) -> bool:
    return scrape.total(UP, gpu=gpu) == 1


def test_a_returning_driver_ends_every_backoff(tmp_path: Path) -> None:
    """A GPU that was lost before the reload is back with its siblings, not a minute later."""
    with FakeNvml([H100, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with DaemonProcess(
            tmp_path, config=CONFIG, environment=fake.env, program=PATIENT
        ) as daemon:
            daemon.wait_until(lambda s: is_up(s, "0") and is_up(s, "1"))
            fake.lose(1)
            daemon.wait_until(lambda s: is_up(s, "0") and not is_up(s, "1"))
            fake.unload_driver()
            daemon.wait_until(lambda s: s.total(UP) == 0)
            fake.restore(1)
            fake.load_driver()
            daemon.wait_until(lambda s: is_up(s, "0") and is_up(s, "1"), BACK_SECONDS)


def test_one_gpu_comes_back_with_its_driver(tmp_path: Path) -> None:
    """No other GPU announces the driver's return: it looks often enough itself."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with DaemonProcess(
            tmp_path, config=CONFIG, environment=fake.env, program=PATIENT
        ) as daemon:
            daemon.wait_until(lambda s: is_up(s, "0"))
            fake.unload_driver()
            daemon.wait_until(lambda s: s.total(UP) == 0)
            daemon.wait_for(lambda: daemon.log.count("event=device_unavailable") >= 2)
            fake.load_driver()
            daemon.wait_until(lambda s: is_up(s, "0"), BACK_SECONDS)


def test_a_driver_that_is_loaded_after_the_start_is_found(tmp_path: Path) -> None:
    """The processor stands in for the missing GPUs, and is gone once they appear."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.unload_driver()
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: is_up(s, "cpu0"))
            fake.load_driver()
            scrape = daemon.wait_until(lambda s: is_up(s, "0"), BACK_SECONDS)

    assert not scrape.has(UP, gpu="cpu0")


@pytest.mark.parametrize("code", [UNKNOWN, NO_PERMISSION])
def test_a_late_driver_that_denies_access_ends_the_daemon(tmp_path: Path, code: int) -> None:
    """A device filter older than the driver: only a new process gets access; the log says so."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.unload_driver()
        with DaemonProcess(
            tmp_path, config=CONFIG, environment=fake.env, program=QUICKLY_BARRED
        ) as daemon:
            daemon.wait_until(lambda s: is_up(s, "cpu0"))
            fake.fail("nvmlInitWithFlags", code)
            fake.load_driver()
            assert daemon.process.wait(120) == 1
            daemon._reader.join(5)
            log = daemon.log

    assert "event=no_gpu_found" in log
    assert f"reason={'unknown' if code == UNKNOWN else 'no_permission'}" in log
    assert "reason=device_access_revoked" in log
    assert "Traceback" not in log


def test_a_host_that_was_refused_from_the_beginning_does_not_end() -> None:
    """A new process would fare no better: a container without the GPUs, or a driver in trouble."""
    refused, came_late = DriverLibrary(), DriverLibrary()
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.time, "monotonic", lambda: now[0])
        for number in range(library.BARRED_TIMES + 1):
            now[0] = number * library.BARRED_SECONDS
            for driver, first in ((refused, UNKNOWN), (came_late, DRIVER_NOT_LOADED)):
                patch.setattr(library, "call", failing(first if number == 0 else UNKNOWN))
                with pytest.raises(NvmlError):
                    driver.open()

    assert not refused.barred
    assert came_late.barred


def failing(code: int):
    def call(function: str, *_arguments: object) -> None:
        raise library.error_for(function, code)

    return call


def test_nodes_that_the_device_cgroup_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EPERM comes from the cgroup; missing permissions give EACCES, a missing node ENOENT."""
    node = tmp_path / "nvidiactl"
    assert not library.node_is_barred(str(node))
    node.write_text("")
    assert not library.node_is_barred(str(node))
    for number, barred in ((1, True), (13, False)):
        error = OSError(number, "refused")
        monkeypatch.setattr(library.os, "open", lambda *_args, error=error: raise_(error))
        assert library.node_is_barred(str(node)) is barred


def raise_(error: OSError) -> int:
    raise error


def test_a_gpu_host_without_its_driver_is_not_a_healthy_cpu_host(tmp_path: Path) -> None:
    """The PCI bus has eight GPUs and the driver is not loaded: the processor does not stand in."""
    program = patched(
        "import exporter.collect.host as host",
        "host.expected_gpus = lambda *_folder: 8",
    )
    with FakeNvml([H100], tmp_path) as fake:
        fake.unload_driver()
        with DaemonProcess(
            tmp_path, config=CONFIG, environment=fake.env, program=program
        ) as daemon:
            scrape = daemon.wait_until(lambda s: s.has(EXPECTED))
            ready = daemon.get("/-/ready")[0]
            log = daemon.log
            fake.load_driver()
            daemon.wait_until(lambda s: is_up(s, "0"), BACK_SECONDS)

    assert scrape.value(EXPECTED) == 8
    assert scrape.value(UP, gpu="unknown") == 0
    assert not scrape.has(UP, gpu="cpu0")
    assert ready == 503
    assert "level=warning event=no_gpu_found reason=driver_not_loaded expected=8" in log


def test_a_call_that_hangs_is_logged_when_its_deadline_passes(tmp_path: Path) -> None:
    """By its name, once, and not only when it returns."""
    with (
        FakeNvml([H100, H100], tmp_path) as fake,
        DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon,
    ):
        daemon.wait_until(lambda s: is_up(s, "0") and is_up(s, "1"))
        fake.hang("nvmlDeviceGetPowerUsage", gpu=1)
        daemon.wait_for(lambda: "event=driver_call_hung" in daemon.log)
        hung_at = time.monotonic()
        daemon.wait_until(lambda s: s.value("flopwatch_source_hung", gpu="1") == 1)
        daemon.wait_for(lambda: time.monotonic() > hung_at + 1.5)
        log = daemon.log
        fake.release()
        daemon.wait_until(lambda s: is_up(s, "1"))

    (line,) = [line for line in log.splitlines() if "event=driver_call_hung" in line]
    assert "gpu=1" in line
    assert "function=nvmlDeviceGetPowerUsage" in line


def test_a_gpu_that_is_missing_at_start_is_a_problem_but_not_fatal(tmp_path: Path) -> None:
    """The others are watched; the missing GPU has a series and a log line until it appears."""
    wanted = "gpus: [{match: {index: 1}, precision: fp8}, {match: {index: 0}}]\n"
    problem = "gpus[0].match.index: no GPU 1 on this host"
    with FakeNvml([H100, H100], tmp_path) as fake:
        fake.remove_gpu(1)
        with DaemonProcess(tmp_path, config=CONFIG + wanted, environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: is_up(s, "0"))
            fake.add_gpu(1)
            healed = daemon.wait_until(lambda s: is_up(s, "1"))
            log = daemon.log

    assert scrape.value("flopwatch_configuration_problem", problem=problem) == 1
    assert not healed.has("flopwatch_configuration_problem")
    assert log.count("event=gpu_not_on_this_host") == 1
