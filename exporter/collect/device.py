"""One GPU, sampled: NVML and GPM in, accounts kept, snapshots out."""

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import structlog

from exporter.accounting.device import DeviceAccounts
from exporter.accounting.peaks import Peaks, find_peaks
from exporter.accounting.plausibility import Inconsistency, Judgement, Plausibility
from exporter.accounting.time_split import REACHABLE_BANDWIDTH
from exporter.collect.context import GpuContext
from exporter.collect.dcgm.fallback import DcgmFallback
from exporter.collect.gpm import CYCLES, GpmSource
from exporter.collect.mig import SampledInstances
from exporter.collect.nvml.errors import (
    DeviceLost,
    DriverGone,
    DriverMismatch,
    NotSupported,
    NvmlError,
)
from exporter.collect.nvml.library import DeviceCalls, call, handle_address
from exporter.collect.nvml.mig import mig_enabled
from exporter.collect.nvml.reading import (
    NO_UUID,
    SLOW_GROUPS,
    read_clock,
    read_fast,
    read_identity,
    read_pcie,
)
from exporter.collect.sampler import TickStatistics
from exporter.collect.settings import SamplingSettings
from exporter.precision import headline_precision, peak_override
from exporter.readings import ActivityWindow, ClockSample, DeviceIdentity, SlowReading
from exporter.state import UNKNOWN, DeviceState, SourceHealth


log = structlog.get_logger(__name__)

NVML, GPM = "nvml", "gpm"
IMPLAUSIBLE = "implausible"  # the error reason under which false values are counted
# Between ticks: enough samples for the mean of a clock that moves with the load, each a few
# microseconds of driver time. Where the device counts cycles they only say what held the clock.
_CLOCK_SAMPLES = 4
_CLOCK_SAMPLES_BESIDE_CYCLES = 2
# GPM may fail for a while (another process re-initialises the driver): try again this often.
_GPM_RETRY_SECONDS = 60.0


