"""A GPU in MIG mode, assembled from the GPM windows of its instances."""

from exporter.accounting.mig import InstanceWindow, memory_share, whole_gpu_window
from exporter.collect.gpm import Gpm
from exporter.collect.settings import SamplingSettings
from exporter.collect.source import ActivitySource
from exporter.readings import ActivityWindow, FastReading


class MigParts(ActivitySource):
    """A whole GPU from the GPM of all its instances, where GPM works only for these."""

    def open(self) -> bool:
        """Whether every instance has GPM: DCGM's windows do not end in the same tick for all."""
        instances = self.device.instances
        return bool(instances) and all(isinstance(each.in_use, Gpm) for each in instances)

    def read(self, fast: FastReading, settings: SamplingSettings) -> ActivityWindow | None:
        """The GPU's window of this tick; None unless every instance has one, and a known size."""
        gpu, sm_count = self.device.identity, self.device.sm_count
        parts: list[InstanceWindow] = []
        for instance in self.device.instances:
            identity = instance.identity
            if instance.window is None or not sm_count or not identity.sm_count:
                return None
            share = memory_share(gpu.memory_size_bytes, identity.memory_size_bytes)
            parts.append(InstanceWindow(instance.window, identity.sm_count / sm_count, share))
        return whole_gpu_window(parts)

    @property
    def open_since_seconds(self) -> float | None:
        """Start of the window that the instances will close together."""
        opened = [
            each.in_use.open_since_seconds if each.in_use is not None else None
            for each in self.device.instances
        ]
        return opened[0] if opened and None not in opened else None
