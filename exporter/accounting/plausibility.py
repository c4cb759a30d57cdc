"""Finds values that a driver reports and that cannot be true.

Seen in the field: utilization latched at 100 % after work has ended (GSP firmware), profiling
counters that answer only zeros after an Xid or under another profiler, counters that are stuck
while clocks run, counters that jump by the width of a register. One reading proves nothing, so
contradictions count only when they last; what is then known to be false is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from exporter.accounting.device import COARSE_SOURCE, NVML_TRAFFIC
from exporter.readings import SM_ACTIVITIES, ActivityWindow, FastReading


class Inconsistency(StrEnum):
    """A contradiction between the values of a device."""

    UTILIZATION_LATCHED = "utilization_latched"
    ACTIVITY_SILENT = "activity_silent"
    UTILIZATION_OR_ACTIVITY = "utilization_or_activity"  # they exclude each other
    COUNTER_FROZEN = "counter_frozen"
    COUNTER_JUMPED = "counter_jumped"
    COUNTER_FELL = "counter_fell"


@dataclass(frozen=True, slots=True)
class PlausibleTick:
    """A tick without its false values, and these by the name of the value."""

    fast: FastReading
    window: ActivityWindow | None
    false: Mapping[str, Inconsistency]


# A contradiction must last this long and be seen this often: NVML's utilization lags by up to a
# second behind the activities that GPM counts.
_LASTING_SECONDS = 3.0
_LASTING_READINGS = 3
_BUSY = 0.5
# Below this, an activity is zero: one block on one of 200 SMs for a thousandth of the time is more.
_NOTHING = 1e-6
# Of the power limit. Idle boards draw 10 to 20 % (H100 70 of 700 W), small ones that hold a context
# up to 40 % (L4, T4: 30 of 70 W); busy boards at their usual clocks draw half of the limit or more.
_POWER_IDLE, _POWER_WORKING, _POWER_WORKING_ALONE = 0.3, 0.5, 0.7

_FROZEN_SECONDS = 10.0
_FROZEN_POWER_WATTS = 1.0
# No board or link is this fast; a register's width is far above it.
_ENERGY_RATE_MAX = 5e3  # W, or three times the power limit
_TRAFFIC_RATE_MAX = 4e12  # bytes/s


class Plausibility:
    """Judges the ticks of one device, in their order. Used by one thread."""

    def __init__(self) -> None:
        self._utilizations: list[float] = []
        self._powers: list[float] = []
        self._readings = 0
        self._streak_seconds = 0.0
        self._streak_readings = 0
        self._verdict: Inconsistency | None = None
        self._counters: dict[str, _WatchedCounter] = {}

    def restart(self) -> None:
        """After a gap: earlier observations prove nothing."""
        self._utilizations.clear()
        self._powers.clear()
        self._readings = self._streak_readings = 0
        self._streak_seconds = 0.0
        self._verdict = None
        self._counters.clear()

    def judge(
        self,
        fast: FastReading,
        window: ActivityWindow | None,
        power_limit_watts: float | None,
    ) -> PlausibleTick:
        """Remove impossible values from a tick. `window` is the one that ended with it, if any."""
        false: dict[str, Inconsistency] = {}
        fast = self._without_false_counters(fast, power_limit_watts, false)
        self._readings += 1
        if fast.gpu_utilization is not None:
            self._utilizations.append(fast.gpu_utilization)
        if fast.power_watts is not None:
            self._powers.append(fast.power_watts)
        utilization = _mean(self._utilizations)
        if window is not None and window.source != COARSE_SOURCE:
            self._weigh(window, utilization, power_limit_watts)
            self._utilizations.clear()
            self._powers.clear()
            self._readings = 0
        if self._verdict in (
            Inconsistency.UTILIZATION_LATCHED,
            Inconsistency.UTILIZATION_OR_ACTIVITY,
        ):
            fast = replace(fast, gpu_utilization=None)
            false["utilization"] = self._verdict
        if self._verdict in (Inconsistency.ACTIVITY_SILENT, Inconsistency.UTILIZATION_OR_ACTIVITY):
            if window is not None and window.source != COARSE_SOURCE:
                believed = utilization if self._verdict is Inconsistency.ACTIVITY_SILENT else None
                window = without_activity(window, believed)
            false["activity"] = self._verdict
        return PlausibleTick(fast, window, false)

    def _weigh(
        self, window: ActivityWindow, utilization: float | None, power_limit_watts: float | None
    ) -> None:
        """Decide by this window and earlier ones whether a value is false, and which."""
        power = _mean(self._powers)
        share = power / power_limit_watts if power is not None and power_limit_watts else None
        if not (is_silent(window) and _at_work(utilization, share)):
            self._streak_seconds = 0.0
            self._streak_readings = 0
            self._verdict = None
            return
        self._streak_seconds += window.seconds
        self._streak_readings += self._readings
        lasting = self._streak_seconds >= _LASTING_SECONDS
        if not lasting or self._streak_readings < _LASTING_READINGS:
            return
        if utilization is None or (share is not None and share >= _POWER_WORKING):
            self._verdict = Inconsistency.ACTIVITY_SILENT
        elif share is not None and share <= _POWER_IDLE:
            self._verdict = Inconsistency.UTILIZATION_LATCHED
        else:
            self._verdict = Inconsistency.UTILIZATION_OR_ACTIVITY

    def _without_false_counters(
        self,
        fast: FastReading,
        power_limit_watts: float | None,
        false: dict[str, Inconsistency],
    ) -> FastReading:
        left_out: dict[str, Any] = {}
        works = fast.power_watts is not None and fast.power_watts > _FROZEN_POWER_WATTS
        rate = max(_ENERGY_RATE_MAX, 3 * (power_limit_watts or 0.0))
        for name, rate_max, must_grow in (
            ("energy_joules", rate, works),
            *((name, _TRAFFIC_RATE_MAX, False) for name in NVML_TRAFFIC),
        ):
            value: float | None = getattr(fast, name)
            if value is None:
                continue
            counter = self._counters.setdefault(name, _WatchedCounter())
            verdict = counter.judge(
                value,
                fast.at_seconds,
                rate_max,
                must_grow=must_grow,
                wraps=name in NVML_TRAFFIC,
            )
            if verdict is not None:
                left_out[name] = None
                false[name] = verdict
        return replace(fast, **left_out) if left_out else fast


class _WatchedCounter:
    """The last accepted value of a counter, and since when it has not moved.

    A lower value is a reset of the device or a wrong reading: the next one decides.
    """

    __slots__ = ("_at", "_fell", "_moved_at", "_value")

    def __init__(self) -> None:
        self._value: float | None = None
        self._at = 0.0
        self._moved_at = 0.0
        self._fell = False

    def judge(
        self, value: float, at_seconds: float, rate_max: float, *, must_grow: bool, wraps: bool
    ) -> Inconsistency | None:
        """None for a value that may be true. `wraps`: the register is small, and falls by itself."""
        fell_before, self._fell = self._fell, self._value is not None and value < self._value
        if self._fell and not fell_before and not wraps:
            return Inconsistency.COUNTER_FELL
        if self._value is None or value < self._value:  # the first, or a reset of the device
            self._value, self._at, self._moved_at = value, at_seconds, at_seconds
            self._fell = False
            return None
        if value - self._value > rate_max * (at_seconds - self._at + 1.0):
            return Inconsistency.COUNTER_JUMPED
        if value > self._value or not must_grow:
            self._moved_at = at_seconds
        self._value, self._at = value, at_seconds
        if at_seconds - self._moved_at >= _FROZEN_SECONDS:
            return Inconsistency.COUNTER_FROZEN
        return None


def is_silent(window: ActivityWindow) -> bool:
    """Whether a window shows no work at all on the SMs."""
    busiest = window.sm if window.sm is not None else window.graphics
    return busiest is not None and max(busiest, window.tensor or 0.0) <= _NOTHING


def _at_work(utilization: float | None, power_share: float | None) -> bool:
    """Whether utilization says that kernels run; without it, whether power proves it."""
    if utilization is None:
        return power_share is not None and power_share >= _POWER_WORKING_ALONE
    return utilization >= _BUSY


def without_activity(window: ActivityWindow, utilization: float | None) -> ActivityWindow:
    """The window without false values: only its time, if graphics activity is zero too."""
    nothing: dict[str, Any] = dict.fromkeys(SM_ACTIVITIES)
    if window.graphics is not None and window.graphics > _NOTHING:
        return replace(window, **nothing)
    return replace(window, **nothing, source=COARSE_SOURCE, graphics=utilization, dram=None)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
