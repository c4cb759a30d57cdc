"""The sources of activities: `gpm_cycles` and `gpm`, MIG parts, and `dcgm`.

Each decides when it is tried, read and retried, and has its own health. If none opens, accounting
falls back on NVML's utilization, which shows when kernels ran but not what they did.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence

import structlog

from exporter.accounting.mig import InstanceShare, instance_share, whole_gpu_window
from exporter.collect.dcgm import DcgmReader
from exporter.collect.dcgm_windows import Shares
from exporter.collect.device import ActivitySource, Device
from exporter.collect.gpm_windows import CYCLES, PERCENT, GpmWindows, open_together
from exporter.collect.nvml.gpm import GpmSession
from exporter.collect.nvml.library import GONE, NotSupported, NvmlError
from exporter.collect.nvml.reading import read_clock
from exporter.collect.settings import SamplingSettings
from exporter.device_state import SourceHealth
from exporter.readings import DCGM_SOURCE, ActivityWindow, FastReading


log = structlog.get_logger(__name__)

# GPM may have no value for a while (a sleeping GPU), or be refused: try again this often.
RETRY_SECONDS = 60.0
# Where it has delivered before, sooner: another process may have turned its stream off and on.
_FIRST_RETRY_SECONDS = 1.0
# The samples survive this many failed readings in a row: no cycles in between are lost.
_FAILURES_MAX = 3
# A device without GPM may get it from a driver update, which is not announced.
UNSUPPORTED_RETRY_SECONDS = 600.0
IMPLAUSIBLE = "implausible"
# Where the device counts cycles, samples of the clock only show what limited it.
_CLOCK_SAMPLES_BESIDE_CYCLES = 2


class Gpm(ActivitySource):
    """GPM of one GPU or MIG instance."""

    counts_traffic = True

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._windows: GpmWindows | None = None
        self._name = PERCENT
        self._retry_at = -math.inf
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._anew_at = -math.inf
        self._failures = 0
        self._has_delivered = False
        self._unsupported = False
        self._delivered = False
        self._failure: str | None = None
        self._errors: Counter[str] = Counter()
        self._succeeded: float | None = None

    @classmethod
    def prepare(cls, sources: Sequence["Gpm"]) -> None:
        """Try GPM on all devices where a trial is due. One trial for all takes a third of a second."""
        trials = {windows: source for source in sources if (windows := source.to_try())}
        if not trials:
            return
        device = next(iter(trials.values())).device
        calls = (device.gpu or device).calls
        assert calls is not None
        try:
            failures = dict(
                open_together(
                    tuple(trials), lambda: read_clock(calls, time.monotonic).sm_clock_hertz
                )
            )
        except NvmlError as error:
            for source in trials.values():
                source.failed(error)
            raise
        for windows, source in trials.items():
            source.tried(windows, failures.get(windows))

    def open(self) -> bool:
        """Whether a trial has succeeded; `prepare` makes it."""
        if self._is_off:
            self.close()
        return self._windows is not None

    def read(self, fast: FastReading, settings: SamplingSettings) -> ActivityWindow | None:
        """Close the open window; None where that fails, or was not watched."""
        assert self._windows is not None
        opened = self._windows.open_since_seconds
        if opened is not None and time.monotonic() - opened > settings.max_window:
            self._windows.restart()
        try:
            window = self._windows.read()
        except NvmlError as error:
            self.failed(error)
            if isinstance(error, GONE):
                raise
            self._failures += 1
            # A MIG instance may have been recreated in its place with the same name.
            is_instance = self.device.gpu is not None
            if isinstance(error, NotSupported) and (is_instance or self._failures >= _FAILURES_MAX):
                self._begin_anew()
            return None
        self._failures = 0
        if window is not None:
            self._has_delivered = True
            self._succeeded = time.time()
            self._delivered = True
            if self._failure is not None:
                self._failure = None
                log.info("gpm_answers_again", **self._labels)
        return window

    @property
    def open_since_seconds(self) -> float | None:
        """Start of the window that the next reading closes."""
        return None if self._windows is None else self._windows.open_since_seconds

    @property
    def clock_samples(self) -> int:
        """Fewer where cycles are counted."""
        return _CLOCK_SAMPLES_BESIDE_CYCLES if self._name == CYCLES else super().clock_samples

    def restart(self) -> None:
        """The next reading only opens a window."""
        if self._windows is not None:
            self._windows.restart()

    def close(self, *, driver_is_gone: bool = False) -> None:
        """Free the samples. The next tick may try again."""
        if self._windows is not None and not driver_is_gone:
            self._windows.close()
        self._windows = None
        self._delivered = self._has_delivered = False
        self._unsupported = False
        self._failures = 0
        self._retry_at = -math.inf
        self._retry_seconds = _FIRST_RETRY_SECONDS

    def implausible(self) -> None:
        """Count a window, or a value in it, that cannot be true."""
        self._errors[IMPLAUSIBLE] += 1
        self._delivered = False  # unless this reading yields a window anyway

    def health(self, *, up: bool) -> dict[str, SourceHealth]:
        """Health under the name of the source last in use; empty while GPM is turned off."""
        if self._is_off:
            return {}
        up = up and self._windows is not None and self._delivered
        return {self._name: SourceHealth(up, self._succeeded, dict(self._errors))}

    @property
    def _is_off(self) -> bool:
        return self.device.context.settings().modes["gpm"] == "off"

    @property
    def _labels(self) -> dict[str, str]:
        identity = self.device.identity
        labels = {"gpu": identity.index}
        return labels if identity.mig is None else {**labels, "mig": identity.mig}

    def to_try(self) -> GpmWindows | None:
        """Windows to try, if a trial is due."""
        device = self.device
        if self._windows is not None or self._is_off or device.calls is None:
            return None
        if time.monotonic() < self._retry_at:
            return None
        identity = device.identity
        return GpmWindows(
            device.gpm_sessions or [GpmSession(device.calls.handle)],
            is_instance=device.gpu is not None,
            sm_count=identity.sm_count,
            max_hertz=identity.sm_clock_max_hertz,
            on_implausible=self._value_implausible,
            has_c2c=device.gpu is None and identity.c2c_link_count is not None,
        )

    def tried(self, windows: GpmWindows, error: NvmlError | None) -> None:
        """Handle the outcome of a trial."""
        if error is None:
            self._windows, self._name = windows, windows.name
            self._delivered = True
            self._failure = None
            self._unsupported = False
        elif self._has_delivered:
            # Even NOT_SUPPORTED is not final for a device that has GPM.
            self.failed(error)
            self._wait()
        elif isinstance(error, NotSupported):
            self._retry_at = time.monotonic() + UNSUPPORTED_RETRY_SECONDS
            if not self._unsupported:
                log.info("gpm_not_supported", **self._labels, function=error.function)
            self._unsupported = True
        else:
            self.failed(error)
            self._retry_at = time.monotonic() + RETRY_SECONDS

    def failed(self, error: NvmlError) -> None:
        """Count a failure; one log line for each change."""
        self._errors[error.reason] += 1
        self._delivered = False
        if self._failure != error.reason:
            log.warning("gpm_failed", **self._labels, function=error.function, reason=error.reason)
        self._failure = error.reason

    def _begin_anew(self) -> None:
        """Drop the samples of a device that answered before and now refuses.

        A MIG instance may have been replaced by another one with the same name. GPM is tried again
        at once, or after up to a minute where this happens repeatedly: a trial delays all devices.
        """
        now = time.monotonic()
        is_first = now - self._anew_at >= RETRY_SECONDS
        wait = _FIRST_RETRY_SECONDS if is_first else self._retry_seconds
        self.close()
        self._has_delivered = True
        self._anew_at = self._retry_at = now
        self._retry_seconds = wait
        if not is_first:
            self._wait()

    def _wait(self) -> None:
        self._retry_at = time.monotonic() + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, RETRY_SECONDS)

    def _value_implausible(self, what: str) -> None:
        if not self._errors[IMPLAUSIBLE]:
            log.warning("gpm_value_implausible", **self._labels, value_of=what)
        self.implausible()


class MigParts(ActivitySource):
    """A GPU in MIG mode, assembled from the GPM windows of its instances."""

    def open(self) -> bool:
        """Whether every instance has GPM: DCGM's windows do not end in the same tick for all."""
        instances = self.device.instances
        return bool(instances) and all(isinstance(each.in_use, Gpm) for each in instances)

    def read(self, fast: FastReading, settings: SamplingSettings) -> ActivityWindow | None:
        """The GPU's window of this tick; None unless every instance has one, and a known size."""
        gpu, sm_count = self.device.identity, self.device.peaks.sm_count
        parts: list[tuple[ActivityWindow, InstanceShare]] = []
        for instance in self.device.instances:
            share = instance_share(gpu, sm_count, instance.identity)
            if instance.window is None or share is None:
                return None
            parts.append((instance.window, share))
        return whole_gpu_window(parts)

    @property
    def open_since_seconds(self) -> float | None:
        """Start of the window that the instances will close together."""
        opened = [
            each.in_use.open_since_seconds if each.in_use is not None else None
            for each in self.device.instances
        ]
        return opened[0] if opened and None not in opened else None


