"""The SM clock over a window, and what held it below its maximum.

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

    Each sample stands for the time nearer to it than to its neighbours. A cause weighs with the
    clock that was missing while its reason bits were set; without any loss, with time.
    """
    weighted: list[tuple[float, ClockSample]] = _weights(samples, start_seconds, end_seconds)
    clocked = [(weight, s.sm_clock_hertz) for weight, s in weighted if s.sm_clock_hertz is not None]
    total = sum(weight for weight, _hertz in clocked)
    mean = sum(weight * hertz for weight, hertz in clocked) / total if total > 0 else None
    causes = {"idle": 0.0, "power": 0.0, "thermal": 0.0, "other": 0.0}
    for weight, sample in weighted:
        loss = 1.0
        if max_hertz and sample.sm_clock_hertz is not None:
            # The floor keeps the reasons of a window without any loss: rounding may leave a trace.
            loss = max(1.0 - sample.sm_clock_hertz / max_hertz, 1e-9)
        for cause, share in _causes(sample.event_reasons).items():
            causes[cause] += weight * loss * share
    lost = sum(causes.values())
    if lost <= 0:
        return ClockWindow(mean_hertz=mean)
    return ClockWindow(
        mean_hertz=mean,
        idle=causes["idle"] / lost,
        power=causes["power"] / lost,
        thermal=causes["thermal"] / lost,
        other=causes["other"] / lost,
    )


def _causes(event_reasons: int | None) -> dict[str, float]:
    """Which cause holds the clock: heat and power first, then idleness, then anything else."""
    mask = event_reasons or 0
    held = [cause for cause, bits in (("power", _POWER), ("thermal", _THERMAL)) if mask & bits]
    if held:
        return {cause: 1.0 / len(held) for cause in held}
    return {"idle": 1.0} if mask & _IDLE else {"other": 1.0}


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
