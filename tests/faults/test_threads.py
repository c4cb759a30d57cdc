"""Threads that cannot begin."""

import threading

import pytest

from probes import threads
from probes.threads import BoundedThread


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
