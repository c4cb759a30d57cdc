"""Threads whose start does not wait for ever, and a guard that notices when one stands still."""

import _thread
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final


# A thread begins within milliseconds; on a machine that is short of everything, within a second.
START_SECONDS: Final = 5.0
# No round of a thread's own work takes minutes, however busy the machine is.
STALLED_SECONDS: Final = 300.0


class BoundedThread:
    """A daemon thread. Where it finds no memory to begin with, `start` raises RuntimeError.

    threading.Thread would wait there for a sign of life that never comes, and with it whoever waits
    for a lock that the starter holds: its `start` has no limit. So this begins its thread by the
    interpreter's own call, and waits itself. One that begins after all ends at once. `ident` is its
    identifier, None before it has begun.
    """

    def __init__(
        self, *, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()
    ) -> None:
        self.name = name
        self.ident: int | None = None
        self._target = target
        self._arguments = args
        self._gate = threading.Lock()
        self._given_up = False
        self._begun = threading.Event()
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin; raises RuntimeError where that is not possible."""
        _thread.start_new_thread(self._main, ())
        if self._begun.wait(START_SECONDS):
            return
        with self._gate:
            # It may have begun between the wait's end and the gate.
            self._given_up = not self._begun.is_set()
        if self._given_up:
            raise RuntimeError("can't start new thread: it never began")

    def is_alive(self) -> bool:
        """Whether it has begun and not ended."""
        return self._begun.is_set() and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, `timeout` seconds at most; at once for one that never began."""
        if self._begun.is_set():
            self._ended.wait(timeout)

    def _main(self) -> None:
        with self._gate:
            if self._given_up:
                return
            self.ident = threading.get_ident()
            self._begun.set()
        try:
            if sys.version_info >= (3, 13):
                # So that a dump of the threads names it. Before, its entry would outlive the thread.
                threading.current_thread().name = self.name
            self._target(*self._arguments)
        except SystemExit:
            pass
        except BaseException:  # noqa: BLE001 - said on standard error, as threading.Thread does
            with contextlib.suppress(Exception):
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), None)))
        finally:
            self._ended.set()


class ThreadGuard:
    """Whether a thread still does its work, for the watchdog.

    The thread calls `run` with its work, and does inside `waiting` whatever others may delay: the next round, a
    socket, a driver, a file system. It has stalled when the work ended by an exception, or when it was outside of
    `waiting` for STALLED_SECONDS: a bug of ours, which a new process does not have at first.
    """

    def __init__(self) -> None:
        self._running = False
        self._failed = False
        self._busy_since: float | None = None

    def run(self, work: Callable[[], object]) -> None:
        """Do the work of the thread, to its end."""
        self._running, self._busy_since = True, time.monotonic()
        try:
            work()
        except BaseException:
            self._failed = True
            raise
        finally:
            self._running, self._busy_since = False, None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in which the thread waits for others. Does nothing outside of `run`."""
        self._busy_since = None
        try:
            yield
        finally:
            if self._running:
                self._busy_since = time.monotonic()

    def stalled(self, now: float) -> bool:
        """Whether the work has failed or stands still; `now` is of the monotonic clock."""
        since = self._busy_since
        return self._failed or (since is not None and now - since > STALLED_SECONDS)
