"""One thread per device that ticks on the monotonic clock: a slow device does not delay another."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

import structlog

from exporter.accounting.device import TICK_DURATION_BOUNDS, Histogram
from exporter.collect.nvml.library import (
    UNKNOWN_CODE,
    DriverAbsent,
    DriverGone,
    NvmlError,
    Transient,
    running_call,
)
from exporter.collect.settings import SamplingSettings
from exporter.device_state import DeviceState
from flopwatch.threads import BoundedThread


log = structlog.get_logger(__name__)

BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_LAST_SECONDS = 60.0
# All devices are back within ten seconds of their driver.
DRIVER_BACKOFF_SECONDS = 5.0
_LOOK_SECONDS = 0.5  # how soon a waiting device notices that its driver is back
# A healthy thread makes progress at least this often, apart from the longest backoff.
_STALLED_SECONDS = 30.0
# The second tick follows the first after this time and not after a whole interval, so that what
# takes two ticks is available early. A little more than GPM's shortest window.
_FIRST_WINDOW_SECONDS = 0.12

_Result = TypeVar("_Result")


class SampledDevice(Protocol):
    """What a sampler drives. Only its own sampler's thread calls it."""

    key: str

    @property
    def clock_samples(self) -> int:
        """How many samples of the clock a tick needs, its own included."""

    def open(self) -> None:
        """Open the device. Raises NvmlError."""

    def sample_clock(self) -> None:
        """Sample the clock between ticks. Raises NvmlError when the device is lost."""

    def tick(self) -> DeviceState:
        """Read, account, and return the state. Raises NvmlError when the device is lost."""

    def skip_gap(self) -> None:
        """Count nothing of the time since the last tick: it was not watched."""

    def revived(self) -> bool:
        """Whether the driver was initialised again since the device was last open. Cheap."""

    def failed(self, error: NvmlError) -> DeviceState:
        """Close the device and return what is known without it."""


