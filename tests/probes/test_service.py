"""The service around the scheduler: threads, torch that is missing, pausing, stopping."""

import sys
import time
from pathlib import Path

import pytest
import structlog

from probes.config import ProbeConfig
from probes.service import ProbeService
from tests.probes.simulation import FakeWorker, Host, gpu


def until(condition):
    """Wait for another thread to make `condition` true."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.025)
    return False


def threads():
    """This process's threads, as the kernel counts them."""
    return {each.name for each in Path("/proc/self/task").iterdir()}


def settles_at(before, more):
    """Whether there are `more` threads than `before`, once those that have ended are gone."""
    return until(lambda: len(threads() - before) == more)


@pytest.fixture
def make(tmp_path):
    """Makes services that probe simulated workers in real time; all are stopped afterwards."""
    host = Host(tmp_path)
    made = []

    def make(**config):
        settings = {"pause_file": None, "interval_seconds": 0.2, "budget_seconds": 0.1}
        made.append(
            ProbeService(
                ProbeConfig(**(settings | config)),
                lambda: [gpu()],
                state_path=tmp_path / "service.json",
                worker_factory=lambda devices, config: FakeWorker(host, list(devices), config),
                hostname="node-1",
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.stop()


def runs(service):
    return sum(sum(each.runs.values()) for each in service.snapshot().devices)


def test_it_probes_every_interval(make):
    """Cycle after cycle, in one thread."""
    before = threads()
    service = make()
    service.start()

    assert until(lambda: runs(service) >= 3)
    assert settles_at(before, 1)
    assert service.snapshot().running


def test_not_enabled_there_is_no_thread(make):
    """No result, and nothing to stop."""
    before = threads()
    service = make(enabled=False)
    service.start()

    assert settles_at(before, 0)
    assert not service.snapshot().running
    service.stop()


def test_without_torch_there_is_no_thread(make, monkeypatch):
    """One log line that says how to get it, a skip with its reason, and the daemon continues."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    before = threads()
    service = make()
    with structlog.testing.capture_logs() as logs:
        service.start()

    assert settles_at(before, 0)
    assert [each["event"] for each in logs] == ["probes_off"]
    assert logs[0]["remedy"].startswith(f"uv pip install --python {sys.executable} ")
    assert service.snapshot().devices[0].skips == {"torch_missing": 1}
    assert not service.snapshot().running


def test_stopping_ends_the_thread(make):
    """At once, though the next cycle would be far away; a second stop is nothing."""
    before = threads()
    service = make(interval_seconds=600)
    service.start()
    service.stop()
    service.stop()

    assert settles_at(before, 0)


def test_pause_and_resume(make):
    """Paused, no run is added; resumed, they go on."""
    service = make()
    service.pause()
    service.start()
    assert until(lambda: service.snapshot().devices and service.snapshot().devices[0].skips)
    assert service.snapshot().paused
    assert runs(service) == 0

    service.resume()
    assert until(lambda: runs(service) > 0)


def test_a_new_configuration_keeps_the_results(make):
    """Turned off, the measurements stay and nothing runs; turned on, probing continues."""
    before = threads()
    service = make()
    service.start()
    assert until(lambda: runs(service) >= 1)

    service.configure(ProbeConfig(enabled=False, pause_file=None))
    count = runs(service)
    assert settles_at(before, 0)
    assert count >= 1

    service.configure(ProbeConfig(pause_file=None, interval_seconds=0.2, budget_seconds=0.1))
    assert until(lambda: runs(service) > count)


def test_a_fault_in_a_cycle_does_not_end_the_probes(make, monkeypatch):
    """It is logged, and the next cycle comes."""
    service = make()
    cycle = service._scheduler.cycle
    faults = iter([RuntimeError("a bug")])

    def faulty():
        for fault in faults:
            raise fault
        cycle()

    monkeypatch.setattr(service._scheduler, "cycle", faulty)
    with structlog.testing.capture_logs() as logs:
        service.start()
        assert until(lambda: runs(service) >= 1)

    assert "probe_cycle_failed" in [each["event"] for each in logs]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"interval_seconds": 0}, "interval_seconds must be greater than 0"),
        ({"budget_seconds": float("nan")}, "budget_seconds must be greater than 0"),
        ({"gap_seconds": -1}, "gap_seconds must not be negative"),
        ({"budget_seconds": 61}, "budget must not exceed the interval"),
        ({"max_chunk_seconds": 1}, "max_chunk_seconds must not exceed"),
    ],
)
def test_a_configuration_that_cannot_be(fields, text):
    """It is rejected with a message."""
    with pytest.raises(ValueError, match=text):
        ProbeConfig(**fields)
