"""Threads whose start does not wait for ever."""

import threading
from typing import Any, Final


# A thread begins within milliseconds; on a machine that is short of everything, within a second.
START_SECONDS: Final = 5.0


class BoundedThread(threading.Thread):
    """A daemon thread. Where it finds no memory to begin with, `start` raises RuntimeError.

    threading.Thread would wait there for a sign of life that never comes, and with it whoever waits
    for a lock that the starter holds. One that begins after all ends at once.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(daemon=True, **options)
        # What `start` waits for without a limit (CPython 3.11 to 3.14).
        self._started = _PatientEvent()
        self._gate = threading.Lock()
        self._begun = self._given_up = False

    def start(self) -> None:
        """Begin; raises RuntimeError where that is not possible."""
        super().start()
        with self._gate:
            self._given_up = not self._begun and not self._started.is_set()
        if self._given_up:
            raise RuntimeError("can't start new thread: it never began")

    def run(self) -> None:
        """Do what the thread is for, unless nobody counts on it any more."""
        with self._gate:
            self._begun = True
            if self._given_up:
                return
        super().run()


class _PatientEvent(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(START_SECONDS if timeout is None else timeout)
