"""What a sampler reports to the watchdog: its own faults, not those of a driver."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from exporter.collect.sampler import Sampler
from exporter.collect.settings import SamplingSettings
from exporter.device_state import DeviceState
from exporter.readings import DeviceIdentity


MINUTES_LATER = 600.0


class Device:
    """A device whose ticks do what the test wants."""

    key = "0"
    clock_samples = 1

    def __init__(self, tick: Callable[[], None] = lambda: None) -> None:
        self._tick = tick

    def open(self) -> None:
        """Nothing to open."""

    def sample_clock(self) -> None:
        """Nothing to sample."""

    def tick(self) -> DeviceState:
        self._tick()
        return DeviceState(
            identity=DeviceIdentity(index="0", uuid="GPU-0", name="H100"),
            at_seconds=0.0,
            up=True,
            max_age_seconds=1.0,
        )

    def skip_gap(self) -> None:
        """Nothing is counted."""

    def failed(self, error: Exception) -> Any:
        raise SystemExit  # any exception that ends the thread


@contextmanager
def sampling(
    device: Device, publish: Callable[[Any], None] = lambda _state: None
) -> Iterator[Sampler]:
    sampler = Sampler(
        cast(Any, device),
        lambda: SamplingSettings(interval=0.1),
        publish,
        started_at=time.monotonic(),
    )
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()


def test_a_sampler_that_ticks_has_not_stalled() -> None:
    """It has made progress since the last tick."""
    ticked = threading.Event()
    with sampling(Device(ticked.set)) as sampler:
        assert ticked.wait(30)

        assert not sampler.stalled(time.monotonic())


def test_a_hanging_driver_call_is_not_a_stalled_sampler() -> None:
    """A new process would hang as well, and cost the other GPUs their counters."""
    called, release = threading.Event(), threading.Event()

    def hang() -> None:
        called.set()
        release.wait(30)

    with sampling(Device(hang)) as sampler:
        assert called.wait(30)

        assert sampler.hung(time.monotonic() + MINUTES_LATER)
        assert not sampler.stalled(time.monotonic() + MINUTES_LATER)
        release.set()


def test_a_sampler_that_waits_for_anything_else_has_stalled() -> None:
    """Outside the driver nothing may take minutes: that would be a deadlock of our own."""
    reached, release = threading.Event(), threading.Event()

    def publish(_state: Any) -> None:
        reached.set()
        release.wait(30)

    with sampling(Device(), publish) as sampler:
        assert reached.wait(30)

        assert sampler.stalled(time.monotonic() + MINUTES_LATER)
        release.set()


def test_a_sampler_whose_thread_has_ended_has_stalled() -> None:
    """This GPU is no longer read, and nothing else would report it."""

    def fail() -> None:
        raise ZeroDivisionError

    with sampling(Device(fail)) as sampler:
        assert sampler.join(30)

        assert sampler.stalled(time.monotonic())


def test_a_sampler_that_was_stopped_has_not_stalled() -> None:
    """The end of the process is not a stall."""
    with sampling(Device()) as sampler:
        sampler.stop()
        assert sampler.join(30)

        assert not sampler.stalled(time.monotonic() + MINUTES_LATER)
