"""The baseline is the best median of five a device has shown."""

import pytest

from probes.judgement import Baseline


def after(*values, **fields):
    baseline = Baseline(versions="v", shape=(1,), **fields)
    for value in values:
        baseline = baseline.with_measurement(value)
    return baseline


def test_before_the_first_reload_there_is_no_time():
    """No value and no ratio."""
    assert after().value is None
    assert after().ratio(5.0) is None


def test_before_five_it_is_the_median_so_far():
    """Of 10, 30, 20: 20, not established."""
    assert after(10.0, 30.0, 20.0).value == 20.0
    assert not after(10.0, 30.0, 20.0).established


def test_five_establish_it():
    """The median of 1..5 is 3."""
    assert after(1.0, 2.0, 3.0, 4.0, 5.0).value == 3.0
    assert after(1.0, 2.0, 3.0, 4.0, 5.0).established


def test_one_lucky_measurement_does_not_raise_it():
    """The median of 10, 10, 10, 10, 99 stays 10."""
    assert after(10.0, 10.0, 10.0, 10.0, 10.0, 99.0).value == 10.0


def test_it_rises_but_never_falls():
    """A device that was at 10 and is now at 5 is at half its baseline."""
    worn = after(*[10.0] * 5, *[5.0] * 20)

    assert worn.value == 10.0
    assert worn.ratio(5.0) == 0.5


def test_lower_is_better_for_a_latency():
    """A latency that was 4 µs and is now 6 µs is 1.5 of the baseline."""
    slow = after(*[4e-6] * 5, *[6e-6] * 5, higher_is_better=False)

    assert slow.value == 4e-6
    assert slow.ratio(6e-6) == pytest.approx(1.5)
