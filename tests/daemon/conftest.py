"""Daemons on fake GPUs, stopped with their tests."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess
from tests.fake_nvml import FakeNvml, GpuProfile


StartDaemon = Callable[..., DaemonProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[FakeNvml, DaemonProcess]]]:
    """Start a daemon on fake GPUs: `fake, daemon = start([H100], config=…)`."""
    with ExitStack() as stack:

        def start_on(
            gpus: Sequence[GpuProfile],
            *,
            config: str = "",
            prepare: Callable[[FakeNvml], None] | None = None,
            arguments: Sequence[str] = (),
            wait: bool = True,
        ) -> tuple[FakeNvml, DaemonProcess]:
            fake = stack.enter_context(FakeNvml(gpus, tmp_path))
            if prepare is not None:
                prepare(fake)
            daemon = stack.enter_context(
                DaemonProcess(
                    tmp_path,
                    config=config,
                    environment=fake.env,
                    arguments=arguments,
                    wait=wait,
                )
            )
            return fake, daemon

        yield start_on


@pytest.fixture
def start_on_cpu(tmp_path: Path) -> Iterator[StartDaemon]:
    """Start a daemon on a host without a driver library."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(DaemonProcess(tmp_path, **options))
