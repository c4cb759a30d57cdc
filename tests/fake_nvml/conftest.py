from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_nvml import H100, FakeNvml
from tests.fake_nvml.client import Client


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeNvml]:
    """A machine with two H100s."""
    with FakeNvml([H100, H100], tmp_path) as machine:
        yield machine


@pytest.fixture
def client(fake: FakeNvml) -> Iterator[Client]:
    """A process that has initialised NVML on that machine."""
    with Client(fake) as process:
        process.ask("pynvml.nvmlInit()")
        yield process
