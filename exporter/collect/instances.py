"""The MIG instances of one GPU: enumerated every tick, each a device with its own accounts.

An instance is identified by its UUID, GPU instance id and size together: ids are reused after a
reconfiguration, and a different instance starts its counters from zero.
"""

from dataclasses import replace

import structlog

from exporter.accounting.mig import instance_peaks
from exporter.accounting.peaks import PeakOverride
from exporter.collect.device import Device
from exporter.collect.nvml.library import DeviceCalls
from exporter.collect.nvml.mig import (
    ListedInstance,
    gpm_sample_methods,
    list_instances,
    read_instance,
)
from exporter.collect.nvml.processes import read_processes
from exporter.collect.nvml.reading import read_memory
from exporter.collect.settings import SamplingSettings
from exporter.device_state import DeviceState
from exporter.readings import ClockSample, DeviceIdentity, FastReading


log = structlog.get_logger(__name__)

_Key = tuple[str, int, int | None]


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
                instance = self._instances.get(key) or Device(identity, gpu.context, gpu)
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
            instance.observe_clock(sample)
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
            gpm_sample_methods(gpu.calls.handle, listed),
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
