"""The SM clock over a window, and what kept it below its maximum.

Clock event reasons are NVML's bit mask (nvml.h, nvmlClocksEventReasons).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.readings import ClockSample


# NVML's names of the clock event reasons in snake case, by bit.
EVENT_REASONS: dict[str, int] = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clock_setting": 0x100,
}

_POWER = EVENT_REASONS["sw_power_cap"] | EVENT_REASONS["hw_power_brake_slowdown"]
_THERMAL = EVENT_REASONS["sw_thermal_slowdown"] | EVENT_REASONS["hw_thermal_slowdown"]
_IDLE = EVENT_REASONS["gpu_idle"]


@dataclass(frozen=True, slots=True)
class ClockWindow:
    """Mean SM clock over a window, and the shares of the lost clock by cause (they sum to 1).

    `mean_hertz` is None when no sample had a clock.
    """

    mean_hertz: float | None
    idle: float = 0.0
    power: float = 0.0
    thermal: float = 0.0
    other: float = 1.0


def summarise_clocks(
    samples: Sequence[ClockSample],
    start_seconds: float,
    end_seconds: float,
    max_hertz: float | None,
) -> ClockWindow:
    """Mean clock over the window, and the causes of the clock below `max_hertz`.

    Each sample stands for the time nearer to it than to its neighbours. A cause is weighted with
    the clock lost while its reason bits were set, or with time where no clock was lost.
    """
    total = clocked = idle = power = thermal = other = 0.0
    for weight, sample in _weights(samples, start_seconds, end_seconds):
        hertz = sample.sm_clock_hertz
        loss = weight
        if hertz is not None:
            total += weight
            clocked += weight * hertz
            if max_hertz:
                # The floor keeps the reasons of a window without any loss: rounding may leave a trace.
                loss = weight * max(1.0 - hertz / max_hertz, 1e-9)
        mask = sample.event_reasons or 0
        # Heat and power first, then idleness, then anything else.
        if mask & _POWER:
            if mask & _THERMAL:
                loss /= 2
                thermal += loss
            power += loss
        elif mask & _THERMAL:
            thermal += loss
        elif mask & _IDLE:
            idle += loss
        else:
            other += loss
    mean = clocked / total if total > 0 else None
    lost = idle + power + thermal + other
    if lost <= 0:
        return ClockWindow(mean_hertz=mean)
    return ClockWindow(mean, idle / lost, power / lost, thermal / lost, other / lost)


def _weights(
    samples: Sequence[ClockSample], start_seconds: float, end_seconds: float
) -> list[tuple[float, ClockSample]]:
    """Seconds of the window for which each sample stands: up to halfway to its neighbours."""
    weighted: list[tuple[float, ClockSample]] = []
    for position, sample in enumerate(samples):
        left = start_seconds
        if position > 0:
            left = max(left, (samples[position - 1].at_seconds + sample.at_seconds) / 2)
        right = end_seconds
        if position + 1 < len(samples):
            right = min(right, (sample.at_seconds + samples[position + 1].at_seconds) / 2)
        if right > left:
            weighted.append((right - left, sample))
    return weighted
