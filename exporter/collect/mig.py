"""The MIG instances of one GPU: found again every tick, each with books of its own.

An instance is known by its UUID, GPU instance id and size together: ids are handed out again after
a reconfiguration, and an instance that comes back as another starts its counters anew.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import structlog

from exporter.accounting.device import DeviceAccounts
from exporter.accounting.mig import (
    InstanceWindow,
    instance_peaks,
    memory_share,
    whole_gpu_window,
)
from exporter.accounting.plausibility import is_silent, without_activity
from exporter.accounting.time_split import REACHABLE_BANDWIDTH
from exporter.collect.context import GpuContext
from exporter.collect.dcgm.fallback import DcgmFallback
from exporter.collect.dcgm.instances import InstanceShare, Shares
from exporter.collect.gpm import CYCLES, PERCENT, GpmSource, open_together
from exporter.collect.nvml.errors import (
    DeviceLost,
    DriverGone,
    DriverMismatch,
    NotSupported,
    NvmlError,
)
from exporter.collect.nvml.library import DeviceCalls
from exporter.collect.nvml.mig import (
    ListedInstance,
    gpm_sample_methods,
    list_instances,
    read_instance,
)
from exporter.collect.nvml.processes import read_processes
from exporter.collect.nvml.reading import read_clock, read_memory
from exporter.collect.settings import SamplingSettings
from exporter.precision import headline_precision, peak_override
from exporter.readings import (
    ActivityWindow,
    ClockSample,
    DeviceIdentity,
    FastReading,
    SlowReading,
)
from exporter.state import DeviceState, SourceHealth


log = structlog.get_logger(__name__)

_GPM_RETRY_SECONDS = 60.0


class SampledInstances:
    """The instances of one GPU. The GPU's own thread calls it."""

    def __init__(self, context: GpuContext) -> None:
        self._context = context
        self._instances: dict[tuple[str, int, int | None], _SampledInstance] = {}
        self._gpu: DeviceIdentity | None = None
        self._known: dict[tuple[int, str], tuple[int, int]] = {}

    def sync(self, gpu: DeviceIdentity, calls: DeviceCalls, *, enabled: bool) -> None:
        """Find the instances that are there now. Raises NvmlError when the GPU is gone."""
        if self._gpu is not None and self._gpu.index != gpu.index:
            for instance in self._instances.values():
                instance.identity = replace(instance.identity, index=gpu.index)
        self._gpu = gpu
        listed = list_instances(calls, self._known) if enabled else ()
        attached = {
            instance.listed: key
            for key, instance in self._instances.items()
            if instance.listed is not None
        }
        kept: dict[tuple[str, int, int | None], _SampledInstance] = {}
        new: list[_SampledInstance] = []
        for entry in listed:
            key = attached.get(entry)
            if key is not None:
                kept[key] = self._instances[key]
                continue
            identity = _identity(gpu, entry, calls)
            key = (entry.uuid, entry.gpu_instance_id, identity.sm_count)
            instance = self._instances.get(key) or _SampledInstance(gpu, identity, self._context)
            instance.attach(entry, calls)
            kept[key] = instance
            new.append(instance)
        for key, instance in self._instances.items():
            if key not in kept:
                instance.detach(close=True)
                log.info("mig_instance_gone", gpu=gpu.index, uuid=instance.identity.uuid)
        self._instances = kept
        self._open_gpm(new, calls)

    def observe_clock(self, sample: ClockSample) -> None:
        """One more sample of the GPU's clock, which is the instances' clock."""
        for instance in self._instances.values():
            instance.accounts.observe_clock(sample)

    def skip_gap(self) -> None:
        """Count nothing of the time since the last tick."""
        for instance in self._instances.values():
            instance.skip_gap()

    def tick(self, sample: ClockSample, *, gpu_is_silent: bool) -> tuple[DeviceState, ...]:
        """Read all instances and account for them. Raises NvmlError when the GPU is gone.

        `gpu_is_silent`: the GPU works by its power, and nothing is seen of it. An instance of which
        nothing is seen either may lie; there is no other witness of a single one.
        """
        settings = self._context.settings()
        return tuple(
            instance.tick(sample, settings, gpu_is_silent=gpu_is_silent)
            for instance in self._instances.values()
        )

    def gpu_window(self, sm_count: int | None) -> ActivityWindow | None:
        """The last tick's window of the whole GPU; None unless every instance has one."""
        parts: list[InstanceWindow] = []
        gpu = self._gpu
        for instance in self._instances.values():
            if instance.window is None or not sm_count or not instance.identity.sm_count or not gpu:
                return None
            if instance.window.source not in (PERCENT, CYCLES):
                return None  # DCGM's windows do not end in the same tick for all instances
            share = memory_share(gpu.memory_size_bytes, instance.identity.memory_size_bytes)
            parts.append(
                InstanceWindow(instance.window, instance.identity.sm_count / sm_count, share)
            )
        return whole_gpu_window(parts)

    def dcgm_shares(self, sm_count: int | None) -> Shares:
        """What the instances have of the GPU, where DCGM stands in for all of them; else nothing."""
        shares: dict[str, InstanceShare] = {}
        for instance in self._instances.values():
            identity = instance.identity
            if not instance.uses_dcgm or not sm_count or not identity.sm_count or not identity.mig:
                return {}
            memory = self._gpu.memory_size_bytes if self._gpu is not None else None
            shares[identity.mig] = InstanceShare(
                identity.sm_count / sm_count, memory_share(memory, identity.memory_size_bytes)
            )
        return shares

    @property
    def open_since_seconds(self) -> float | None:
        """Start of the GPU's window that its instances will close; None if not all have GPM."""
        opened = [instance.open_since_seconds for instance in self._instances.values()]
        return opened[0] if opened and None not in opened else None

    def lost(self, *, close: bool) -> tuple[DeviceState, ...]:
        """Let go of the instances with their GPU, but keep their books."""
        for instance in self._instances.values():
            instance.detach(close=close)
        return tuple(instance.snapshot(up=False) for instance in self._instances.values())

    def _open_gpm(self, instances: Sequence["_SampledInstance"], calls: DeviceCalls) -> None:
        """Try GPM on new instances, all in one trial."""
        if self._context.settings().modes["gpm"] == "off":
            return
        now = time.monotonic()
        due = [*instances, *(i for i in self._instances.values() if i.gpm_due(now))]
        sources = {source: i for i in dict.fromkeys(due) if (source := i.new_gpm(calls.handle))}
        if not sources:
            return
        failures = open_together(
            tuple(sources), lambda: read_clock(calls, time.monotonic).sm_clock_hertz
        )
        failed = dict(failures)
        for source, instance in sources.items():
            instance.gpm_tried(source, failed.get(source))


