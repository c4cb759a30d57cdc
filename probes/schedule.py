# ruff: noqa: D102 - the methods of SystemClock are documented in Clock
"""The clock, the time of the next cycle, and the wait after failures.

Cycles are evenly spaced. The host's name decides the moment within the interval.
"""

import math
import threading
import time
import zlib
from typing import Final, Protocol


# Latest start of the first cycle, so that a new node shows figures soon.
FIRST_CYCLE_SECONDS: Final = 10.0
# Earliest start of the first cycle, so that the devices have been read once.
FIRST_TICK_SECONDS: Final = 1.0
# A share of the interval: a cycle that took some time must not miss its next moment.
CLOSEST: Final = 0.5


class Clock(Protocol):
    """Source of time, and waiting."""

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


def host_fraction(hostname: str) -> float:
    """A number in 0..1 that is fixed per host and evenly distributed over a fleet."""
    return zlib.crc32(hostname.encode()) / 2**32


def first_delay(interval: float, fraction: float) -> float:
    """Seconds from the start to the first cycle."""
    return max(min(interval, FIRST_TICK_SECONDS), fraction * min(interval, FIRST_CYCLE_SECONDS))


def next_delay(unix_time: float, interval: float, fraction: float) -> float:
    """Seconds until the host's next moment that is not too close.

    It follows the wall clock, so that hosts restarted together do not stay in step.
    """
    phase = unix_time / interval - fraction
    delay = (math.floor(phase) + 1 - phase) * interval
    # The minimum time between two cycles, after the first one or after a small clock step.
    return delay if delay >= CLOSEST * interval else delay + interval


class Backoff:
    """Waits that double with each consecutive failure."""

    FIRST_SECONDS: Final = 30.0
    LAST_SECONDS: Final = 3600.0

    def __init__(self) -> None:
        self._failures = 0
        self._until = -math.inf

    def failed(self, now: float) -> float:
        """Record a failure. Returns the seconds to wait."""
        wait = min(self.LAST_SECONDS, self.FIRST_SECONDS * 2.0 ** min(self._failures, 30))
        self._failures += 1
        self._until = now + wait
        return wait

    def succeeded(self) -> None:
        """Forget the failures."""
        self._failures = 0
        self._until = -math.inf

    def active(self, now: float) -> bool:
        """Whether the wait is still on."""
        return now < self._until
