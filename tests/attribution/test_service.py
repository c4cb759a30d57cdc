"""The service: late sockets, restarts, changes, and what is exported meanwhile."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.attribution.service import HolderService
from exporter.attribution.settings import HolderSettings
from exporter.state import State
from tests.attribution.hosts import gpu, host
from tests.attribution.kubelet import Held, Kubelet


class Clock:
    """Time that passes only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A service with a clock, a host and settings that a test may change."""

    def __init__(self, settings: HolderSettings) -> None:
        self.clock = Clock()
        self.view: State = host(gpu("0", "GPU-aa"))
        self.service = HolderService(
            settings, lambda: self.view, clock=self.clock, wall_clock=self.clock
        )

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.service.poll()

    @property
    def pods(self) -> list[str]:
        return [allocation.pod for allocation in self.service.snapshot().allocations]

    @property
    def jobs(self) -> list[str]:
        return [use.job for use in self.service.snapshot().jobs]

    def up(self, source: str = "pod_resources") -> bool | None:
        state = self.service.snapshot().sources.get(source)
        return None if state is None else state.up


@pytest.fixture
def settings(socket_path: Path, tmp_path: Path) -> HolderSettings:
    return HolderSettings(socket=socket_path, job_mapping_dir=tmp_path / "jobs")


def test_a_host_without_kubelet_and_batch_system_says_nothing(settings: HolderSettings):
    """No socket, no directory: with `auto` that is not an error, and nothing is exported."""
    world = World(settings)

    world.pass_time(0)
    world.pass_time(60)

    assert world.up() is None
    assert world.up("job_mapping") is None
    assert world.pods == []


def test_a_configured_socket_that_is_missing_is_a_fault(settings: HolderSettings):
    """With `on` the source is down, and the reason is counted at each attempt."""
    world = World(HolderSettings(pod_resources="on", socket=settings.socket))

    world.pass_time(0)
    world.pass_time(10)

    assert world.service.snapshot().sources["pod_resources"].errors == {"absent": 2}
    assert world.up() is False


def test_a_late_socket_is_found_at_the_next_look(settings: HolderSettings, kubelet: Kubelet):
    """A kubelet that starts after the exporter is asked within a second, not at the next interval."""
    world = World(settings)
    world.pass_time(0)
    kubelet.holds(Held(("GPU-aa",), pod="late"))
    kubelet.start()

    world.pass_time(1)

    assert world.pods == ["late"]
    assert world.up() is True


def test_between_intervals_the_kubelet_is_left_alone(settings: HolderSettings, kubelet: Kubelet):
    """Ten looks in an interval are one call; the eleventh second brings the next."""
    kubelet.start()
    world = World(settings)

    for _ in range(10):
        world.pass_time(1)
    calls_before = kubelet.calls
    world.pass_time(1)

    assert (calls_before, kubelet.calls) == (1, 2)


def test_a_new_process_on_a_gpu_triggers_a_request(settings: HolderSettings, kubelet: Kubelet):
    """A pod that has just opened its GPU is named before the interval has passed."""
    kubelet.start()
    world = World(settings)
    world.pass_time(0)
    kubelet.holds(Held(("GPU-aa",), pod="new"))
    world.view = host(gpu("0", "GPU-aa", pids=(77,)))

    world.pass_time(1)

    assert world.pods == ["new"]


def test_a_kubelet_restart_removes_no_pod(settings: HolderSettings, kubelet: Kubelet):
    """While the kubelet is down for ten seconds the pods stay; afterwards its new answer applies."""
    kubelet.holds(Held(("GPU-aa",), pod="before"))
    kubelet.start()
    world = World(settings)
    world.pass_time(0)
    kubelet.stop()

    world.pass_time(10)
    assert (world.pods, world.up()) == (["before"], False)

    kubelet.holds(Held(("GPU-aa",), pod="after"))
    kubelet.start()
    world.pass_time(1)
    assert (world.pods, world.up()) == (["after"], True)


def test_pods_are_dropped_when_the_kubelet_stays_away(settings: HolderSettings, kubelet: Kubelet):
    """After three intervals without an answer no holder is exported: old data is not current."""
    kubelet.holds(Held(("GPU-aa",), pod="gone"))
    kubelet.start()
    world = World(settings)
    world.pass_time(0)
    kubelet.stop()

    world.pass_time(30)
    assert world.pods == ["gone"]
    world.pass_time(1)
    assert world.pods == []


def test_an_epilog_is_seen_at_the_next_look(settings: HolderSettings):
    """A job file that comes, changes or goes is read within a second."""
    world = World(settings)
    folder = settings.job_mapping_dir
    assert folder is not None
    folder.mkdir()
    world.pass_time(1)
    (folder / "0").write_text("1\n")
    world.pass_time(1)
    assert world.jobs == ["1"]

    (folder / "0").unlink()
    world.pass_time(1)
    assert world.jobs == []


def test_the_version_grows_with_each_change_only(settings: HolderSettings):
    """Without a change nothing is rendered again."""
    folder = settings.job_mapping_dir
    assert folder is not None
    folder.mkdir()
    world = World(settings)
    world.pass_time(0)
    first = world.service.version
    world.pass_time(1)
    unchanged = world.service.version
    (folder / "0").write_text("1\n")
    world.pass_time(1)

    assert (unchanged - first, world.service.version - first) == (0, 1)


def test_new_settings_replace_the_sources(settings: HolderSettings, kubelet: Kubelet):
    """Turned off, the kubelet is not asked and its pods are not shown."""
    kubelet.holds(Held(("GPU-aa",), pod="one"))
    kubelet.start()
    world = World(settings)
    world.pass_time(0)
    calls = kubelet.calls

    world.service.configure(HolderSettings(pod_resources="off", job_mapping_dir=None))
    world.pass_time(60)

    assert (world.pods, kubelet.calls - calls) == ([], 0)
    assert world.up() is None


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_the_thread_follows_a_kubelet(settings: HolderSettings, kubelet: Kubelet):
    """The real thread on the real clock: a late socket, a change, a restart, an end."""
    service = HolderService(
        HolderSettings(socket=settings.socket, interval_seconds=0.1),
        lambda: host(gpu("0", "GPU-aa")),
    )
    service.start()
    kubelet.holds(Held(("GPU-aa",), pod="one"))
    kubelet.start()
    wait_for(lambda: [a.pod for a in service.snapshot().allocations] == ["one"])
    kubelet.holds(Held(("GPU-aa",), pod="two"))
    wait_for(lambda: [a.pod for a in service.snapshot().allocations] == ["two"])
    kubelet.stop()
    kubelet.holds(Held(("GPU-aa",), pod="three"))
    kubelet.start()
    wait_for(lambda: [a.pod for a in service.snapshot().allocations] == ["three"])
    service.stop()

    assert "holders" not in {thread.name for thread in threading.enumerate()}


def test_a_hook_that_fails_does_not_end_the_thread(settings: HolderSettings):
    """An error in the view of the devices is logged, and the next look still happens."""
    looks = []

    def broken() -> State:
        looks.append(1)
        raise RuntimeError("no view")

    service = HolderService(settings, broken)
    service.start()
    wait_for(lambda: len(looks) >= 1)
    service.configure(HolderSettings(socket=settings.socket))  # wakes it
    wait_for(lambda: len(looks) >= 2)
    service.stop()

    assert service.snapshot().allocations == ()
