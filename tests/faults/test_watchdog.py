"""The watchdog gets no notification when a thread ended or is stuck, but while others hang."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.advisor import Advisor
from exporter.attribution.service import HolderService
from exporter.attribution.settings import HolderSettings
from exporter.inference.config import WorkloadConfig
from exporter.inference.service import WorkloadService
from exporter.state import State
from exporter.web.connections import DEFAULT_LIMITS, open_listeners
from exporter.web.server import Acceptor
from flopwatch.threads import STALLED_SECONDS, BoundedThread, ThreadGuard
from tests.daemon.process import DaemonProcess


# A bug that ends a thread at the first connection, or at its first round. No handler catches
# SystemExit.
PROGRAM = """
import sys
from {module} import {owner}

def broken(*_):
    raise SystemExit

setattr({owner}, "{method}", broken)
from exporter.cli.main import main
sys.exit(main())
"""


def later() -> float:
    """A moment past the limit."""
    return time.monotonic() + STALLED_SECONDS + 1


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@contextmanager
def guarded(work: Callable[[ThreadGuard], None]) -> Iterator[tuple[ThreadGuard, BoundedThread]]:
    guard = ThreadGuard()
    thread = BoundedThread(target=guard.run, args=(lambda: work(guard),), name="guarded")
    thread.start()
    yield guard, thread
    thread.join(60)


def test_a_thread_that_makes_no_progress_has_stalled() -> None:
    """After five minutes in its own code, not before."""
    reached, release = threading.Event(), threading.Event()

    def work(_guard: ThreadGuard) -> None:
        reached.set()
        release.wait(60)

    with guarded(work) as (guard, _thread):
        assert reached.wait(60)

        assert not guard.stalled(time.monotonic())
        assert guard.stalled(later())
        release.set()


def test_a_thread_that_waits_for_others_has_not_stalled() -> None:
    """However long they take: a new process would have to wait as well."""
    reached, release = threading.Event(), threading.Event()

    def work(guard: ThreadGuard) -> None:
        with guard.waiting():
            reached.set()
            release.wait(60)

    with guarded(work) as (guard, _thread):
        assert reached.wait(60)

        assert not guard.stalled(later())
        release.set()


def test_a_thread_that_was_told_to_end_has_not_stalled() -> None:
    """And one that failed has, at once."""

    def fail(_guard: ThreadGuard) -> None:
        raise SystemExit

    with guarded(lambda _guard: None) as (ended, thread):
        thread.join(60)
    with guarded(fail) as (failed, thread):
        thread.join(60)

    assert not ended.stalled(later())
    assert failed.stalled(time.monotonic())
    assert not ThreadGuard().stalled(later())


def test_a_server_without_clients_has_not_stalled() -> None:
    """The accepting thread may sleep; one that cannot hand a connection on has stalled."""
    taken, release = threading.Event(), threading.Event()

    def take(connection: socket.socket, _client: str) -> None:
        taken.set()
        release.wait(60)
        connection.close()

    acceptor = Acceptor(DEFAULT_LIMITS, take, lambda: None)
    acceptor.start(open_listeners(["127.0.0.1:0"], 1))
    assert not acceptor.guard.stalled(later())
    with socket.create_connection(acceptor.addresses[0]):
        assert taken.wait(60)
        assert acceptor.guard.stalled(later())
        release.set()
        wait_for(lambda: not acceptor.guard.stalled(later()))
    acceptor.stop(60)

    assert not acceptor.guard.stalled(later())


def test_a_hanging_kubelet_is_not_a_stall_of_the_holders_thread(tmp_path: Path) -> None:
    """It accepts, and never answers."""
    with socket.socket(socket.AF_UNIX) as kubelet:
        kubelet.bind(str(tmp_path / "kubelet.sock"))
        kubelet.listen()
        kubelet.settimeout(60)
        settings = HolderSettings(
            pod_resources="on", socket=tmp_path / "kubelet.sock", timeout_seconds=60
        )
        service = HolderService(settings, lambda: State(at_seconds=0.0))
        service.start()
        asked, _ = kubelet.accept()
        with asked:
            assert asked.recv(1)

            assert service.stalled(later()) == ()
        service.stop(60)


def test_a_state_that_never_comes_stalls_its_reader() -> None:
    """A deadlock inside the process: the holders and the advisor wait forever."""
    asked, release = threading.Semaphore(0), threading.Event()

    def state() -> State:
        asked.release()
        release.wait(60)
        return State(at_seconds=0.0)

    service = HolderService(HolderSettings(pod_resources="off", job_processes=False), state)
    service.start()
    assert asked.acquire(timeout=60)

    assert service.stalled(time.monotonic()) == ()
    assert service.stalled(later()) == ("holders",)
    release.set()
    wait_for(lambda: service.stalled(later()) == ())
    service.stop(60)


def test_a_hanging_engine_is_not_a_stall_of_its_scraper() -> None:
    """It is shown as hung; a thread that died is a stall, by the engine's name."""
    asked, release = threading.Event(), threading.Event()

    def fetch(_url: str, _timeout_seconds: float) -> str:
        asked.set()
        release.wait(60)
        raise SystemExit

    service = WorkloadService(
        [WorkloadConfig(name="chat", engine="vllm", url="http://127.0.0.1:1/metrics")], fetch=fetch
    )
    service.start()
    assert asked.wait(60)
    assert service.stalled(later()) == ()
    release.set()

    wait_for(lambda: service.stalled(time.monotonic()) == ("engine-chat",))
    service.stop(60)


def test_a_stopped_advisor_has_not_stalled(tmp_path: Path) -> None:
    """The end of the process is not a stall."""
    advisor = Advisor(lambda: State(at_seconds=0.0), lambda _state: (), state_path=tmp_path / "s")
    advisor.start()
    assert advisor.stalled(later()) == ()
    advisor.stop(60)

    assert advisor.stalled(later()) == ()


@pytest.mark.parametrize(
    ("module", "owner", "method", "thread"),
    [
        ("exporter.web.server", "Acceptor", "_accept", "web-accept"),
        ("exporter.attribution.service", "HolderService", "poll", "holders"),
    ],
)
def test_a_daemon_that_lost_a_thread_stops_its_watchdog_messages(
    tmp_path: Path, module: str, owner: str, method: str, thread: str
) -> None:
    """So that it restarts the daemon; the log says which thread it was.

    The main loop continues: it still handles signals, and sends no WATCHDOG=1 between them.
    """
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(module=module, owner=owner, method=method))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        with DaemonProcess(tmp_path, environment=environment, program=[str(program)]) as daemon:
            host, _, port = daemon.address.removeprefix("http://").rpartition(":")
            with socket.create_connection((host, int(port))):
                daemon.wait_for(lambda: f"event=threads_stalled threads={thread}" in daemon.log)
            told_by_reload(daemon, manager)
            told = told_by_reload(daemon, manager)

    assert told == [b"RELOADING=1", b"READY=1"]


def told_by_reload(daemon: DaemonProcess, manager: socket.socket) -> list[bytes]:
    """What the daemon sends its manager until it has reloaded: the first line of each message."""
    told: list[bytes] = []
    os.kill(daemon.process.pid, signal.SIGHUP)
    while b"RELOADING=1" not in told or told[-1] != b"READY=1":
        told.append(manager.recv(1000).splitlines()[0])
    return told