class DcgmActivity(ActivitySource):
    """A device's part of the scrapes of dcgm-exporter, while no better source has opened."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._reader: DcgmReader | None = None
        self._open_since: float | None = None

    def open(self) -> bool:
        """Request the device; not a GPU in MIG mode unless DCGM is read for its instances, too.

        Also where GPM exists but is refused to us: DCGM's own daemon may have the permission.
        """
        device, source = self.device, self.device.context.dcgm
        shares = self._shares()
        partitioned = device.gpu is None and device.mig_enabled
        if source.mode() == "off" or (partitioned and not shares):
            self.stand_by()
            return False
        if self._reader is None:
            gpu = device.gpu or device
            self._reader = source.reader(gpu.identity.uuid, device.identity.mig)
        self._reader.reshape(shares)
        return True

    def read(self, fast: FastReading, settings: SamplingSettings) -> ActivityWindow | None:
        """The oldest closed window that was not read yet."""
        assert self._reader is not None
        window, self._open_since = self._reader.take(fast)
        return window

    @property
    def open_since_seconds(self) -> float | None:
        """Start of the window that is open after the last reading."""
        return self._open_since

    @property
    def max_window_seconds(self) -> float:
        """DCGM's windows are as long as its collection interval."""
        return 0.0 if self._reader is None else self._reader.max_window_seconds

    def stand_by(self) -> None:
        """Stop requesting it."""
        if self._reader is not None:
            self.device.context.dcgm.forget(self._reader)
            self._reader = self._open_since = None

    def restart(self) -> None:
        """Drop the open window."""
        if self._reader is not None:
            self._reader.restart()

    def close(self, *, driver_is_gone: bool = False) -> None:
        """A GPU is still requested while it is away; an instance that is gone is not."""
        if self.device.gpu is not None:
            self.stand_by()

    def implausible(self) -> None:
        """Count activities that cannot be true."""
        if self._reader is not None:
            self._reader.failed("implausible")

    def health(self, *, up: bool) -> dict[str, SourceHealth]:
        """Shown while it is in use."""
        return {} if self._reader is None else {DCGM_SOURCE: self._reader.health(up=up)}

    def _shares(self) -> Shares:
        """The instances' shares of the GPU; empty unless DCGM is the source of all of them."""
        shares: dict[str, InstanceShare] = {}
        gpu, sm_count = self.device.identity, self.device.peaks.sm_count
        for instance in self.device.instances:
            share = instance_share(gpu, sm_count, instance.identity)
            if share is None or not isinstance(instance.in_use, DcgmActivity):
                return {}
            shares[instance.identity.mig or ""] = share
        return shares


# The best first; in each tick a device takes the first one that opens.
SOURCES: tuple[type[ActivitySource], ...] = (
    Gpm,  # gpm_cycles, or gpm where the device counts no cycles
    MigParts,  # a GPU in MIG mode, from the GPM of its instances
    DcgmActivity,  # from a dcgm-exporter on the node
)
