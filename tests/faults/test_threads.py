"""Threads that cannot start."""

import _thread
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flopwatch import threads
from flopwatch.threads import BoundedThread
from tests.daemon.process import DaemonProcess, passive
from tests.fake_nvml import H100, FakeNvml, Load
from tests.faults.refusals import Refusals


def test_a_thread_that_starts() -> None:
    """Runs, ends, and is joined, like any other."""
    ran, go_on = threading.Event(), threading.Event()

    def work(event: threading.Event) -> None:
        event.set()
        go_on.wait(30)

    thread = BoundedThread(target=work, args=(ran,), name="works")
    thread.start()

    assert ran.wait(30)
    assert thread.is_alive()
    thread.join(0.01)
    assert thread.is_alive()
    go_on.set()
    thread.join(30)
    assert not thread.is_alive()


def test_a_thread_that_was_not_started() -> None:
    """It is not alive, and nothing waits for it."""
    thread = BoundedThread(target=lambda: None, name="never")
    thread.join(None)

    assert not thread.is_alive()


def test_a_thread_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has its error printed as any thread has, and has ended."""
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    error = ValueError("out of range")

    def work() -> None:
        raise error

    thread = BoundedThread(target=work, name="raises")
    thread.start()
    thread.join(30)

    assert not thread.is_alive()
    assert [each.exc_value for each in printed] == [error]


def test_a_thread_that_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By SystemExit, which is not an error."""
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    thread = BoundedThread(target=sys.exit, name="exits")
    thread.start()
    thread.join(30)

    assert not thread.is_alive()
    assert printed == []


def test_a_thread_that_never_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its starter gets an error within the limit, and does not wait forever."""
    monkeypatch.setattr(threads, "START_SECONDS", 0.05)
    # What happens without memory for the thread's first frame.
    monkeypatch.setattr(_thread, "start_new_thread", lambda function, arguments: 1)
    thread = BoundedThread(target=lambda: None, name="never")

    with pytest.raises(RuntimeError, match="can't start new thread"):
        thread.start()
    assert not thread.is_alive()


def test_a_thread_that_starts_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends without having done anything: another may have been started in its place."""
    monkeypatch.setattr(threads, "START_SECONDS", 0.05)
    may_begin, ended, ran = threading.Event(), threading.Event(), threading.Event()
    begin = _thread.start_new_thread

    def late(function: Callable[[], None], arguments: tuple[()]) -> int:
        def main() -> None:
            may_begin.wait(30)
            function(*arguments)
            ended.set()

        return begin(main, ())

    monkeypatch.setattr(_thread, "start_new_thread", late)
    thread = BoundedThread(target=ran.set, name="late")
    with pytest.raises(RuntimeError):
        thread.start()
    may_begin.set()

    assert ended.wait(30)
    assert not ran.is_set()
    assert not thread.is_alive()


def test_no_thread_for_the_gpus_that_come(tmp_path: Path) -> None:
    """The driver appears while no thread can start: the GPUs are sampled as soon as one can."""
    node_limits = Refusals(tmp_path)
    with FakeNvml([H100, H100], tmp_path) as fake:
        fake.unload_driver()
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        environment = {**fake.env, **node_limits.env}
        config = passive("sampling: {interval: 250ms, slow_interval: 1s}\n")
        with DaemonProcess(tmp_path, config=config, environment=environment) as daemon:
            daemon.wait_until(lambda scrape: scrape.has("flopwatch_gpu_up", gpu="cpu0"))
            node_limits.refuse("threads")
            fake.load_driver()
            daemon.wait_for(lambda: "sampling_not_started" in daemon.log)
            time.sleep(2)
            assert daemon.process.poll() is None
            node_limits.allow("threads")

            scrape = daemon.wait_until(
                lambda scrape: all(
                    scrape.has("flopwatch_sm_active_ratio", gpu=str(gpu)) for gpu in (0, 1)
                )
            )
            assert scrape.total("flopwatch_gpu_up") == 2
            assert "Traceback" not in daemon.log
