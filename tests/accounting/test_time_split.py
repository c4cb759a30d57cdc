"""Where the time of a window went, its mean clock and what limited that."""

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.accounting.time_split import EVENT_REASONS, ClockWindow, split_time, summarise_clocks
from exporter.readings import ActivityWindow, ClockSample


MAX = 2e9
AT_MAX = ClockWindow(mean_hertz=MAX, idle=0, power=0, thermal=0, other=1)
IDLE, POWER = EVENT_REASONS["gpu_idle"], EVENT_REASONS["sw_power_cap"]
HEAT = EVENT_REASONS["hw_thermal_slowdown"]

# Anything a driver may answer: shares, nonsense beyond them, and nothing at all.
activity = st.none() | st.floats(min_value=-0.5, max_value=1.5)
windows = st.builds(
    ActivityWindow,
    source=st.just("gpm"),
    start_seconds=st.just(100.0),
    end_seconds=st.floats(min_value=100.001, max_value=200),
    graphics=activity,
    sm=activity,
    tensor=activity,
    dram=activity,
)


@st.composite
def clocks(draw: st.DrawFn) -> ClockWindow:
    weights = [draw(st.floats(min_value=0, max_value=1)) for _cause in range(3)]
    total = max(1.0, sum(weights))
    idle, power, thermal = (weight / total for weight in weights)
    hertz = draw(st.none() | st.floats(min_value=0, max_value=3e9))
    return ClockWindow(hertz, idle, power, thermal, 1 - idle - power - thermal)


def window(**shares: float | None) -> ActivityWindow:
    return ActivityWindow("gpm", 0.0, 10.0, **shares)


def test_a_decode_step_at_full_clock() -> None:
    """97 % busy, SMs 84 %, tensor 11 %, DRAM 71 % of theoretical: worked by hand over 10 s."""
    split = split_time(window(graphics=0.97, sm=0.84, tensor=0.11, dram=0.71), AT_MAX, MAX)

    # memory: (0.84 - 0.11) x min(1, 0.71 / 0.84 / 0.92) = 0.73 x 0.918737
    assert split.tensor == pytest.approx(1.1)
    assert split.memory == pytest.approx(7.3 * 0.918737, rel=1e-5)
    assert split.stall == pytest.approx(7.3 * (1 - 0.918737), rel=1e-4)
    assert split.underfill == pytest.approx(1.3)
    assert split.idle == pytest.approx(0.3)
    assert split.unresolved == 0


def test_a_clock_held_down_takes_its_share_of_everything() -> None:
    """At three quarters of the clock a quarter of the time is lost to what held it."""
    clock = ClockWindow(mean_hertz=1.5e9, idle=0, power=0.8, thermal=0.2, other=0)

    split = split_time(window(graphics=1, sm=1, tensor=1, dram=0), clock, MAX)

    assert split.tensor == pytest.approx(7.5)
    assert split.clock_power == pytest.approx(2.0)
    assert split.clock_thermal == pytest.approx(0.5)


def test_an_idle_gpu_that_lowered_its_clock_is_idle() -> None:
    """A clock that is low because the GPU is idle is not counted as a loss."""
    clock = ClockWindow(mean_hertz=0.2e9, idle=1, power=0, thermal=0, other=0)

    split = split_time(window(graphics=0, sm=0, tensor=0, dram=0), clock, MAX)

    assert split.idle == pytest.approx(10)


def test_a_clock_above_the_maximum_loses_nothing() -> None:
    """NVML's maximum is below the real boost on some boards."""
    clock = ClockWindow(mean_hertz=2.1e9, idle=0, power=1, thermal=0, other=0)

    split = split_time(window(graphics=1, sm=1, tensor=0.5, dram=0), clock, MAX)

    assert split.tensor == pytest.approx(5)
    assert split.clock_power == 0


def test_reachable_bandwidth_measured_by_a_probe_replaces_the_default() -> None:
    """A board that reaches only 80 % of its bandwidth is memory-bound at 80 %."""
    split = split_time(
        window(graphics=1, sm=1, tensor=0, dram=0.8), AT_MAX, MAX, reachable_bandwidth=0.8
    )

    assert split.memory == pytest.approx(10)
    assert split.stall == pytest.approx(0)


@pytest.mark.parametrize(
    ("shares", "unresolved", "idle"),
    [
        ({}, 10.0, 0.0),
        ({"graphics": 0.6}, 6.0, 4.0),
        ({"graphics": 0.6, "sm": 0.5}, 5.0, 4.0),
        ({"graphics": 0.6, "sm": 0.5, "tensor": 0.2}, 3.0, 4.0),
        ({"graphics": 0.6, "tensor": 0.2, "dram": 0.5}, 4.0, 4.0),
        ({"sm": 0.5, "tensor": 0.2, "dram": 0.0}, 5.0, 0.0),
    ],
    ids=["nothing", "graphics", "no tensor", "no dram", "no sm", "no graphics"],
)
def test_indistinguishable_time_is_unresolved(
    shares: dict[str, float], unresolved: float, idle: float
) -> None:
    """A missing activity moves the time around it to `unresolved`, and no other."""
    split = split_time(window(**shares), AT_MAX, MAX)

    assert split.unresolved == pytest.approx(unresolved)
    assert split.idle == pytest.approx(idle)


