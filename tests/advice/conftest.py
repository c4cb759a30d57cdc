"""Daemons on fake GPUs, as the daemon's own tests start them."""

from tests.daemon.conftest import start


__all__ = ["start"]
