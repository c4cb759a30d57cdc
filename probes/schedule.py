# ruff: noqa: D102 - the methods of SystemClock are documented in Clock
"""The clock, when the next cycle is due, and how long to wait after failures.

Cycles are evenly spaced. The host's name decides the moment within the interval.
"""

import math
import threading
import time
import zlib
from typing import Final, Protocol


# The first cycle after a start comes this soon, at most, so that a new node shows figures at once.
FIRST_CYCLE_SECONDS: Final = 10.0
# And not before this, for the devices to have been read once.
FIRST_TICK_SECONDS: Final = 1.0
# Of the interval; a cycle that took some time itself still meets its next moment.
CLOSEST: Final = 0.5


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


def host_fraction(hostname: str) -> float:
    """A number in 0..1 that is a host's own and spreads evenly over a fleet."""
    return zlib.crc32(hostname.encode()) / 2**32


def first_delay(interval: float, fraction: float) -> float:
    """Seconds from the start to the first cycle."""
    return max(min(interval, FIRST_TICK_SECONDS), fraction * min(interval, FIRST_CYCLE_SECONDS))


def next_delay(unix_time: float, interval: float, fraction: float) -> float:
    """Seconds until the host's next moment that is not too near.

    It hangs on the wall clock, so that hosts restarted together do not stay together.
    """
    phase = unix_time / interval - fraction
    delay = (math.floor(phase) + 1 - phase) * interval
    # Never two cycles closer than this: after the first one, or when a clock was set a little.
    return delay if delay >= CLOSEST * interval else delay + interval


class Backoff:
    """Doubling waits after failures in a row."""

    FIRST_SECONDS: Final = 30.0
    LAST_SECONDS: Final = 3600.0

    def __init__(self) -> None:
        self._failures = 0
        self._until = -math.inf

    def failed(self, now: float) -> float:
        """Note a failure; returns the seconds to wait."""
        wait = min(self.LAST_SECONDS, self.FIRST_SECONDS * 2.0 ** min(self._failures, 30))
        self._failures += 1
        self._until = now + wait
        return wait

    def succeeded(self) -> None:
        """Forget the failures."""
        self._failures = 0
        self._until = -math.inf

    def active(self, now: float) -> bool:
        """Whether to wait still."""
        return now < self._until
