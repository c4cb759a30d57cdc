"""A machine for each module."""

import os
from collections.abc import Iterator

import pytest

from tests.deploy.engine import Engine
from tests.deploy.host.machine import Machine


@pytest.fixture(scope="module")
def machine(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Machine]:
    """Booted, with nothing of flopwatch on it."""
    engine = Engine(tmp_path_factory.mktemp("engine"))
    name = f"flopwatch-host-{request.module.__name__.rpartition('.')[2]}-{os.getpid()}"
    machine = Machine(engine, name, tmp_path_factory.mktemp("machine"))
    try:
        machine.start()
        yield machine
    finally:
        machine.stop()