class _SampledInstance:
    """One GPU instance. `listed` is None while it is not there."""

    def __init__(self, gpu: DeviceIdentity, identity: DeviceIdentity, context: GpuContext) -> None:
        self.identity = identity
        self.peaks = instance_peaks(gpu, identity, peak_override(context.settings().gpus, gpu))
        self.accounts = DeviceAccounts(identity, self.peaks)
        self.listed: ListedInstance | None = None
        self.window: ActivityWindow | None = None
        self._context = context
        self._calls: DeviceCalls | None = None
        self._parent: object = None
        self._gpm: GpmSource | None = None
        self._gpm_retry_at: float | None = None
        self._gpm_failure: str | None = None
        self._gpm_anew_at = -_GPM_RETRY_SECONDS
        self._gpm_name = PERCENT
        self._gpm_delivered = False
        self._errors: dict[str, Counter[str]] = {"nvml": Counter(), "gpm": Counter()}
        self._succeeded: dict[str, float] = {}
        self._dcgm = DcgmFallback(context.dcgm)
        self._gpu_uuid = gpu.uuid
        self._ticked = False
        self._slow = SlowReading(at_seconds=0.0)
        self._slow_due = 0.0

    def attach(self, listed: ListedInstance, parent: DeviceCalls) -> None:
        """Take the instance's handle of now; its GPM samples begin anew."""
        self.detach(close=True)
        self.listed = listed
        self._calls = DeviceCalls(listed.handle, device=f"{self.identity.index}/{listed.uuid}")
        self._calls.errors = self._errors["nvml"]
        log.info(
            "mig_instance_opened",
            gpu=self.identity.index,
            mig=self.identity.mig,
            uuid=listed.uuid,
            sm_count=self.identity.sm_count,
        )

    def detach(self, *, close: bool) -> None:
        """Let go of the handle; the books stay."""
        if self._gpm is not None and close:
            self._gpm.close()
        self._gpm = None
        self._gpm_retry_at = None
        self._gpm_delivered = False
        self._calls = None
        self.listed = None
        self.window = None
        self._ticked = False
        self._dcgm.follow(self._gpu_uuid, wanted=False)
        self.accounts.forget_open_spans()

    @property
    def uses_dcgm(self) -> bool:
        """Whether DCGM stands in for GPM."""
        return self._dcgm.in_use

    @property
    def open_since_seconds(self) -> float | None:
        """Start of the window that GPM will close."""
        return self._gpm.open_since_seconds if self._gpm is not None else None

    def skip_gap(self) -> None:
        """Count nothing of the time since the last tick."""
        self.accounts.forget_open_spans()
        if self._gpm is not None:
            self._gpm.restart()
        self._dcgm.restart()

    def gpm_due(self, now: float) -> bool:
        """Whether GPM failed for a passing reason, and may be tried again."""
        return self._gpm is None and self._gpm_retry_at is not None and now >= self._gpm_retry_at

    def new_gpm(self, parent_handle: object) -> GpmSource | None:
        """A GPM source to be tried; None if there is one, or no instance."""
        if self.listed is None or self._gpm is not None:
            return None
        return GpmSource(
            self.listed.handle,
            sm_count=self.identity.sm_count,
            max_hertz=self.identity.sm_clock_max_hertz,
            on_implausible=self.implausible,
            sample_methods=gpm_sample_methods(parent_handle, self.listed),
        )

    def gpm_tried(self, source: GpmSource, error: NvmlError | None) -> None:
        """How the trial went."""
        if error is None:
            self._gpm, self._gpm_name = source, source.name
            self._gpm_delivered = True
            self._gpm_failure = None
        elif isinstance(error, NotSupported):
            self._gpm_retry_at = None
            log.info("gpm_not_supported", gpu=self.identity.index, mig=self.identity.mig)
        else:
            self._gpm_failed(error)

    def implausible(self, what: str) -> None:
        """Book a value of GPM that cannot be true; it is left out."""
        if not self._errors["gpm"]["implausible"]:
            log.warning(
                "gpm_value_implausible",
                gpu=self.identity.index,
                mig=self.identity.mig,
                value_of=what,
            )
        self._errors["gpm"]["implausible"] += 1
        self._gpm_delivered = False  # until a window comes out of this reading all the same

    def tick(
        self, sample: ClockSample, settings: SamplingSettings, *, gpu_is_silent: bool
    ) -> DeviceState:
        """Read and account."""
        calls = self._calls
        assert calls is not None
        # The clock is the GPU's; the instance has memory, processes and activities of its own.
        # Its first tick is now: the tick's sample is from before its GPM was tried.
        at = sample.at_seconds if self._ticked else time.monotonic()
        self._ticked = True
        fast = FastReading(at_seconds=at, **read_memory(calls))
        self._succeeded["nvml"] = time.time()
        self.accounts.observe_clock(sample)
        self.window = self._read_gpm(settings)
        if sample.at_seconds >= self._slow_due:
            self._slow = replace(self._slow, at_seconds=sample.at_seconds, **read_processes(calls))
            self._slow_due = sample.at_seconds + settings.slow_interval
        opened = self.open_since_seconds
        self._dcgm.follow(self._gpu_uuid, self.identity.mig, wanted=self._gpm is None)
        if self._dcgm.in_use:
            self.window, opened = self._dcgm.take(fast)
        believed = self.window
        if gpu_is_silent and believed is not None and is_silent(believed):
            believed = without_activity(believed, None)
            self._book_silence()
        state, uuid = self._context.state(), self.identity.uuid
        headline = headline_precision(
            settings.gpus, state.precisions.get(uuid), self.identity, self.peaks
        )
        last = self.accounts.observe(
            fast,
            believed,
            precision=headline.precision,
            max_window_seconds=settings.max_window + self._dcgm.max_window_seconds,
            window_started_seconds=opened,
            reachable_bandwidth=state.reachable_bandwidth.get(uuid, REACHABLE_BANDWIDTH),
        )
        return replace(
            self.snapshot(up=True),
            at_seconds=sample.at_seconds,
            peaks=self.peaks,
            precision=headline.precision,
            precision_origin=headline.origin,
            fast=fast,
            slow=self._slow,
            last=self._dcgm.hold(last, sample.at_seconds),
            counters=self.accounts.counters(),
        )

    def snapshot(self, *, up: bool) -> DeviceState:
        """What is known without a reading."""
        sources = {
            "nvml": SourceHealth(up, self._succeeded.get("nvml"), dict(self._errors["nvml"]))
        }
        if self._context.settings().modes["gpm"] != "off":
            sources[self._gpm_name] = SourceHealth(
                up and self._gpm is not None and self._gpm_delivered,
                self._succeeded.get("gpm"),
                dict(self._errors["gpm"]),
            )
        return DeviceState(
            identity=self.identity,
            at_seconds=time.monotonic(),
            up=up,
            max_age_seconds=self._context.settings().max_age,
            sources={**sources, **self._dcgm.health(up=up)},
        )

    def _book_silence(self) -> None:
        if self._dcgm.in_use:
            self._dcgm.implausible()
        else:
            self.implausible("activity")

    def _read_gpm(self, settings: SamplingSettings) -> ActivityWindow | None:
        if self._gpm is None:
            return None
        opened = self._gpm.open_since_seconds
        if opened is not None and time.monotonic() - opened > settings.max_window:
            self._gpm.restart()
        try:
            window = self._gpm.read()
        except (DeviceLost, DriverGone, DriverMismatch):
            raise
        except NvmlError as error:
            self._gpm_failed(error)
            return None
        if window is not None:
            self._succeeded["gpm"] = time.time()
            self._gpm_delivered = True
            if self._gpm_failure is not None:
                self._gpm_failure = None
                log.info("gpm_answers_again", gpu=self.identity.index, mig=self.identity.mig)
        return window

    def _gpm_failed(self, error: NvmlError) -> None:
        """Start GPM anew later: the pair of samples may span a reconfiguration."""
        self._errors["gpm"][error.reason] += 1
        if self._gpm_failure != error.reason:
            log.warning(
                "gpm_failed",
                gpu=self.identity.index,
                mig=self.identity.mig,
                function=error.function,
                reason=error.reason,
            )
        self._gpm_failure = error.reason
        now = time.monotonic()
        anew = False
        if isinstance(error, NotSupported) and self._gpm is not None:
            # Made again at its place, with the same name: samples from before do not go with those
            # of now. Begun anew at once, but not again and again.
            anew = now - self._gpm_anew_at >= _GPM_RETRY_SECONDS
            self._gpm.close()
            self._gpm = None
        self._gpm_delivered = False
        self._gpm_anew_at = now if anew else self._gpm_anew_at
        self._gpm_retry_at = now if anew else now + _GPM_RETRY_SECONDS


def _identity(gpu: DeviceIdentity, listed: ListedInstance, calls: DeviceCalls) -> DeviceIdentity:
    facts = read_instance(calls, listed.handle, listed.gpu_instance_id)
    return replace(
        gpu,
        uuid=listed.uuid,
        name=facts.name or gpu.name,
        sm_count=facts.sm_count,
        memory_size_bytes=facts.memory_bytes,
        memory_bus_width_bits=None,
        mig=str(listed.gpu_instance_id),
        placement=facts.placement,
    )
