import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exporter.app import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and how the environment names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        if request.param == "path":
            name = str(tmp_path / "notify")
            listener.bind(name)
        else:
            name = f"@flopwatch-test-{os.getpid()}"
            listener.bind("\0" + name[1:])
        listener.settimeout(30)
        yield listener, name


def test_each_state_is_named(manager: tuple[socket.socket, str]) -> None:
    """The messages are those of sd_notify(3), one datagram each."""
    listener, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})

    notifier.ready()
    notifier.reloading(12.5)
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()

    assert [listener.recv(1000) for _ in range(5)] == [
        b"READY=1",
        b"RELOADING=1\nMONOTONIC_USEC=12500000",
        b"READY=1",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_a_reload_is_timed_by_the_monotonic_clock(manager: tuple[socket.socket, str]) -> None:
    """Without a time given, it is now, in microseconds, as systemd compares it."""
    listener, name = manager

    Notifier({"NOTIFY_SOCKET": name}).reloading()

    lines = dict(line.split("=") for line in listener.recv(1000).decode().splitlines())
    assert set(lines) == {"RELOADING", "MONOTONIC_USEC"}
    assert int(lines["MONOTONIC_USEC"]) > 0


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    """Outside of systemd every call is harmless and silent."""
    with capture_logs() as logs:
        notifier = Notifier(environ)
        notifier.ready()
        notifier.watchdog()

    assert logs == []


def test_a_vanished_manager_is_logged_once(tmp_path: Path) -> None:
    """An unread socket causes one log line and no exception."""
    with capture_logs() as logs:
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
        notifier.watchdog()
        notifier.watchdog()

    assert [entry["event"] for entry in logs] == ["systemd_notification_failed"]


def test_a_manager_that_does_not_read_does_not_block(
    manager: tuple[socket.socket, str],
) -> None:
    """When the socket's queue is full, messages are dropped."""
    _, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})

    with capture_logs() as logs:
        for _ in range(10_000):
            notifier.watchdog()

    assert [entry["event"] for entry in logs] == ["systemd_notification_failed"]
