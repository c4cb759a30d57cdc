"""One simulated GPU: its load, its identity, its MIG instances."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tests.fake_nvml import layout
from tests.fake_nvml.loads import Load
from tests.fake_nvml.mig import MigInstance
from tests.fake_nvml.profiles import ARCHITECTURES, GpuProfile
from tests.fake_nvml.schedule import LoadSchedule, Truth


_GPM = {"none": layout.GPM_NONE, "percent": layout.GPM_PERCENT, "cycles": layout.GPM_CYCLES}
_NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")


class FakeGpu:
    """One simulated GPU, by its slot: the place in `FakeNvml`'s list, which no reordering changes."""

    def __init__(
        self, slot: int, profile: GpuProfile, shared: layout.Gpu, schedules: Any, begin_ns: int
    ) -> None:
        self.slot = slot
        self.profile = profile
        self.shared = shared
        self._loads = LoadSchedule(
            schedules[slot * layout.SCHEDULES_PER_GPU], profile.idle(), begin_ns
        )
        self._instance_loads = [
            LoadSchedule(
                schedules[slot * layout.SCHEDULES_PER_GPU + 1 + number], profile.idle(), begin_ns
            )
            for number in range(layout.MAX_INSTANCES)
        ]
        self._fill()

    @property
    def uuid(self) -> str:
        """The UUID that NVML gives."""
        return bytes(self.shared.uuid).decode()

    def set_load(self, load: Load, at_monotonic_ns: int | None = None) -> int:
        """Change to `load` now, or at a later moment of CLOCK_MONOTONIC; returns that moment."""
        return self._loads.set_load(load, at_monotonic_ns)

    def truth(self, begin_ns: int, end_ns: int) -> Truth:
        """What happened on the whole GPU between two moments of CLOCK_MONOTONIC."""
        return self._loads.truth(begin_ns, end_ns)

    def instance_loads(self, gpu_instance_id: int) -> LoadSchedule:
        """The load schedule of a MIG instance, by its GPU instance id."""
        for number, instance in enumerate(self.shared.instances):
            if instance.in_use and instance.gpu_instance_id == gpu_instance_id:
                return self._instance_loads[number]
        raise ValueError(f"GPU {self.slot} has no GPU instance {gpu_instance_id}")

    def set(self, **members: float | Sequence[int]) -> None:
        """Set any number of `layout.Gpu`, for example `pcie_replays=3` or `gpm_collapse=1`."""
        for name, value in members.items():
            current = getattr(self.shared, name)
            if isinstance(value, Sequence):
                current[: len(value)] = list(value)
            else:
                setattr(self.shared, name, value)

    def set_mig(self, instances: Sequence[MigInstance] | None) -> None:
        """Turn MIG on with these instances (none given yet: an empty list), or off with None."""
        self.shared.mig_mode = self.shared.mig_mode_pending = int(instances is not None)
        for number, shared in enumerate(self.shared.instances):
            shared.in_use = 0
            shared.generation += 1
            if number < len(instances or ()):
                (instances or ())[number].fill(shared, self.uuid, self.profile.name)
                self._instance_loads[number].set_load(self.profile.idle())
                shared.in_use = 1

    def restart_energy(self) -> None:
        """Count energy from zero again, as after a driver reload."""
        joules = self._loads.truth(0, time.monotonic_ns()).energy_joules
        self.shared.energy_offset_joules = -joules

    def _fill(self) -> None:
        profile, shared, slot = self.profile, self.shared, self.slot
        members = {name for name, *_ in layout.Gpu._fields_}
        for entry in fields(profile):
            if entry.name in members - {"architecture"}:
                value = getattr(profile, entry.name)
                setattr(shared, entry.name, value.encode() if isinstance(value, str) else value)
        shared.is_present = 1
        shared.architecture = ARCHITECTURES[profile.architecture]
        made_up = uuid.uuid5(_NAMESPACE, f"{profile.name} {slot}")
        shared.uuid = (profile.uuid or f"GPU-{made_up}").encode()
        shared.serial = (profile.serial or str(1_650_000_000_000 + slot)).encode()
        shared.pci_bus = profile.pci_bus or 0x0F + 0x10 * slot
        shared.minor_number = slot
        shared.numa_node = slot // 4
        limit_mw = profile.power_limit_watts * 1000
        shared.power_limit_mw = shared.power_limit_default_mw = shared.power_limit_max_mw = limit_mw
        shared.power_limit_min_mw = profile.power_limit_min_watts * 1000
        shared.module_power_limit_mw = profile.module_power_limit_watts * 1000
        shared.energy_offset_joules = 512_345.678
        shared.ecc_mode_pending = shared.ecc_mode
        shared.gpm_mode = _GPM[profile.gpm_support]
        shared.gpm_sum_over_sms = int(profile.cycles_mode == "sum")
        shared.remap_histogram[0] = 640
        shared.fabric_health_mask = 0x2 if profile.fabric_state else 0  # not degraded
        for link in range(profile.nvlink_count):
            shared.links[link].up = 1
        for field_id, code in profile.field_codes.items():
            shared.field_profile_code[field_id] = code
        for metric_id, code in profile.metric_codes.items():
            shared.metric_profile_code[metric_id] = code