class SampledGpu:
    """One GPU by NVML index, and by UUID once that is known."""

    def __init__(
        self, index: int, context: GpuContext, *, uuid: str = UNKNOWN, key: str | None = None
    ) -> None:
        self.key = key or str(index)
        self.clock_samples = _CLOCK_SAMPLES
        self._index = index
        self._context = context
        self._identity = DeviceIdentity(index=str(index), uuid=uuid, name=UNKNOWN)
        self._enumerated: tuple[int, int, int] | None = None
        self._assigned_uuid: str | None = None
        self._index_taken = False
        self._peaks: Peaks | None = None
        self._calls: DeviceCalls | None = None
        self._epoch = 0
        self._ticked_at: float | None = None
        self._accounts: DeviceAccounts | None = None
        self._gpm: GpmSource | None = None
        self._gpm_supported = True
        self._gpm_retry_at = 0.0
        self._gpm_failure: str | None = None
        self._gpm_name = GPM
        self._slow = SlowReading(at_seconds=0.0)
        self._slow_due = [0.0] * len(SLOW_GROUPS)
        self._errors: dict[str, Counter[str]] = {NVML: Counter(), GPM: Counter()}
        self._succeeded: dict[str, float] = {}
        self._gpm_delivered = False
        self._instances = SampledInstances(context)
        self._dcgm = DcgmFallback(context.dcgm)
        self._plausibility = Plausibility()
        self._false: frozenset[Inconsistency] = frozenset()
        self._mig_enabled = False
        self._refused_precision: str | None = None

    @property
    def uuid(self) -> str:
        """The device's UUID; before it first answered that which it was told, or `unknown`."""
        known = self._identity.uuid
        return known if known != UNKNOWN else self._assigned_uuid or UNKNOWN

    @property
    def identity(self) -> DeviceIdentity:
        """Who the device is, as far as it has said."""
        return self._identity

    @property
    def handle(self) -> Any:
        """The driver's handle, None while the device is not open."""
        return None if self._calls is None else self._calls.handle

    @property
    def index_taken(self) -> bool:
        """Whether it has never answered, and another GPU answers where it was found."""
        return self._index_taken

    def assign_uuid(self, uuid: str) -> None:
        """Whom to look for, if it has never answered. Called from another thread; seen to when opened."""
        self._assigned_uuid = uuid
        self._index_taken = False

    def enumerated(self, index: int, handle: Any, epoch: int) -> None:
        """Where the driver lists the device now. Called from another thread; seen to in a tick."""
        self._enumerated = (index, handle_address(handle), epoch)

    def handle_reassigned(self, epoch: int) -> None:
        """Its handle is another device's now. Called from another thread; seen to in a tick."""
        self._enumerated = (self._index, 0, epoch)

    def open(self) -> None:
        """Find the device, by UUID once it is known: its index may have changed. Raises NvmlError."""
        library = self._context.library
        self._epoch = library.epoch
        if self._epoch == 0:
            library.open()
            self._epoch = library.epoch
        handle = self._find()
        calls = DeviceCalls(handle, device=str(self._index))
        calls.errors = self._errors[NVML]
        identity = read_identity(calls, self._index, library.driver_version())
        if not self._context.claim(identity.uuid, self):
            self._index_taken = True
            raise DeviceLost("nvmlDeviceGetHandleByIndex", 28)
        self._identity = identity
        self._peaks = find_peaks(
            self._identity, peak_override(self._context.settings().gpus, self._identity)
        )
        if self._accounts is None:
            self._accounts = DeviceAccounts(self._identity, self._peaks)
        self._calls = calls
        self._enumerated = None
        self._slow_due = [0.0] * len(SLOW_GROUPS)
        self._gpm_supported = True
        self._mig_enabled = mig_enabled(calls)
        self._open_gpm()
        log.info(
            "device_opened",
            gpu=self.key,
            uuid=self._identity.uuid,
            name=self._identity.name,
            source=self._gpm.name if self._gpm else NVML,
            peaks=self._peaks.origin,
        )

    def _find(self) -> Any:
        """The device's handle, by the best name that is known of it. Raises NvmlError."""
        uuid, bus_id = self.uuid, self._identity.pci_bus_id
        if uuid == UNKNOWN:
            return call("nvmlDeviceGetHandleByIndex", self._index)
        if uuid.startswith(NO_UUID) and bus_id is not None:
            handle = call("nvmlDeviceGetHandleByPciBusId", bus_id)
        else:
            handle = call("nvmlDeviceGetHandleByUUID", uuid)
        self._index = int(call("nvmlDeviceGetIndex", handle))
        return handle

    def sample_clock(self) -> None:
        """One more sample of the clock for the window that is open."""
        self._check_epoch()
        assert self._calls is not None
        assert self._accounts is not None
        sample = read_clock(self._calls, time.monotonic)
        self._accounts.observe_clock(sample)
        self._instances.observe_clock(sample)

    def skip_gap(self) -> None:
        """Count nothing of the time since the last tick."""
        if self._accounts is not None:
            self._accounts.forget_open_spans()
        if self._gpm is not None:
            self._gpm.restart()
        self._dcgm.restart()
        self._plausibility.restart()
        self._instances.skip_gap()

    def tick(self, ticks: TickStatistics) -> DeviceState:
        """Read everything that is due and account for it."""
        self._check_epoch()
        self._follow_enumeration()
        calls, accounts, peaks = self._calls, self._accounts, self._peaks
        assert calls is not None
        assert accounts is not None
        assert peaks is not None
        settings = self._context.settings()
        self._note_tick(settings)
        sample: ClockSample = read_clock(calls, time.monotonic)
        accounts.observe_clock(sample)
        fast = read_fast(
            calls,
            sample,
            traffic=self._gpm is None,
            module=self._identity.c2c_link_count is not None,
        )
        self._succeeded[NVML] = time.time()
        self._follow_mig_mode(calls)
        window = self._read_gpm(settings)
        self._instances.sync(self._identity, calls, enabled=self._mig_enabled)
        silent = Inconsistency.ACTIVITY_SILENT in self._false  # by the ticks before
        instances = self._instances.tick(sample, gpu_is_silent=silent)
        if self._gpm is None and window is None:
            window = self._instances.gpu_window(peaks.sm_count)
        opened = (self._gpm or self._instances).open_since_seconds
        shares = self._instances.dcgm_shares(peaks.sm_count)
        # Also where GPM is there and not for us: DCGM's own daemon may have what is kept from us.
        without_gpm = self._gpm is None and (bool(shares) or not self._mig_enabled)
        self._dcgm.follow(self._identity.uuid, wanted=without_gpm, shares=shares)
        if self._dcgm.in_use:
            window, opened = self._dcgm.take(fast)
        judged = self._plausibility.judge(fast, window, self._slow.power_limit_watts)
        fast, window = judged.fast, judged.window
        self._book_false(judged)
        self._read_slow(settings, sample.at_seconds)
        state, uuid = self._context.state(), self._identity.uuid
        headline = headline_precision(
            settings.gpus, state.precisions.get(uuid), self._identity, peaks
        )
        self._note_refused(headline.refused)
        last = accounts.observe(
            fast,
            window,
            precision=headline.precision,
            max_window_seconds=settings.max_window + self._dcgm.max_window_seconds,
            window_started_seconds=opened,
            reachable_bandwidth=state.reachable_bandwidth.get(uuid, REACHABLE_BANDWIDTH),
        )
        return replace(
            self._snapshot(ticks, up=True),
            at_seconds=sample.at_seconds,
            peaks=peaks,
            precision=headline.precision,
            precision_origin=headline.origin,
            fast=fast,
            slow=self._slow,
            last=self._dcgm.hold(last, sample.at_seconds),
            counters=accounts.counters(),
            instances=instances,
        )

    def failed(self, error: NvmlError, ticks: TickStatistics) -> DeviceState:
        """Let go of a device that is lost; initialise the library anew if that is what failed."""
        if isinstance(error, DriverMismatch):
            self._context.on_mismatch()
        if self._calls is None:
            self._errors[NVML][error.reason] += 1
        self.skip_gap()
        if self._gpm is not None and not isinstance(error, DriverGone):
            self._gpm.close()
        self._gpm = None
        self._gpm_delivered = False
        self._calls = None
        instances = self._instances.lost(close=not isinstance(error, DriverGone))
        if isinstance(error, DriverGone):
            try:
                self._context.library.reopen(self._epoch)
            except NvmlError as again:
                log.debug("driver_still_gone", reason=again.reason)
        return replace(self._snapshot(ticks, up=False), instances=instances)

    def _note_refused(self, precision: str | None) -> None:
        """Say once that a precision was asked for that the device has no unit for."""
        if precision is not None and precision != self._refused_precision:
            log.warning(
                "precision_not_in_silicon",
                gpu=self.key,
                name=self._identity.name,
                precision=precision,
                used=self._peaks.default_precision if self._peaks else None,
            )
        self._refused_precision = precision

    def _note_tick(self, settings: SamplingSettings) -> None:
        """Count nothing of a span without ticks: the process was stopped, or the machine asleep."""
        now = time.monotonic()
        if self._ticked_at is not None and now - self._ticked_at > settings.max_window:
            self.skip_gap()
        self._ticked_at = now

    def _follow_mig_mode(self, calls: DeviceCalls) -> None:
        """A change of the mode resets the GPU: what GPM it has must be found out again."""
        enabled = mig_enabled(calls)
        if enabled == self._mig_enabled:
            return
        self._mig_enabled = enabled
        log.info("mig_mode_changed", gpu=self.key, enabled=enabled)
        if self._gpm is not None:
            self._gpm.close()
        self._gpm_supported = True
        self._open_gpm()

    def _follow_enumeration(self) -> None:
        """GPUs that come or go move the indices of others, and may make their handles invalid.

        Raises DeviceLost for a handle that is not the device's any more (nvmlDeviceDiscoverGpus in
        nvml.h): opened again, it goes on with the same books.
        """
        seen, self._enumerated = self._enumerated, None
        if seen is None or self._calls is None or seen[2] != self._epoch:
            return
        index, address, _epoch = seen
        if address != handle_address(self._calls.handle):
            raise DeviceLost("nvmlDeviceGetHandleByIndex", 28)
        if index != self._index:
            log.info("device_moved", uuid=self._identity.uuid, gpu=index, was=self._index)
            self._index = index
            self._identity = replace(self._identity, index=str(index))

    def _check_epoch(self) -> None:
        """A handle dies with its initialisation: another device's sampler may have begun a new one."""
        if self._context.library.epoch != self._epoch:
            raise DriverGone("nvmlInit", 1)

    def _snapshot(self, ticks: TickStatistics, *, up: bool) -> DeviceState:
        return DeviceState(
            identity=self._identity,
            at_seconds=time.monotonic(),
            up=up,
            max_age_seconds=self._context.settings().max_age,
            sources=self._sources(up=up),
            xids=self._context.xids(self._identity.uuid),
            tick_duration=ticks.durations,
            ticks_missed=ticks.missed,
        )

    def _sources(self, *, up: bool) -> dict[str, SourceHealth]:
        sources = {
            NVML: SourceHealth(up, self._succeeded.get(NVML), dict(self._errors[NVML])),
        }
        if self._context.settings().modes["gpm"] != "off":
            sources[self._gpm_name] = SourceHealth(
                up and self._gpm is not None and self._gpm_delivered,
                self._succeeded.get(GPM),
                dict(self._errors[GPM]),
            )
        return {**sources, **self._dcgm.health(up=up)}

    def _book_false(self, judged: Judgement) -> None:
        """Count what was left out of this tick; one log line for each change."""
        for name in judged.false:
            if name != "activity":
                self._errors[NVML][IMPLAUSIBLE] += 1
            elif self._dcgm.in_use:
                self._dcgm.implausible()
            else:
                self._errors[GPM][IMPLAUSIBLE] += 1
        if judged.activity_is_false:
            self._gpm_delivered = False
        false = frozenset(judged.false.values())
        for falsehood in sorted(false - self._false):
            values = [name for name, found in judged.false.items() if found is falsehood]
            log.warning("implausible", gpu=self.key, found=falsehood.value, left_out=values)
        for falsehood in sorted(self._false - false):
            log.info("plausible_again", gpu=self.key, found=falsehood.value)
        self._false = false

    def _open_gpm(self) -> None:
        self._gpm = None
        self._gpm_delivered = False
        if self._context.settings().modes["gpm"] == "off" or not self._gpm_supported:
            return
        calls = self._calls
        assert calls is not None
        source = GpmSource(
            calls.handle,
            sm_count=self._identity.sm_count,
            max_hertz=self._identity.sm_clock_max_hertz,
            on_implausible=self._gpm_implausible,
            has_c2c=self._identity.c2c_link_count is not None,
        )
        try:
            source.open(lambda: read_clock(calls, time.monotonic).sm_clock_hertz)
        except NotSupported as error:
            self._gpm_supported = False
            log.info("gpm_not_supported", gpu=self.key, function=error.function)
            return
        except NvmlError as error:
            self._gpm_failed(error)
            return
        self._gpm = source
        self._gpm_name = source.name
        self._gpm_delivered = True
        self._gpm_failure = None
        self.clock_samples = (
            _CLOCK_SAMPLES_BESIDE_CYCLES if source.name == CYCLES else _CLOCK_SAMPLES
        )

    def _read_gpm(self, settings: SamplingSettings) -> ActivityWindow | None:
        if self._gpm is None:
            if self._gpm_supported and time.monotonic() >= self._gpm_retry_at:
                self._open_gpm()
            return None
        opened = self._gpm.open_since_seconds
        if opened is not None and time.monotonic() - opened > settings.max_window:
            self._gpm.restart()
        try:
            window = self._gpm.read()
        except NvmlError as error:
            self._gpm_failed(error)
            if isinstance(error, NotSupported):
                self._gpm.close()
                self._gpm = None
            return None
        if window is not None:
            self._succeeded[GPM] = time.time()
            self._gpm_delivered = True
            if self._gpm_failure is not None:
                self._gpm_failure = None
                log.info("gpm_answers_again", gpu=self.key)
        return window

    def _gpm_failed(self, error: NvmlError) -> None:
        """Book the failure; raise it again if it means that the device or the driver is gone."""
        self._errors[GPM][error.reason] += 1
        if self._gpm_failure != error.reason:
            log.warning("gpm_failed", gpu=self.key, function=error.function, reason=error.reason)
        self._gpm_failure = error.reason
        self._gpm_delivered = False
        self._gpm_retry_at = time.monotonic() + _GPM_RETRY_SECONDS
        if isinstance(error, (DeviceLost, DriverGone, DriverMismatch)):
            raise error

    def _gpm_implausible(self, what: str) -> None:
        if not self._errors[GPM][IMPLAUSIBLE]:
            log.warning("gpm_value_implausible", gpu=self.key, value_of=what)
        self._errors[GPM][IMPLAUSIBLE] += 1
        self._gpm_delivered = False  # until a window comes out of this reading all the same

    def _read_slow(self, settings: SamplingSettings, now: float) -> None:
        """Read the groups that are due: all of them first, then spread over the slow interval."""
        calls, accounts = self._calls, self._accounts
        assert calls is not None
        assert accounts is not None
        for position, group in enumerate(SLOW_GROUPS):
            due = self._slow_due[position]
            if now < due:
                continue
            if group is read_pcie and self._identity.memory_size_bytes is None:
                continue  # unified memory (GB10, Thor): the PCIe link that NVML tells of is none
            values = accounts.without_falls(group(calls))
            self._slow = replace(self._slow, at_seconds=now, **values)
            share = settings.slow_interval * (position + 1) / len(SLOW_GROUPS)
            self._slow_due[position] = now + (settings.slow_interval if due else share)
