"""The State: one frozen snapshot of everything known about the host.

Samplers and services publish their parts. `build_state` combines them into a State and applies the
freshness rule, which is applied nowhere else: a device that is lost, hung or stale has no readings
and no probe values. Everything downstream reads the State and nothing else.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from exporter.accounting.processor import held_peaks
from exporter.attribution.snapshot import Bill, DeviceKey, HoldersSnapshot
from exporter.device_state import UNKNOWN, DeviceName, DeviceState, SampledHost
from exporter.inference.snapshot import WorkloadsSnapshot
from probes.records import ProbeResults, ProbesSnapshot


# Probes, workloads and holders change at their own pace: their parts are collected this often.
_PARTS_SECONDS = 1.0
# A copy probe that reached less than half of the theoretical bandwidth, or more than all of it,
# reflects the probe and not the memory.
_REACHABLE_BANDWIDTH_RANGE = (0.5, 1.0)


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """Whether the last load of the configuration succeeded, and when one last did (Unix time)."""

    successful: bool
    last_success_unix_seconds: float


@dataclass(frozen=True, slots=True)
class Parts:
    """What a State is built from. `precisions` are those that engines serve in, by device UUID.

    `calibration` is the signed error of the FLOP counter by device UUID and precision.
    """

    host: SampledHost = field(default_factory=SampledHost)
    probes: ProbesSnapshot = field(default_factory=lambda: ProbesSnapshot(False, False))
    workloads: WorkloadsSnapshot = field(default_factory=WorkloadsSnapshot)
    precisions: Mapping[str, str] = field(default_factory=dict)
    holders: HoldersSnapshot = field(default_factory=HoldersSnapshot)
    calibration: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reload: ReloadStatus = field(default_factory=lambda: ReloadStatus(True, 0.0))


@dataclass(frozen=True, slots=True)
class State:
    """The host at one instant, `at_seconds` on the monotonic clock.

    `devices` has each GPU, followed by its MIG instances. `pending`: the driver has not listed its
    devices yet; `hung`: it does not answer that call; `driver_error`: why it last reported none.
    `reachable_bandwidth` is the share of the theoretical DRAM bandwidth that the copy probe
    reached, by UUID. Nothing in it is stale before `valid_until_seconds`.
    """

    at_seconds: float
    devices: tuple[DeviceState, ...] = ()
    pending: bool = False
    hung: bool = False
    driver_error: str | None = None
    probes: ProbesSnapshot = field(default_factory=lambda: ProbesSnapshot(False, False))
    reachable_bandwidth: Mapping[str, float] = field(default_factory=dict)
    workloads: WorkloadsSnapshot = field(default_factory=WorkloadsSnapshot)
    precisions: Mapping[str, str] = field(default_factory=dict)
    holders: HoldersSnapshot = field(default_factory=HoldersSnapshot)
    calibration: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reload: ReloadStatus = field(default_factory=lambda: ReloadStatus(True, 0.0))
    bill: Bill = field(default_factory=Bill)
    valid_until_seconds: float = math.inf
    _by_key: dict[tuple[str, str | None], DeviceState] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    def find(self, key: int | str, mig: str | None = None) -> DeviceState | None:
        """The device of an index or UUID; with `mig`, that GPU instance of it.

        None if there is no such device, or it has not identified itself.
        """
        by_key = self._by_key or self._index()
        found = by_key.get((str(key), None))
        if mig is None or found is None or found.identity.mig == mig:
            return found
        return by_key.get((found.identity.index, mig))

    def _index(self) -> Mapping[tuple[str, str | None], DeviceState]:
        """The devices by UUID, and by index and MIG instance; made when one is first looked up."""
        by_key: dict[tuple[str, str | None], DeviceState] = {}
        for device in self.devices:
            identity = device.identity
            if identity.uuid != UNKNOWN:
                by_key.setdefault((identity.index, identity.mig), device)
                by_key.setdefault((identity.uuid, None), device)
        # All at once: other threads may look one up meanwhile.
        self._by_key.update(by_key)
        return by_key

    def held(self, key: DeviceKey) -> DeviceState | None:
        """The device that a holder names; None where this host does not list it."""
        if key.minor is not None:
            gpu = self._by_minor(key.minor)
        else:
            gpu = self.find(key.uuid or key.index or "")
        if gpu is None or (key.mig is None and key.placement is None):
            return gpu
        if key.mig is not None:
            return self.find(gpu.identity.index, key.mig)
        instances = [
            device
            for device in self.devices
            if device.identity.mig is not None and device.identity.index == gpu.identity.index
        ]
        for instance in instances:
            if instance.identity.placement == key.placement:
                return instance
        # Without privileges the driver does not report placements: a single instance cannot be
        # mistaken.
        only = instances[0] if len(instances) == 1 else None
        return only if only is not None and only.identity.placement is None else None

    def _by_minor(self, minor: str) -> DeviceState | None:
        """A GPU by its device node; by its index if the driver reports no device node."""
        gpus = [device for device in self.devices if device.identity.mig is None]
        if all(device.identity.minor is None for device in gpus):
            return self.find(minor)
        return next((gpu for gpu in gpus if str(gpu.identity.minor) == minor), None)

    def fresh(self, key: int | str, mig: str | None = None) -> DeviceState | None:
        """Like `find`, but also None if the readings of the device are not fresh."""
        found = self.find(key, mig)
        return found if found is not None and found.up else None


def build_state(parts: Parts, now: float) -> State:
    """The State of these parts at `now` (monotonic seconds): the freshness rule is applied here."""
    devices: list[DeviceState] = []
    valid_until = now + _PARTS_SECONDS
    probed = {results.uuid: results for results in parts.probes.devices}
    for published in parts.host.devices:
        gpu = _fresh(published, parts.host.hung, now)
        if gpu.is_processor:
            gpu = _with_held_peaks(gpu, probed.get(gpu.identity.uuid))
        instances = tuple(_fresh(each, parts.host.hung, now) for each in published.instances)
        if gpu.up and instances != published.instances:
            gpu = replace(gpu, instances=instances)
        devices += (gpu, *instances)
        if gpu.up:
            valid_until = min(valid_until, _expires(gpu))
    up = {device.identity.uuid: device for device in devices if device.up}
    probes = tuple(
        results if results.uuid in up else results.without_values()
        for results in parts.probes.devices
    )
    return State(
        at_seconds=now,
        devices=tuple(devices),
        pending=parts.host.pending,
        hung=parts.host.driver_hung,
        driver_error=parts.host.driver_error,
        probes=replace(parts.probes, devices=probes),
        reachable_bandwidth=_reachable_bandwidth(up, probes),
        workloads=parts.workloads,
        precisions=parts.precisions,
        holders=parts.holders,
        calibration=parts.calibration,
        reload=parts.reload,
        valid_until_seconds=valid_until,
    )


class LiveState:
    """Keeps the current State. `latest` is the last one that was built, for callers that must not wait.

    Thread-safe.
    """

    def __init__(
        self,
        parts: Callable[[float], Parts],
        mark: Callable[[float], object],
        *,
        complete: Callable[[State], State] = lambda state: state,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`parts` collects what was published. `mark` is cheap, and changes whenever that changes.

        `complete` adds what depends on the devices of the State: engines' ratios, the bill.
        """
        self._parts = parts
        self._complete = complete
        self._mark = mark
        self._clock = clock
        self._lock = threading.Lock()
        self._built_for: object = None
        self.latest = State(at_seconds=clock(), pending=True, valid_until_seconds=-math.inf)

    def now(self) -> State:
        """The current State: the same object until something changes or a value becomes stale."""
        with self._lock:
            now = self._clock()
            mark = self._mark(now)
            if mark != self._built_for or now >= self.latest.valid_until_seconds:
                self.latest = self._complete(build_state(self._parts(now), now))
                self._built_for = mark
            return self.latest


