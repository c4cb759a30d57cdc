# ruff: noqa: D102 - what a method does is documented where it is declared
"""Time as the scheduler sees it, so that tests can simulate hours."""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from and how it is waited for."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never backwards."""

    def time(self) -> float:
        """Unix time, seconds."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until `event` is set (True) or `seconds` have passed (False)."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(max(0.0, seconds))
