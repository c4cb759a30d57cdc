"""One device as its sampler publishes it, and all of them together: the samplers' part of the State.

A module of its own, without the other parts, so that sampling can begin before they are loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from exporter.accounting.device import Counters, HistogramValue, LastWindow
from exporter.accounting.peaks import Peaks
from exporter.readings import DeviceIdentity, FastReading, SlowReading


# The UUID of a device that has not answered yet.
UNKNOWN = "unknown"

# Why a device has no readings: the driver lost it, a call does not return, there was no tick for too
# long, or the device has not answered yet.
Absence = Literal["lost", "hung", "stale", "waiting"]
DeviceName = tuple[str, str]  # index and UUID: a device that has not answered has no UUID


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """Health of a source on one device. Errors are counted by reason since the daemon started.

    `missing_fields` are fields that the source should deliver and does not.
    """

    up: bool
    last_success_unix_seconds: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    missing_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class XidCounts:
    """XID events of one device since the daemon started: the count and the last time by code."""

    counts: Mapping[int, int] = field(default_factory=dict)
    last_unix_seconds: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device as of its last tick. `at_seconds` is that tick on the monotonic clock.

    A sampler publishes it with `up` True after a good tick. In a State, `up` means that the readings
    are fresh; where it is False, `absent` says why, all readings are None, and only identity and
    health are left. `max_age_seconds` is how long readings may be shown without a newer tick.
    `instances` are a GPU's MIG instances; each is also a device of its own in State.devices.
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
    instances: tuple["DeviceState", ...] = ()
    absent: Absence | None = None

    @property
    def is_processor(self) -> bool:
        """Whether it is the host processor, not a GPU."""
        return self.identity.index.startswith("cpu")

    def without_readings(self, why: Absence) -> "DeviceState":
        """The device with its identity and health, without readings."""
        sources = {
            name: replace(health, up=False, missing_fields=())
            for name, health in self.sources.items()
        }
        return DeviceState(
            identity=self.identity,
            at_seconds=self.at_seconds,
            up=False,
            max_age_seconds=self.max_age_seconds,
            sources=sources,
            xids=self.xids,
            tick_duration=self.tick_duration,
            ticks_missed=self.ticks_missed,
            absent=why,
        )


@dataclass(frozen=True, slots=True)
class SampledHost:
    """The samplers' part: the last DeviceState of each GPU and of the processor, as published.

    `hung` holds index and UUID of devices whose driver call has passed its deadline. `driver_hung`
    is True while the driver does not list its devices, `pending` until it first has; `driver_error`
    is why it last reported none, in NVML's words.
    """

    devices: tuple[DeviceState, ...] = ()
    hung: frozenset[DeviceName] = frozenset()
    pending: bool = False
    driver_hung: bool = False
    driver_error: str | None = None