def test_a_burst_at_a_high_clock_between_rest_at_a_low_one() -> None:
    """Half the time idle at 0.4 GHz, half busy at 1.6 GHz: 80 % of the cycles in 50 % of the time.

    The tensor pipe worked in half of the busy cycles: 0.5 x 1.6 / 2 of 5 s; idle is the idle half.
    """
    mean = 1.0e9
    lost_idle, lost_busy = 5 * (1 - 0.2), 5 * (1 - 0.8)
    weight = lost_idle / (lost_idle + lost_busy)
    clock = ClockWindow(mean, idle=weight, power=1 - weight, thermal=0, other=0)

    split = split_time(window(graphics=0.5, sm=0.8, tensor=0.4, dram=0), clock, MAX)

    assert split.tensor == pytest.approx(5 * 0.5 * 0.8)
    assert split.idle == pytest.approx(5)
    assert split.clock_power == pytest.approx(5 * 0.2)
    assert split.underfill == 0


@given(windows, clocks(), st.none() | st.floats(min_value=1e8, max_value=3e9))
def test_states_sum_to_the_window_for_any_input(
    window: ActivityWindow, clock: ClockWindow, max_hertz: float | None
) -> None:
    """No state is negative, and they sum to the window."""
    split = split_time(window, clock, max_hertz)

    assert all(seconds >= -1e-9 for seconds in astuple(split))
    assert sum(astuple(split)) == pytest.approx(window.seconds, rel=1e-9)


@given(windows, clocks(), st.floats(min_value=0.01, max_value=0.99))
def test_a_window_cut_in_two_gives_the_same_sums(
    window: ActivityWindow, clock: ClockWindow, cut: float
) -> None:
    """Accounting more often changes nothing when nothing changed meanwhile."""
    middle = window.start_seconds + cut * window.seconds
    shares = {name: getattr(window, name) for name in ("graphics", "sm", "tensor", "dram")}
    first = split_time(ActivityWindow("gpm", window.start_seconds, middle, **shares), clock, MAX)
    second = split_time(ActivityWindow("gpm", middle, window.end_seconds, **shares), clock, MAX)

    whole = split_time(window, clock, MAX)

    for a, b, c in zip(astuple(first), astuple(second), astuple(whole), strict=True):
        assert a + b == pytest.approx(c, rel=1e-6, abs=1e-9)


def test_each_sample_stands_for_the_time_nearest_to_it() -> None:
    """Samples at 0, 1 and 4 s of a 4 s window weigh 0.5, 2 and 1.5 s."""
    samples = [ClockSample(0, 1e9, 0), ClockSample(1, 2e9, 0), ClockSample(4, 4e9, 0)]

    clock = summarise_clocks(samples, 0, 4, 4e9)

    assert clock.mean_hertz == pytest.approx((0.5 * 1e9 + 2 * 2e9 + 1.5 * 4e9) / 4)


def test_a_sample_before_the_window_is_its_left_edge() -> None:
    """Windows share the sample between them."""
    samples = [ClockSample(9.9, 1e9, 0), ClockSample(11, 2e9, 0)]

    clock = summarise_clocks(samples, 10, 11, 2e9)

    # The edge is halfway, at 10.45 s.
    assert clock.mean_hertz == pytest.approx(0.45 * 1e9 + 0.55 * 2e9)


def test_causes_are_weighted_by_the_clock_that_they_cost() -> None:
    """Half the time idle at a tenth of the clock, half power-capped at nine tenths: 9 to 1."""
    samples = [ClockSample(0, 0.2e9, IDLE), ClockSample(10, 1.8e9, POWER)]

    clock = summarise_clocks(samples, 0, 10, 2e9)

    assert clock.idle == pytest.approx(0.9)
    assert clock.power == pytest.approx(0.1)


def test_heat_and_power_together_share_the_blame() -> None:
    """With both bits set each gets half; the idle bit does not count then."""
    clock = summarise_clocks([ClockSample(0, 1e9, HEAT | POWER | IDLE)], 0, 1, 2e9)

    assert (clock.power, clock.thermal, clock.idle) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    "reasons", [0, None, EVENT_REASONS["applications_clocks_setting"]], ids=["none", "?", "set"]
)
def test_anything_else_is_other(reasons: int | None) -> None:
    """No reason, an unknown reason, or clocks that a user set."""
    assert summarise_clocks([ClockSample(0, 1e9, reasons)], 0, 1, 2e9).other == 1


def test_without_samples_there_is_no_clock() -> None:
    """No clock is invented."""
    assert summarise_clocks([], 0, 1, 2e9).mean_hertz is None
    assert summarise_clocks([ClockSample(0, None, 0)], 0, 1, 2e9).mean_hertz is None
