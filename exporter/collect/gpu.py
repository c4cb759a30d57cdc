"""One GPU: finds its handle, follows index, MIG mode and resets, and reads it in every tick.

Its MIG instances are enumerated every tick; each is a device with its own accounts. An instance is
identified by its UUID, GPU instance id and size together: ids are reused after a reconfiguration,
and a different instance starts its counters from zero.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import structlog

from exporter.accounting.mig import instance_peaks
from exporter.accounting.peaks import PeakOverride, find_peaks
from exporter.collect.device import NVML, Device, GpuContext
from exporter.collect.nvml.gpm import instance_sessions
from exporter.collect.nvml.identity import (
    NO_UUID,
    ListedInstance,
    list_instances,
    mig_enabled,
    read_identity,
    read_instance,
)
from exporter.collect.nvml.library import (
    DeviceCalls,
    DeviceLost,
    DriverGone,
    DriverMismatch,
    NvmlError,
    call,
    handle_address,
)
from exporter.collect.nvml.processes import ProcessUtilization, read_processes
from exporter.collect.nvml.reading import SLOW_GROUPS, read_clock, read_fast, read_memory, read_pcie
from exporter.collect.settings import GpuRule, SamplingSettings, peak_override
from exporter.collect.sources import SOURCES
from exporter.device_state import UNKNOWN, DeviceState, XidCounts
from exporter.readings import ClockSample, DeviceIdentity, FastReading, SlowReading


log = structlog.get_logger(__name__)

# What a GPU reports about itself besides its UUID and name, and which of it every GPU reports.
_REPORTED = (
    "architecture",
    "compute_capability",
    "pci_bus_id",
    "serial",
    "sm_count",
    "sm_clock_max_hertz",
    "memory_clock_max_hertz",
    "memory_bus_width_bits",
    "memory_size_bytes",
    "c2c_link_count",
    "minor",
)
_REPORTED_BY_ALL = (
    "compute_capability",
    "sm_count",
    "sm_clock_max_hertz",
    "memory_clock_max_hertz",
)

_Key = tuple[str, int, int | None]  # of an instance: UUID, GPU instance id, number of SMs


class SampledGpu:
    """One GPU by NVML index, and by UUID once that is known, with its MIG instances."""

    def __init__(
        self, index: int, context: GpuContext, *, uuid: str = UNKNOWN, key: str | None = None
    ) -> None:
        self.key = key or str(index)
        self._index = index
        self._context = context
        self._device = Device(
            DeviceIdentity(index=str(index), uuid=uuid, name=UNKNOWN), context, SOURCES
        )
        self._instances = MigInstances(self._device)
        self._enumerated: tuple[int, int, int] | None = None
        self._assigned_uuid: str | None = None
        # Whether the device has never answered and another GPU answers at its index.
        self.index_taken = False
        self._epoch = 0
        self._ticked_at: float | None = None
        self._rules: tuple[GpuRule, ...] = ()
        self._slow_due = [0.0] * len(SLOW_GROUPS)
        self._utilization = ProcessUtilization()
        self._identity_due = 0.0

    @property
    def uuid(self) -> str:
        """UUID of the device. Before its first answer, the UUID that was assigned, or `unknown`."""
        known = self.identity.uuid
        return known if known != UNKNOWN else self._assigned_uuid or UNKNOWN

    @property
    def identity(self) -> DeviceIdentity:
        """Identity of the device, as far as it is known."""
        return self._device.identity

    @property
    def handle(self) -> Any:
        """The driver's handle, None while the device is not open."""
        calls = self._device.calls
        return None if calls is None else calls.handle

    @property
    def clock_samples(self) -> int:
        """How many samples of the clock a tick needs."""
        return self._device.clock_samples

    def assign_uuid(self, uuid: str) -> None:
        """Set the UUID to look for when the device is opened. Called from another thread."""
        self._assigned_uuid = uuid
        self.index_taken = False

    def enumerated(self, index: int, handle: Any, epoch: int) -> None:
        """Record where the driver lists the device. Called from another thread; handled in a tick."""
        self._enumerated = (index, handle_address(handle), epoch)

    def handle_reassigned(self, epoch: int) -> None:
        """Record that its handle now belongs to another device. Called from another thread."""
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
        try:
            identity = read_identity(calls, self._index, library.driver_version())
        finally:
            self._device.errors.update(calls.errors)
        if not self._context.claim(identity.uuid, self):
            self.index_taken = True
            raise DeviceLost("nvmlDeviceGetHandleByIndex", 28)
        self._rules = self._context.settings().gpus
        peaks = find_peaks(identity, peak_override(self._rules, identity))
        self._device.attach(identity, peaks, calls)
        self._device.mig_enabled = mig_enabled(calls, before=self._device.mig_enabled)
        self._enumerated = None
        self._slow_due = [0.0] * len(SLOW_GROUPS)
        self._identity_due = time.monotonic() + self._context.settings().slow_interval
        self._prepare_sources()
        source = self._device.choose_source()
        log.info(
            "device_opened",
            gpu=self.key,
            uuid=identity.uuid,
            name=identity.name,
            source=next(iter(source.health(up=True)), NVML) if source is not None else NVML,
            peaks=peaks.origin,
        )
        if not peaks.flops:
            log.warning(
                "peak_unknown",
                gpu=identity.index,
                name=identity.name,
                why=peaks.doubt,
                remedy="set gpus[].sm_count or gpus[].peaks",
            )

    def sample_clock(self) -> None:
        """Take one more sample of the clock for the open window."""
        self._check_epoch()
        assert self._device.calls is not None
        sample = read_clock(self._device.calls, time.monotonic)
        for device in self._devices():
            device.accounts.observe_clock(sample)

    def skip_gap(self) -> None:
        """Count nothing of the time since the last tick."""
        for device in self._devices():
            device.skip_gap()

    def tick(self) -> DeviceState:
        """Read everything that is due and account for it."""
        self._check_epoch()
        self._follow_enumeration()
        device, calls = self._device, self._device.calls
        assert calls is not None
        settings = self._context.settings()
        self._note_tick(settings)
        self._follow_mig_mode(calls)
        self._follow_identity(calls, settings)
        self._follow_rules(settings)
        self._instances.sync(calls, peak_override(self._rules, self.identity))
        self._prepare_sources()
        sample = read_clock(calls, time.monotonic)
        device.accounts.observe_clock(sample)
        instances = self._instances.tick(sample, settings)
        source = device.choose_source()
        fast = read_fast(
            calls,
            sample,
            traffic=source is None or not source.counts_traffic,
            module=self.identity.c2c_link_count is not None,
            utilization_of=self._utilization,
        )
        fast, window = device.measure(fast, settings)
        device.slow = self._read_slow(calls, settings, sample.at_seconds)
        state = device.account(fast, window, settings)
        return replace(state, instances=instances, xids=self._xids())

    def revived(self) -> bool:
        """Whether the driver was initialised again since the device was last open."""
        return self._context.library.epoch != self._epoch

    def failed(self, error: NvmlError) -> DeviceState:
        """Detach a lost device. Initialise the library again if that is what failed."""
        if isinstance(error, DriverMismatch):
            self._context.on_mismatch()
        if self._device.calls is None:
            self._device.errors[error.reason] += 1
        driver_is_gone = isinstance(error, DriverGone)
        self._device.detach(driver_is_gone=driver_is_gone)
        instances = self._instances.lost(driver_is_gone=driver_is_gone)
        if driver_is_gone:
            try:
                self._context.library.reopen(self._epoch)
            except NvmlError as again:
                log.debug("driver_still_gone", reason=again.reason)
        return self._device.state(up=False, instances=instances, xids=self._xids())

    def _devices(self) -> Iterator[Device]:
        yield self._device
        yield from self._device.instances

    def _prepare_sources(self) -> None:
        """Let each kind of source prepare for the GPU and all its instances. Raises NvmlError."""
        devices = tuple(self._devices())
        for position, source in enumerate(self._device.sources):
            type(source).prepare([device.sources[position] for device in devices])

    def _find(self) -> Any:
        """The device's handle, by the most specific name known. Raises NvmlError."""
        uuid, bus_id = self.uuid, self.identity.pci_bus_id
        if uuid == UNKNOWN:
            return call("nvmlDeviceGetHandleByIndex", self._index)
        if uuid.startswith(NO_UUID) and bus_id is not None:
            handle = call("nvmlDeviceGetHandleByPciBusId", bus_id)
        else:
            handle = call("nvmlDeviceGetHandleByUUID", uuid)
        self._index = int(call("nvmlDeviceGetIndex", handle))
        return handle

    def _note_tick(self, settings: SamplingSettings) -> None:
        """Count nothing of a span without ticks: the process was stopped, or the machine suspended."""
        now = time.monotonic()
        if self._ticked_at is not None and now - self._ticked_at > settings.max_window:
            self.skip_gap()
        self._ticked_at = now

    def _follow_mig_mode(self, calls: DeviceCalls) -> None:
        """A change of the mode resets the GPU: what it supports must be found out again."""
        enabled = mig_enabled(calls, before=self._device.mig_enabled)
        if enabled == self._device.mig_enabled:
            return
        self._device.mig_enabled = enabled
        log.info("mig_mode_changed", gpu=self.key, enabled=enabled)
        self._device.forget_support()
        self._identity_due = 0.0

    def _follow_identity(self, calls: DeviceCalls, settings: SamplingSettings) -> None:
        """Ask again for what the GPU did not report when it was opened, or in MIG mode."""
        now = time.monotonic()
        if now < self._identity_due:
            return
        first, self._identity_due = self._identity_due, now + settings.slow_interval
        old = self.identity
        if first and all(getattr(old, name) is not None for name in _REPORTED_BY_ALL):
            return
        reported = read_identity(calls, self._index, old.driver_version)
        answers = {name: getattr(reported, name) for name in _REPORTED}
        new = {name: value for name, value in answers.items() if value is not None}
        identity = replace(old, **new)
        if identity == old:
            return
        log.info("device_identified", gpu=self.key, uuid=identity.uuid, name=identity.name)
        self._device.identity = identity
        self._revalue()

    def _follow_rules(self, settings: SamplingSettings) -> None:
        """Apply the peaks of a reloaded configuration."""
        if settings.gpus == self._rules:
            return
        self._rules = settings.gpus
        self._revalue()

    def _revalue(self) -> None:
        override = peak_override(self._rules, self.identity)
        self._device.revalue(find_peaks(self.identity, override))
        self._instances.revalue(override)

    def _follow_enumeration(self) -> None:
        """GPUs that come or go move the indices of others, and may make their handles invalid.

        Raises DeviceLost for a handle that is not the device's any more (nvmlDeviceDiscoverGpus in
        nvml.h): reopened, it continues with the same accounts.
        """
        seen, self._enumerated = self._enumerated, None
        if seen is None or self.handle is None or seen[2] != self._epoch:
            return
        index, address, _epoch = seen
        if address != handle_address(self.handle):
            raise DeviceLost("nvmlDeviceGetHandleByIndex", 28)
        if index != self._index:
            log.info("device_moved", uuid=self.identity.uuid, gpu=index, was=self._index)
            self._index = index
            self._device.identity = replace(self.identity, index=str(index))

    def _check_epoch(self) -> None:
        """A handle dies with its initialisation: another device's sampler may have made a new one."""
        if self._context.library.epoch != self._epoch:
            raise DriverGone("nvmlInit", 1)

    def _xids(self) -> XidCounts:
        return self._context.xids(self.identity.uuid)

    def _read_slow(self, calls: DeviceCalls, settings: SamplingSettings, now: float) -> SlowReading:
        """Read the groups that are due: all of them first, then spread over the slow interval."""
        slow = self._device.slow
        for position, group in enumerate(SLOW_GROUPS):
            due = self._slow_due[position]
            if now < due:
                continue
            if group is read_pcie and self.identity.memory_size_bytes is None:
                continue  # unified memory (GB10, Thor): the PCIe link that NVML reports does not exist
            values = self._device.accounts.without_falls(group(calls))
            slow = replace(slow, at_seconds=now, **values)
            share = settings.slow_interval * (position + 1) / len(SLOW_GROUPS)
            self._slow_due[position] = now + (settings.slow_interval if due else share)
        return slow


