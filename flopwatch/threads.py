"""Threads whose start cannot block forever, and a guard that detects a stuck thread."""

import _thread
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar


_Result = TypeVar("_Result")


# A thread starts within milliseconds; on an overloaded machine, within a second.
START_SECONDS: Final = 5.0
# No round of a thread's own work takes minutes, even on an overloaded machine.
STALLED_SECONDS: Final = 300.0


class BoundedThread:
    """A daemon thread. If it cannot start for lack of memory, `start` raises RuntimeError.

    threading.Thread.start has no timeout: it would wait forever for the new thread to report in,
    and so would everything that waits for a lock held by the caller. This class starts the thread
    with the interpreter's low-level call and waits with a limit. A thread that starts after the
    limit ends at once. `ident` is the thread's identifier, None before it has started.
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
        """Start the thread. Raises RuntimeError if that is not possible."""
        _thread.start_new_thread(self._main, ())
        if self._begun.wait(START_SECONDS):
            return
        with self._gate:
            # It may have started between the end of the wait and the gate.
            self._given_up = not self._begun.is_set()
        if self._given_up:
            raise RuntimeError("can't start new thread: it never began")

    def is_alive(self) -> bool:
        """Whether it has started and not ended."""
        return self._begun.is_set() and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait at most `timeout` seconds for its end; returns at once if it never started."""
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
                # So that thread dumps show its name. Registered earlier, its entry would outlive
                # the thread.
                threading.current_thread().name = self.name
            self._target(*self._arguments)
        except SystemExit:
            pass
        except BaseException:  # noqa: BLE001 - reported on standard error, as threading.Thread does
            with contextlib.suppress(Exception):
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), None)))
        finally:
            self._ended.set()


class ThreadGuard:
    """Tells the watchdog whether a thread still works.

    The thread calls `run` with its work and enters `waiting` around everything that may be delayed
    from outside: the next round, a socket, a driver, a file system. It has stalled if the work
    ended with an exception, or if it spent STALLED_SECONDS outside `waiting`. Both are bugs of
    ours, which a restart clears for a while.
    """

    def __init__(self) -> None:
        self._running = False
        self._failed = False
        self._busy_since: float | None = None

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Run the thread's work to its end; returns its result."""
        self._running, self._busy_since = True, time.monotonic()
        try:
            return work()
        except BaseException:
            self._failed = True
            raise
        finally:
            self._running, self._busy_since = False, None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context for waiting on something external. Does nothing outside `run`."""
        self._busy_since = None
        try:
            yield
        finally:
            if self._running:
                self._busy_since = time.monotonic()

    def stalled(self, now: float) -> bool:
        """Whether the work has failed or is stuck; `now` is monotonic time."""
        since = self._busy_since
        return self._failed or (since is not None and now - since > STALLED_SECONDS)
