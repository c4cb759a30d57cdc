"""systemd's notification protocol, by the socket alone: sd_notify(3).

Outside systemd there is no socket, and every call does nothing.
"""

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

import structlog


log = structlog.get_logger(__name__)

_MICROSECONDS: Final = 1_000_000
_STATUS_CHARACTERS_MAX: Final = 200  # one line of `systemctl status`


class Notifier:
    """Reports the daemon's state to systemd; safe to use from any thread.

    A message that cannot be delivered is logged once and otherwise ignored: the service manager
    draws its own conclusions from silence.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._failed = False

    @property
    def is_supervised(self) -> bool:
        """Whether there is a socket."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """The daemon is serving; with `Type=notify` the start is complete. Also ends a reload."""
        self._send("READY=1", status)

    def reloading(self, monotonic_seconds: float | None = None) -> None:
        """A reload has begun; `ready` ends it. Needed by `Type=notify-reload`."""
        now = time.monotonic() if monotonic_seconds is None else monotonic_seconds
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(now * _MICROSECONDS)}")

    def stopping(self, status: str = "") -> None:
        """The daemon is stopping."""
        self._send("STOPPING=1", status)

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send("", text)

    def watchdog(self) -> None:
        """The daemon is alive; send it only when every loop has made progress."""
        self._send("WATCHDOG=1")

    def _send(self, message: str, status: str = "") -> None:
        if self._address is None:
            return
        if status:
            line = " ".join(status.split())[:_STATUS_CHARACTERS_MAX]
            message = f"{message}\nSTATUS={line}".lstrip("\n")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A manager that does not read must not stop the daemon.
                sender.setblocking(False)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning("systemd_notification_failed", error=str(error))


def watchdog_interval_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often to send `watchdog`: half of what systemd allows. None without a watchdog."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    watched = environ.get("WATCHDOG_PID", "")
    if watched and watched != str(os.getpid()):
        return None
    if not (microseconds.isascii() and microseconds.isdecimal()) or int(microseconds) == 0:
        return None
    return int(microseconds) / _MICROSECONDS / 2


def _address(text: str) -> str | None:
    """The socket's address: a path, or with `@` a name in the abstract namespace."""
    if text.startswith("@"):
        return "\0" + text[1:]
    # Others, such as vsock for virtual machines, do not occur for a service.
    return text if text.startswith("/") else None
