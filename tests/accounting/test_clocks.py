"""The mean clock of a window, and what limited it."""

import pytest

from exporter.accounting.time_split import EVENT_REASONS, summarise_clocks
from exporter.readings import ClockSample


IDLE, POWER = EVENT_REASONS["gpu_idle"], EVENT_REASONS["sw_power_cap"]
HEAT = EVENT_REASONS["hw_thermal_slowdown"]


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
