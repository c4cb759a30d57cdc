"""Daemons on fake GPUs, as the daemon's own tests start them, and a fake kubelet."""

from tests.attribution.conftest import kubelet, socket_path
from tests.daemon.conftest import start


__all__ = ["kubelet", "socket_path", "start"]
