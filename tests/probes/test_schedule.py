"""When cycles come."""

import pytest

from probes.schedule import Backoff, first_delay, host_fraction, next_delay


def test_hosts_spread_evenly():
    """Of 1000 hosts, each tenth of the interval has 100, give or take four standard deviations."""
    tenths = [0] * 10
    for number in range(1000):
        tenths[int(host_fraction(f"node-{number:04}") * 10)] += 1

    assert all(62 <= count <= 138 for count in tenths)


def test_a_host_keeps_its_moment():
    """The same name gives the same fraction, on every machine and in every run."""
    assert host_fraction("node-1") == host_fraction("node-1") != host_fraction("node-2")


def test_the_first_cycle_comes_within_ten_seconds():
    """A quarter of 10 s of a minute; of a short interval, a quarter of that; never at once."""
    assert first_delay(60.0, 0.25) == 2.5
    assert first_delay(8.0, 0.25) == 2.0
    assert first_delay(60.0, 0.01) == 1.0
    assert first_delay(0.2, 0.0) == 0.2


def test_cycles_come_at_the_hosts_moment_of_the_interval():
    """At fraction 0.25 of a minute that is second 15: from second 20 it is 55 s away."""
    assert next_delay(1200.0 + 20, 60.0, 0.25) == pytest.approx(55.0)
    assert next_delay(1200.0 + 15, 60.0, 0.25) == pytest.approx(60.0)


def test_two_cycles_are_never_close():
    """At second 5 the moment is 10 s away: the next one is taken."""
    assert next_delay(1200.0 + 5, 60.0, 0.25) == pytest.approx(70.0)


def test_backoff_doubles_to_an_hour():
    """30 s, 60 s, … and never more than an hour."""
    backoff = Backoff()

    assert [backoff.failed(0.0) for _ in range(9)] == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert backoff.active(3599.0)
    assert not backoff.active(3600.0)


def test_a_success_ends_the_backoff():
    """The next failure waits 30 s again."""
    backoff = Backoff()
    backoff.failed(0.0)
    backoff.failed(0.0)
    backoff.succeeded()

    assert not backoff.active(1.0)
    assert backoff.failed(1.0) == 30.0