class MigInstances:
    """Keeps the instances of a GPU. Used by the thread of that GPU."""

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu
        self._instances: dict[_Key, Device] = {}
        self._listed: dict[ListedInstance, _Key] = {}
        self._known: dict[tuple[int, str], tuple[int, int]] = {}
        self._slow_due: dict[_Key, float] = {}

    def sync(self, calls: DeviceCalls, override: PeakOverride | None) -> None:
        """Find the present instances. Raises NvmlError when the GPU is gone."""
        gpu = self._gpu
        listed = list_instances(calls, self._known) if gpu.mig_enabled else ()
        kept: dict[_Key, Device] = {}
        attached: dict[ListedInstance, _Key] = {}
        for entry in listed:
            key = self._listed.get(entry)
            if key is None:
                identity = _identity(gpu.identity, entry, calls)
                key = (entry.uuid, entry.gpu_instance_id, identity.sm_count)
                instance = self._instances.get(key) or Device(identity, gpu.context, SOURCES, gpu)
                self._attach(instance, identity, entry, override)
                self._slow_due[key] = 0.0
            attached[entry] = key
            kept[key] = self._instances.get(key) or instance
            if kept[key].identity.index != gpu.identity.index:
                kept[key].identity = replace(kept[key].identity, index=gpu.identity.index)
        for key, instance in self._instances.items():
            if key not in kept:
                instance.detach()
                self._slow_due.pop(key, None)
                log.info("mig_instance_gone", gpu=gpu.identity.index, uuid=instance.identity.uuid)
        self._instances, self._listed = kept, attached
        gpu.instances = tuple(kept.values())

    def tick(self, sample: ClockSample, settings: SamplingSettings) -> tuple[DeviceState, ...]:
        """Read all instances and account for them. Raises NvmlError when the GPU is gone.

        The clock is the GPU's; an instance has memory, processes and activities of its own.
        """
        states: list[DeviceState] = []
        for key, instance in self._instances.items():
            calls = instance.calls
            assert calls is not None
            instance.accounts.observe_clock(sample)
            instance.choose_source()
            fast = FastReading(at_seconds=sample.at_seconds, **read_memory(calls))
            fast, window = instance.measure(fast, settings)
            if sample.at_seconds >= self._slow_due[key]:
                self._slow_due[key] = sample.at_seconds + settings.slow_interval
                instance.slow = replace(
                    instance.slow, at_seconds=sample.at_seconds, **read_processes(calls)
                )
            states.append(instance.account(fast, window, settings))
        return tuple(states)

    def lost(self, *, driver_is_gone: bool) -> tuple[DeviceState, ...]:
        """Detach the instances with their GPU, but keep their accounts."""
        for instance in self._instances.values():
            instance.detach(driver_is_gone=driver_is_gone)
        self._listed = {}
        return tuple(instance.state(up=False) for instance in self._instances.values())

    def revalue(self, override: PeakOverride | None) -> None:
        """Apply other configured peaks of the GPU."""
        for instance in self._instances.values():
            instance.revalue(instance_peaks(self._gpu.identity, instance.identity, override))

    def _attach(
        self,
        instance: Device,
        identity: DeviceIdentity,
        listed: ListedInstance,
        override: PeakOverride | None,
    ) -> None:
        """Use the instance's current handle; its GPM samples start over."""
        gpu = self._gpu
        assert gpu.calls is not None
        instance.detach()
        instance.attach(
            identity,
            instance_peaks(gpu.identity, identity, override),
            DeviceCalls(listed.handle, device=f"{identity.index}/{listed.uuid}"),
            instance_sessions(gpu.calls.handle, listed.handle, listed.gpu_instance_id),
        )
        log.info(
            "mig_instance_opened",
            gpu=identity.index,
            mig=identity.mig,
            uuid=listed.uuid,
            sm_count=identity.sm_count,
        )


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
