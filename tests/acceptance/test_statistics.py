"""What can be concluded from few, noisy numbers."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu_acceptance_parts import statistics_of as stats


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    """For 200 samples of 20 from a normal distribution about 95 % of intervals contain its mean."""
    chance = random.Random(3)
    held = 0
    for number in range(200):
        values = [chance.gauss(5.0, 1.0) for _ in range(20)]
        interval = stats.bootstrap_mean(values, seed=number, resamples=400)
        held += interval.low <= 5.0 <= interval.high

    assert 175 <= held <= 199


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
def test_the_interval_holds_its_own_mean(values: list[float]) -> None:
    """The interval is within the range of the values."""
    interval = stats.bootstrap_mean(values, resamples=80)

    room = 1e-6 + 1e-9 * max(abs(value) for value in values)
    assert min(values) - room <= interval.low <= interval.high <= max(values) + room


def test_one_value_has_no_interval() -> None:
    """It says nothing about its spread."""
    with pytest.raises(ValueError, match="two values"):
        stats.bootstrap_mean([1.0])


def test_losses_are_relative_to_the_same_round() -> None:
    """99 of 100 and 95 of 100 tokens a second: 1 % and 5 % lost."""
    assert stats.relative_losses([100, 100], [99, 95]) == pytest.approx([0.01, 0.05])


def test_every_condition_comes_equally_often_in_every_place() -> None:
    """Over a full lap; each round contains all of them."""
    rounds = stats.interleaved(["a", "b", "c"], 6)

    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    for place in range(3):
        assert set(Counter(order[place] for order in rounds).values()) == {2}
    assert rounds[0] != rounds[3]


def test_a_rate_is_taken_between_steps() -> None:
    """Ends at 1, 2, 3 and 4 s, two tokens each: between 0.5 and 3.5 s there are two whole steps in two seconds."""
    assert stats.rate_between([1, 2, 3, 4], 2, 0.5, 3.5) == 2.0
    assert stats.rate_between([1, 2, 3, 4], 2, 0.5, 1.5) is None


def test_spread() -> None:
    """1, 2 and 3: standard deviation 1 over mean 2."""
    assert stats.spread([1, 2, 3]) == 0.5


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([345, 900, 1500, 1970, 1980, 1980, 1980, 1980, 1980], 0.3),
        ([1980] * 9, 0.0),
        ([345, 1980, 1980, 700, 1980, 1980, 1980, 1980, 1980], 0.4),
        ([100, 200, 300, 400, 500, 600, 700, 800, 900], None),
        ([1980] * 3, None),
    ],
    ids=["ramp", "steady", "steady again after a dip", "never", "too few to say"],
)
def test_when_a_clock_is_steady(values: list[float], seconds: float | None) -> None:
    """Samples every 0.1 s: settled once they stay within 2 % of their final value."""
    samples = [(0.1 * number, value) for number, value in enumerate(values)]

    assert stats.seconds_to_steady(samples) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("first", "second", "both", "kind"),
    [
        (1000, 1500, 1500, "since_boot"),
        (400, 500, 900, "per_window"),
        (400, 500, 700, "unclear"),
        (0, 0, 0, "unclear"),
    ],
)
def test_what_a_count_counts(first: float, second: float, both: float, kind: str) -> None:
    """For counters since boot only the later sample counts; counts per window add up."""
    assert stats.kind_of_count(first, second, both) == kind


@pytest.mark.parametrize(
    ("cycles", "scale"), [(1.98e9, "mean"), (132 * 1.9e9, "sum"), (10 * 1.98e9, "unclear")]
)
def test_mean_or_sum_over_the_sms(cycles: float, scale: str) -> None:
    """One second at 1.98 GHz with 132 SMs."""
    assert stats.scale_of_cycles(cycles, 1.0, 1.98e9, 132) == scale
