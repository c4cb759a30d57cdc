"""Device time of a request, counted in the worker.

The worker reports to the daemon when the device becomes busy and idle, and starts no work that
would exceed the allowance.
"""

import time
from collections.abc import Callable
from typing import Final

from probes.protocol import Busy, FromWorker, Idle


# A chunk starts only if this many times its expected duration still fits the allowance.
MARGIN: Final = 1.2


class AllowanceError(Exception):
    """The allowance is too small to measure the kernel."""


class Allowance:
    """Reports to the daemon when the device is busy, and adds up the busy time."""

    def __init__(self, send: Callable[[FromWorker], None], allowance_seconds: float) -> None:
        self._send = send
        self._allowance = allowance_seconds
        self.spent_seconds = 0.0

    @property
    def left_seconds(self) -> float:
        """Remaining device time of the allowance."""
        return self._allowance - self.spent_seconds

    def fits(self, seconds: float) -> bool:
        """Whether a chunk expected to take `seconds` may start."""
        return seconds * MARGIN <= self.left_seconds

    def require(self, seconds: float) -> None:
        """Raise AllowanceError unless a chunk of `seconds` may start."""
        if not self.fits(seconds):
            raise AllowanceError(
                f"a chunk of {seconds * 1e3:.2f} ms does not fit"
                f" the {self.left_seconds * 1e3:.2f} ms left"
            )

    def busy(self) -> None:
        """Report that the device is busy from now on."""
        self._send(Busy())

    def idle(self, seconds: float) -> None:
        """Report that the device was busy for `seconds` and is idle again."""
        self.spent_seconds += seconds
        self._send(Idle(device_seconds=seconds))


def pause(seconds: float) -> None:
    """Leave the device to other processes between two chunks."""
    if seconds > 0:
        time.sleep(seconds)
