"""Daemons of the fault matrix; the fixtures of tests/daemon."""

from tests.daemon.conftest import start, start_on_cpu


__all__ = ["start", "start_on_cpu"]
