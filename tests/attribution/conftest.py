"""Daemons on fake GPUs, as the daemon's own tests start them, and a fake kubelet."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attribution.kubelet import Kubelet
from tests.daemon.conftest import start


__all__ = ["start"]


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path that is short enough for a Unix socket (108 bytes), whatever the test's name."""
    with tempfile.TemporaryDirectory(prefix="fw") as folder:
        yield Path(folder) / "kubelet.sock"


@pytest.fixture
def kubelet(socket_path: Path) -> Iterator[Kubelet]:
    server = Kubelet(socket_path)
    yield server
    server.stop()
