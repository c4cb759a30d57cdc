"""Threads that cannot begin."""

import threading
import time
from pathlib import Path

import pytest

from probes import threads
from probes.threads import BoundedThread
from tests.daemon.process import DaemonProcess, passive
from tests.fake_nvml import H100, FakeNvml, Load
from tests.faults.refusals import Refusals


def test_a_thread_that_begins() -> None:
    """Runs, ends, and is joined, like any other."""
    ran = threading.Event()
    thread = BoundedThread(target=ran.set, name="works")
    thread.start()
    thread.join(30)

    assert ran.is_set()
    assert not thread.is_alive()


def test_a_thread_that_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its starter is told within the limit, and does not wait for ever."""
    monkeypatch.setattr(threads, "START_SECONDS", 0.05)
    # What happens where there is no memory for the thread's first frame.
    monkeypatch.setattr(BoundedThread, "_bootstrap", lambda self: None)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        BoundedThread(target=lambda: None).start()


def test_a_thread_that_begins_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends without having done anything: somebody else may have been started in its place."""
    monkeypatch.setattr(threads, "START_SECONDS", 0.05)
    may_begin, ended, ran = threading.Event(), threading.Event(), threading.Event()
    bootstrap = BoundedThread._bootstrap

    def late(self: BoundedThread) -> None:
        may_begin.wait(30)
        bootstrap(self)
        ended.set()

    monkeypatch.setattr(BoundedThread, "_bootstrap", late)
    with pytest.raises(RuntimeError):
        BoundedThread(target=ran.set).start()
    may_begin.set()

    assert ended.wait(30)
    assert not ran.is_set()


def test_no_thread_for_the_gpus_that_come(tmp_path: Path) -> None:
    """The driver appears while the node starts no thread: they are sampled as soon as it does again."""
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