def _fresh(device: DeviceState, hung: frozenset[DeviceName], now: float) -> DeviceState:
    """The device as shown at `now`."""
    if device.identity.key in hung:
        return device.without_readings("hung")
    if not device.up:
        waiting = device.identity.uuid == UNKNOWN and not device.sources
        return device.without_readings("waiting" if waiting else "lost")
    if now - device.at_seconds > device.max_age_seconds:
        return device.without_readings("stale")
    return device


def _with_held_peaks(device: DeviceState, results: ProbeResults | None) -> DeviceState:
    """A processor's peaks are derived from what is known of its family: probes may correct them."""
    if device.peaks is None or results is None:
        return device
    peaks = held_peaks(
        device.peaks,
        clock_hertz=results.clock_max_hertz,
        measured_flops=results.flops_max,
        measured_bandwidth=results.bandwidth_max_bytes_per_second,
    )
    return replace(device, peaks=peaks, precision=peaks.default_precision)


def _expires(device: DeviceState) -> float:
    """When the device's readings become stale: just after that instant, as `_fresh` has it."""
    return math.nextafter(device.at_seconds + device.max_age_seconds, math.inf)


def _reachable_bandwidth(
    devices: Mapping[str, DeviceState], probes: Iterable[ProbeResults]
) -> dict[str, float]:
    lowest, highest = _REACHABLE_BANDWIDTH_RANGE
    reachable: dict[str, float] = {}
    for results in probes:
        measured = results.bandwidth_bytes_per_second.get(("device", ""))
        device = devices.get(results.uuid)
        peak = device.peaks.dram_bytes_per_second if device and device.peaks else None
        if measured is not None and peak and lowest <= measured / peak <= highest:
            reachable[results.uuid] = measured / peak
    return reachable
