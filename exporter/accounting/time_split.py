"""Where the time of a window went: the states of `flopwatch_gpu_seconds_total`.

With c the clock over its maximum and g >= s >= t the shares of graphics, SM and tensor activity:

    tensor      c t
    memory      c (s - t) m        m = min(1, (b / s) / a)
    stall       c (s - t) (1 - m)
    underfill   c (g - s)
    idle        c (1 - g), and the part of 1 - c for which the GPU idled its clock
    clock_*     the rest of 1 - c, by cause

b is the share of the DRAM bandwidth used, a the share that can be reached. The telescoping from
peak to useful work follows OFU (arXiv 2605.20799); splitting its steps into states that sum to
elapsed time is ours. A state that the device's counters cannot tell from its neighbours goes to
`unresolved` together with them.

c and the causes of 1 - c come from samples of the SM clock. Clock event reasons are NVML's bit mask
(nvml.h, nvmlClocksEventReasons).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from exporter.readings import ActivityWindow, ClockSample


# Share of the theoretical DRAM bandwidth that a copy reaches, when no probe has measured it:
# data-sheet HBM and GDDR parts reach 0.90 to 0.94 in STREAM-like copies (BabelStream, MAMF tables).
REACHABLE_BANDWIDTH = 0.92

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


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Seconds by state; they sum to the window."""

    tensor: float = 0.0
    memory: float = 0.0
    stall: float = 0.0
    underfill: float = 0.0
    idle: float = 0.0
    clock_power: float = 0.0
    clock_thermal: float = 0.0
    clock_other: float = 0.0
    unresolved: float = 0.0


STATE_NAMES = tuple(field.name for field in fields(TimeSplit))


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


def split_time(
    window: ActivityWindow,
    clock: ClockWindow,
    max_hertz: float | None,
    *,
    reachable_bandwidth: float = REACHABLE_BANDWIDTH,
) -> TimeSplit:
    """Split the window's seconds by state. Missing activities move time to `unresolved`.

    Activities are clamped to 0..1, s and g are raised to what t and s demand, the clock is clamped
    to its maximum: the states sum to the window for any input.
    """
    seconds = window.seconds
    clock_share = 1.0
    if clock.mean_hertz is not None and max_hertz:
        clock_share = min(1.0, max(0.0, clock.mean_hertz / max_hertz))
    lost = seconds * (1.0 - clock_share)
    running = seconds * clock_share
    busy = _busy_states(window, running, reachable_bandwidth)
    return replace(
        busy,
        idle=busy.idle + lost * clock.idle,
        clock_power=lost * clock.power,
        clock_thermal=lost * clock.thermal,
        clock_other=lost * clock.other,
    )


def _busy_states(window: ActivityWindow, running: float, reachable_bandwidth: float) -> TimeSplit:
    """Split `running` seconds (those at full clock) by activity; the parts sum to `running`."""
    graphics = _share(window.graphics)
    sm = _share(window.sm)
    tensor = _share(window.tensor)
    if graphics is None and sm is None and tensor is None:
        return TimeSplit(unresolved=running)
    # An inner activity bounds the outer ones from below. `graphics` is a share of time, the others
    # are shares of cycles: in a window that was idle at a low clock and busy at a high one, the
    # share of cycles is rightly the larger, and the one that the clock factor belongs to.
    known_tensor = tensor or 0.0
    known_sm = max(sm or 0.0, known_tensor)
    known_graphics = max(graphics or 0.0, known_sm)
    outside_graphics = running * (1.0 - known_graphics)
    idle, unresolved = (0.0, outside_graphics) if graphics is None else (outside_graphics, 0.0)
    outside_sm = running * (known_graphics - known_sm)
    beside_tensor = running * (known_sm - known_tensor)
    underfill = memory = stall = 0.0
    if sm is None:
        unresolved += outside_sm + beside_tensor
    else:
        underfill = outside_sm
        bound = _memory_share(_share(window.dram), known_sm, reachable_bandwidth)
        if tensor is None or bound is None:
            unresolved += beside_tensor
        else:
            memory = beside_tensor * bound
            stall = beside_tensor * (1.0 - bound)
    return TimeSplit(
        tensor=running * known_tensor,
        memory=memory,
        stall=stall,
        underfill=underfill,
        idle=idle,
        unresolved=unresolved,
    )


def _memory_share(dram: float | None, sm: float, reachable_bandwidth: float) -> float | None:
    """Share of the SMs' waiting explained by memory: DRAM's share of its reachable bandwidth."""
    if dram is None:
        return None
    if sm <= 0:
        return 0.0
    return min(1.0, dram / sm / reachable_bandwidth)


def _share(value: float | None) -> float | None:
    return None if value is None else min(1.0, max(0.0, value))
