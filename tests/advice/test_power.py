"""The clock under a power limit, worked by hand from f V² above idle power."""

import pytest

from benchmarks.levers import published
from exporter.advice.levers.hardware import clock_at
from exporter.advice.prediction import Inapplicable, Interval


def test_the_same_limit_keeps_the_clock() -> None:
    assert clock_at(500.0, draw_watts=500.0, clock_ratio=0.8, board_watts=700.0) == pytest.approx(
        (0.8, 0.8)
    )


def test_a_limit_above_what_full_clocks_draw_gives_full_clocks() -> None:
    assert clock_at(900.0, draw_watts=500.0, clock_ratio=0.9, board_watts=700.0) == (1.0, 1.0)


def test_the_lower_end_is_the_highest_idle_power_and_the_steepest_dynamic_power() -> None:
    """700 W board, 140 W idle, voltage nearly constant (v0 = 0.7): at 640 W 500 W are dynamic.

    250 W of them at half the dynamic power: f (0.7 + 0.3 f)² = 0.5 gives f = 0.6319; with 70 W idle
    and v0 = 0.5, 320 of 570 W: f (0.5 + 0.5 f)² = 0.5614 gives 0.7409. The span holds both.
    """
    clocks = clock_at(390.0, draw_watts=640.0, clock_ratio=1.0, board_watts=700.0)

    assert clocks.low == pytest.approx(0.6319, abs=2e-3)
    assert clocks.high == pytest.approx(0.7409, abs=2e-3)


def test_a_limit_below_idle_power_has_no_clock() -> None:
    with pytest.raises(Inapplicable):
        clock_at(100.0, draw_watts=500.0, clock_ratio=1.0, board_watts=700.0)


def test_only_the_scaling_share_of_the_time_slows_down() -> None:
    """At half the clock: all of the time doubles (0.5), or half of it does (1 / 1.5)."""
    assert published.throughput_at_clock(0.5, Interval(0.5, 1.0)) == pytest.approx((0.5, 1 / 1.5))


@pytest.mark.parametrize(
    "row",
    [row for row in published.rows() if row.cap_watts in published.JUDGED_WATTS],
    ids=lambda row: f"{row.workload}-{row.cap_watts}W",
)
def test_published_power_caps_are_predicted_within_a_tenth(row: published.Row) -> None:
    """From the row at 700 W alone; Llama 3 8B 0.594 and 0.821, ViT-L/16 0.702 and 0.846 of full."""
    assert abs(row.error) < 0.10
    assert row.predicted.holds(row.measured)
