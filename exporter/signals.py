"""Signals, read only where the main thread waits.

The handlers do nothing: a thousand signals a second must not nest one handler in another. The
interpreter writes each signal's number to a socket, and the main thread waits for that.
"""

import contextlib
import select
import signal
import socket
from collections.abc import Sequence
from types import FrameType


_READ_BYTES = 4096


class SignalWaiter:
    """Waits for some signals. Make it in the main thread."""

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        theirs.setblocking(False)
        # A full socket drops numbers while earlier ones are still unread.
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._theirs = theirs  # kept open
        for number in signals:
            signal.signal(number, _nothing)

    def wait(self, seconds: float) -> frozenset[int]:
        """The signals received, each once; empty after `seconds` without any."""
        readable, _, _ = select.select([self._ours], [], [], seconds)
        if not readable:
            return frozenset()
        came: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                came.update(self._ours.recv(_READ_BYTES))
        return frozenset(came)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass
