"""How the supervisor and the daemon talk: systemd's notifications, and signals."""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final

import structlog


log = structlog.get_logger(__name__)

_MICROSECONDS: Final = 1_000_000
_READ_BYTES: Final = 4096


class Notifier:
    """Reports the daemon's state to systemd: sd_notify(3). Safe to use from any thread.

    Outside of systemd there is no socket, and every call does nothing. A message that cannot be delivered is logged once and otherwise ignored: the service manager
    draws its own conclusions from silence.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._failed = False

    def ready(self) -> None:
        """The daemon is serving; with `Type=notify` the start is complete. Also ends a reload."""
        self._send("READY=1")

    def reloading(self, monotonic_seconds: float | None = None) -> None:
        """A reload has begun; `ready` ends it. Needed by `Type=notify-reload`."""
        now = time.monotonic() if monotonic_seconds is None else monotonic_seconds
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(now * _MICROSECONDS)}")

    def stopping(self) -> None:
        """The daemon is stopping."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The daemon is alive; send it only when every loop has made progress."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A manager that does not read must not stop the daemon.
                sender.setblocking(False)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning("systemd_notification_failed", error=str(error))


def _address(text: str) -> str | None:
    """The socket's address: a path, or with `@` a name in the abstract namespace."""
    if text.startswith("@"):
        return "\0" + text[1:]
    # Others, such as vsock for virtual machines, do not occur for a service.
    return text if text.startswith("/") else None


class SignalWaiter:
    """Waits for some signals. Create it in the main thread, which alone may wait.

    The handlers do nothing: a thousand signals a second must not nest one handler in another. The
    interpreter writes each signal's number to a socket, and `wait` reads that.
    """

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
