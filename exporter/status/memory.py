"""What must survive a restart of the exporter: unrepaired faults, and the start times of findings.

A fault stays until there is evidence of a repair: another boot of the host, or a reset of the GPU. That
a GPU was reset shows in its energy counter, which the driver begins again, and in a pending row
remapping that is done.
"""

import time
from collections.abc import Callable, Iterable

import msgspec

from exporter.device_state import UNKNOWN, DeviceState
from exporter.findings import Finding, Severity
from flopwatch.state_file import StateFile


SECTION = "findings"
# The state file is written when something changed, and this often for the energy counters.
_SAVE_SECONDS = 30.0
_REFRESH_SECONDS = 600.0
# A finding that was absent for less than this has not ended: a reading failed in between.
_GONE_SECONDS = 120.0
# Rounding and a driver's own smoothing; a reset takes away thousands.
_ENERGY_NOISE_JOULES = 10.0


class DeviceMemory(msgspec.Struct):
    """One device. Times are Unix seconds; `uncorrected` is the count of memory errors at the last repair."""

    energy_joules: float | None = None
    reset_at: float | None = None
    uncorrected: float | None = None
    power_limit_watts: float | None = None
    remap_pending: bool = False
    xids: dict[str, float] = {}
    since: dict[str, float] = {}
    seen: dict[str, float] = {}

    def repaired(self, at: float) -> None:
        """The GPU was reset: forget earlier faults."""
        self.reset_at = at
        self.xids = {}
        self.uncorrected = None


class _Section(msgspec.Struct):
    boot_id: str | None = None
    devices: dict[str, DeviceMemory] = {}


class Memory:
    """The memories of all devices by UUID. Not thread-safe: Histories' lock guards it."""

    def __init__(
        self,
        file: StateFile | None = None,
        boot: str | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._wall_clock = wall_clock
        self._saved_at = 0.0
        self._changed = False
        section = (file.read(SECTION, _Section) if file else None) or _Section()
        if boot is not None and section.boot_id != boot:
            for memory in section.devices.values():
                memory.xids, memory.uncorrected, memory.energy_joules = {}, None, None
                memory.remap_pending = False
        self._section = _Section(boot, section.devices)

    def of(self, uuid: str) -> DeviceMemory:
        """The device's memory; a new one where there was none."""
        if uuid == UNKNOWN:
            return DeviceMemory()
        return self._section.devices.setdefault(uuid, DeviceMemory())

    def forget(self, uuid: str) -> None:
        """Forget a device that is permanently gone."""
        self._changed |= self._section.devices.pop(uuid, None) is not None

    def observe(self, device: DeviceState) -> None:
        """Take the device's next state."""
        memory = self.of(device.identity.uuid)
        fast, slow = device.fast, device.slow
        energy = fast.energy_joules if fast is not None else None
        before, pending = memory.energy_joules, memory.remap_pending
        done = slow is not None and pending and slow.row_remap_pending is False
        if energy is not None and before is not None and energy < before - _ENERGY_NOISE_JOULES:
            done = True
        if done:
            memory.repaired(self._wall_clock())
            self._changed = True
        if energy is not None:
            memory.energy_joules = energy
        for code, at in device.xids.last_unix_seconds.items():
            if at > max(memory.xids.get(str(code), 0.0), memory.reset_at or 0.0):
                memory.xids[str(code)] = at
                self._changed = True
        if slow is None:
            return
        if slow.row_remap_pending is not None and slow.row_remap_pending != pending:
            memory.remap_pending = slow.row_remap_pending
            self._changed = True
        errors = slow.ecc_errors.get("uncorrected")
        if errors is not None and memory.uncorrected is None:
            memory.uncorrected = errors
            self._changed = True
        limit = slow.power_limit_watts
        if limit is not None and limit > (memory.power_limit_watts or 0.0):
            memory.power_limit_watts = limit
            self._changed = True

    def judged(self, uuid: str, findings: Iterable[Finding]) -> dict[str, float]:
        """Since when each kind holds (Unix seconds), now that these do."""
        memory, now = self.of(uuid), self._wall_clock()
        held = {found.kind: found.severity for found in findings}
        for kind, severity in held.items():
            memory.seen[kind] = now
            if kind not in memory.since:
                memory.since[kind] = now
                self._changed |= severity is not Severity.INFO
        for kind in [
            kind for kind in memory.since if now - memory.seen.get(kind, now) > _GONE_SECONDS
        ]:
            del memory.since[kind]
            memory.seen.pop(kind, None)
            self._changed = True
        for kind in memory.since:  # as loaded from the file: its grace period begins now
            memory.seen.setdefault(kind, now)
        return {kind: memory.since[kind] for kind in held}

    def save(self) -> None:
        """Write the state file if there is something to write, and not too often."""
        now = self._wall_clock()
        patience = _SAVE_SECONDS if self._changed else _REFRESH_SECONDS
        if self._file is None or now - self._saved_at < patience or not self._section.devices:
            return
        self._saved_at, self._changed = now, False
        self._file.save(SECTION, self._section)
