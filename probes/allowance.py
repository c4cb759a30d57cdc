"""The worker's own account of a request: device time taken, allowance left, Busy and Idle sent."""

import time
from collections.abc import Callable
from typing import Final

from probes.protocol import Busy, FromWorker, Idle


# The last chunk's span times this must still fit before another like it may start.
MARGIN: Final = 1.2


class AllowanceError(Exception):
    """The allowance ends before the kernel can be measured."""


class Allowance:
    """Tells the daemon when the device is busy, and adds up for how long."""

    def __init__(self, send: Callable[[FromWorker], None], allowance_seconds: float) -> None:
        self._send = send
        self._allowance = allowance_seconds
        self.spent_seconds = 0.0

    @property
    def left_seconds(self) -> float:
        """What remains of the allowance."""
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
        """Say that work is on the device from now on."""
        self._send(Busy())

    def idle(self, seconds: float) -> None:
        """Say that the device has done `seconds` of work and is free again."""
        self.spent_seconds += seconds
        self._send(Idle(device_seconds=seconds))


def pause(seconds: float) -> None:
    """Leave the device to others between two chunks."""
    if seconds > 0:
        time.sleep(seconds)
