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
"""

from dataclasses import dataclass, fields

from exporter.accounting.clocks import ClockWindow
from exporter.readings import ActivityWindow


# Share of the theoretical DRAM bandwidth that a copy reaches, when no probe has measured it:
# data-sheet HBM and GDDR parts reach 0.90 to 0.94 in STREAM-like copies (BabelStream, MAMF tables).
REACHABLE_BANDWIDTH = 0.92


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
    return TimeSplit(
        tensor=busy.tensor,
        memory=busy.memory,
        stall=busy.stall,
        underfill=busy.underfill,
        unresolved=busy.unresolved,
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
    # An inner activity bounds the outer ones from below. `graphics` is a share of time, the others
    # are shares of cycles: in a window that was idle at a low clock and busy at a high one, the
    # share of cycles is rightly the larger, and the one that the clock factor belongs to.
    known_tensor = tensor or 0.0
    known_sm = max(sm or 0.0, known_tensor)
    known_graphics = max(graphics or 0.0, known_sm)
    if graphics is None and sm is None and tensor is None:
        return TimeSplit(unresolved=running)
    idle = running * (1.0 - known_graphics) if graphics is not None else 0.0
    unresolved = running * (1.0 - known_graphics) if graphics is None else 0.0
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
