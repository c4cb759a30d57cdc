"""What accounting hands to the exposition: one frozen value per device and tick."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.accounting.counters import HistogramValue
from exporter.accounting.device import Counters, LastWindow
from exporter.accounting.peaks import Peaks
from exporter.readings import DeviceIdentity, FastReading, SlowReading


# Stands for a device, or its UUID, that the driver has not named yet.
UNKNOWN = "unknown"
UNKNOWN_KEY = (UNKNOWN, UNKNOWN)


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """How a source fares on one device. Errors are counted by reason since the daemon started.

    `missing_fields` are those that it does not give now, and would be better with.
    """

    up: bool
    last_success_unix_seconds: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    missing_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class XidCounts:
    """XID events of one device since the daemon started: how many by code, and when last."""

    counts: Mapping[int, int] = field(default_factory=dict)
    last_unix_seconds: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """One device as of its last tick. `at_seconds` is that tick on the monotonic clock.

    `up` is False when the last tick failed; readings are then None, and only health is exposed.
    `instances` are the GPU's MIG instances; each is a device of its own in HostSnapshot.
    `max_age_seconds` is how long the readings may be shown without a newer tick.
    """

    identity: DeviceIdentity
    at_seconds: float
    up: bool
    max_age_seconds: float
    peaks: Peaks | None = None
    precision: str | None = None
    precision_origin: str = "default"
    fast: FastReading | None = None
    slow: SlowReading | None = None
    last: LastWindow | None = None
    counters: Counters = field(default_factory=Counters)
    sources: Mapping[str, SourceHealth] = field(default_factory=dict)
    xids: XidCounts = field(default_factory=XidCounts)
    tick_duration: HistogramValue | None = None
    ticks_missed: int = 0
    instances: tuple["DeviceSnapshot", ...] = ()


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """All devices of a host at one instant.

    `hung` holds the keys (index and UUID) of devices with a driver call over its deadline, those of
    a GPU's instances with it, and that of an unknown one while the driver is asked for the devices
    there are; `pending` is True until the driver has said for the first time which devices there are. `driver_error` is why it
    last said that there are none, in NVML's words.
    """

    devices: tuple[DeviceSnapshot, ...]
    hung: frozenset[tuple[str, str]]
    pending: bool
    now_seconds: float
    driver_error: str | None = None