class Sampler:
    """Drives one device until stopped."""

    def __init__(
        self,
        device: SampledDevice,
        settings: Callable[[], SamplingSettings],
        publish: Callable[[DeviceState], None],
        *,
        started_at: float,
    ) -> None:
        self.device = device
        self._settings = settings
        self._publish = publish
        # All samplers tick at the same instants, so that a server is disturbed once and not eight
        # times an interval.
        self._origin = started_at
        self._stop = threading.Event()
        # How long the device's ticks took, and how many did not start on time.
        self._durations = Histogram(TICK_DURATION_BOUNDS)
        self._missed = 0
        self._busy_since: float | None = None
        self._reported: float | None = None
        self._moved_at = time.monotonic()
        self._thread = BoundedThread(target=self._run, name=f"gpu-{device.key}")

    def start(self) -> None:
        """Begin to sample. Raises RuntimeError where no thread can start."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; one in a hung driver call ends with the process."""
        self._stop.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread; whether it has ended."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def hung(self, now: float) -> bool:
        """Whether a driver call has been running for longer than the deadline."""
        since = self._busy_since
        return since is not None and now - since > self._settings().deadline

    def stalled(self, now: float) -> bool:
        """Whether the thread has ended or is stuck, and not in a driver call."""
        if self._stop.is_set():
            return False
        longest = max(self._settings().interval, BACKOFF_LAST_SECONDS) + _STALLED_SECONDS
        still = self._busy_since is None and now - self._moved_at > longest
        return still or not self._thread.is_alive()

    def _run(self) -> None:
        backoff = BACKOFF_FIRST_SECONDS
        while not self._stop.is_set():
            self._moved_at = time.monotonic()
            well_since: float | None = None
            try:
                self._watched(self.device.open)
                well_since = time.monotonic()
                self._tick_until_lost()
                return
            except NvmlError as error:
                failure = error
            except Exception:
                # A bug in flopwatch must not end the sampling of a device, nor go unnoticed.
                log.exception("sampler_failed", gpu=self.device.key)
                failure = Transient("internal_error", UNKNOWN_CODE)
            # The backoff starts over for a device that stayed up for longer than the last wait; it
            # grows for one that flaps faster.
            if well_since is not None and time.monotonic() - well_since > backoff:
                backoff = BACKOFF_FIRST_SECONDS
            if isinstance(failure, (DriverGone, DriverAbsent)):
                # The device itself is fine: it is back as soon as its driver is.
                backoff = min(backoff, DRIVER_BACKOFF_SECONDS)
            self._let_go(failure, backoff)
            revived = self._wait(backoff)
            backoff = BACKOFF_FIRST_SECONDS if revived else min(2 * backoff, BACKOFF_LAST_SECONDS)

    def _wait(self, seconds: float) -> bool:
        """Wait for this long, or until the driver is back; whether it is."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stop.wait(min(left, _LOOK_SECONDS)):
                return False
            if self.device.revived():
                return True
        return False

    def report_hang(self, now: float) -> None:
        """Log a driver call that passes its deadline, once, by the name of the call."""
        since = self._busy_since
        if since is None or since == self._reported or not self.hung(now):
            return
        self._reported = since
        log.warning(
            "driver_call_hung",
            gpu=self.device.key,
            function=running_call(self._thread.ident) or "unknown",
            seconds=round(now - since, 1),
        )

    def _let_go(self, failure: NvmlError, backoff: float) -> None:
        self._busy_since = time.monotonic()
        state = self.device.failed(failure)
        self._show(state)
        self._busy_since = None
        log.warning(
            "device_unavailable",
            gpu=state.identity.index,
            uuid=state.identity.uuid,
            reason=failure.reason,
            function=failure.function,
            retry_seconds=backoff,
        )

    def _tick_until_lost(self) -> None:
        self._tick()
        if self._stop.wait(min(_FIRST_WINDOW_SECONDS, self._settings().interval)):
            return
        interval = self._settings().interval
        # A tick that is due before a window can close would have nothing to show. Done before the
        # tick: ticks that it delays are missed.
        done = int((time.monotonic() + _FIRST_WINDOW_SECONDS - self._origin) / interval)
        self._tick()
        while not self._stop.is_set():
            if interval != self._settings().interval:  # reloaded: the numbers of ticks restart
                interval = self._settings().interval
                done = self._position()
            number = max(self._position(), done) + 1
            if not self._sample_clock_until(self._origin + number * interval):
                return
            self._missed += number - done - 1
            done = number
            self._tick()

    def _position(self) -> int:
        """Number of the last tick that was due."""
        return int((time.monotonic() - self._origin) / self._settings().interval)

    def _sample_clock_until(self, next_tick: float) -> bool:
        """Spread clock samples over the time left; False when stopped meanwhile."""
        step = self._settings().interval / self.device.clock_samples
        for left in range(self.device.clock_samples - 1, -1, -1):
            pause = next_tick - left * step - time.monotonic()
            if pause <= 0 and left:
                continue
            if self._stop.wait(max(0.0, pause)):
                return False
            if left:
                self._watched(self.device.sample_clock)
        return True

    def _tick(self) -> None:
        started = self._moved_at = time.monotonic()
        state = self._watched(self.device.tick)
        if state is not None:
            self._show(state)
        self._durations.observe(time.monotonic() - started)

    def _show(self, state: DeviceState) -> None:
        durations = self._durations.value()
        self._publish(replace(state, tick_duration=durations, ticks_missed=self._missed))

    def _watched(self, work: Callable[[], _Result]) -> _Result | None:
        """Do driver work under the deadline; its result, or None when it was late.

        A late answer may be as old as the hang: it is not exported, and none of the time is
        counted.
        """
        if self._busy_since is None:
            self._busy_since = time.monotonic()
        started = self._busy_since
        result = work()
        self._busy_since = None
        seconds = time.monotonic() - started
        if seconds <= self._settings().deadline:
            return result
        self.device.skip_gap()
        log.warning("driver_call_returned", gpu=self.device.key, seconds=round(seconds, 1))
        return None
