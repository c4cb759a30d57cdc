"""New samples are recognised, and the time that each of them covers."""

import pytest

from exporter.collect.dcgm import CollectInterval
from exporter.collect.dcgm_windows import DeviceSample, DeviceWindows


def sample(sm: float, energy: float = 0.0, **activities: float) -> DeviceSample:
    return DeviceSample({"sm": sm, **activities}, others=int(energy))


def test_a_repeated_sample_is_counted_once() -> None:
    """Thirty scrapes of the same collection close no window; the next collection closes one."""
    windows = DeviceWindows()
    windows.observe(sample(0.2), 100.0, 30.0)
    assert [windows.observe(sample(0.2), 100.0 + n, 30.0) for n in range(1, 30)] == [
        (False, ())
    ] * 29

    new, (window,) = windows.observe(sample(0.6), 130.0, 30.0)

    assert new
    assert (window.source, window.start_seconds, window.end_seconds) == ("dcgm", 100.0, 130.0)
    assert window.sm == 0.6


def test_the_first_sample_only_opens_a_window() -> None:
    """How long it had been shown is not known, so none of that time is counted."""
    windows = DeviceWindows()

    assert windows.observe(sample(0.2), 100.0, 30.0) == (False, ())
    assert windows.open_since == 100.0


def test_windows_tile_time() -> None:
    """Each window starts where the last one ended."""
    windows = DeviceWindows()
    windows.observe(sample(0.1), 100.0, 30.0)
    spans = []
    for number, at in enumerate((131.0, 160.5, 190.0)):
        _new, closed = windows.observe(sample(0.2 + number / 10), at, 30.0)
        spans += [(window.start_seconds, window.end_seconds) for window in closed]

    assert spans == [(100.0, 131.0), (131.0, 160.5), (160.5, 190.0)]


def test_other_fields_do_not_make_a_new_sample() -> None:
    """Power may be refreshed every second for another client of DCGM; the profile is still the old."""
    windows = DeviceWindows()
    windows.observe(sample(0.2, energy=1), 100.0, 30.0)

    assert windows.observe(sample(0.2, energy=2), 101.0, 30.0) == (False, ())


def test_an_idle_gpu_is_counted_idle() -> None:
    """Zeros repeat forever: while energy moves they are new, and each counts one interval."""
    windows = DeviceWindows()
    windows.observe(sample(0.0, energy=1), 100.0, 30.0)

    _new, early = windows.observe(sample(0.0, energy=2), 130.0, 30.0)
    _new, (window,) = windows.observe(sample(0.0, energy=3), 160.0, 30.0)

    assert early == ()
    assert (window.start_seconds, window.end_seconds, window.sm) == (100.0, 130.0, 0.0)
    assert windows.open_since == 130.0


def test_work_after_idleness_counts_for_its_own_interval_only() -> None:
    """Idle from 100 to 170, then the first sample of work: it is the mean of the last 30 s."""
    windows = DeviceWindows()
    windows.observe(sample(0.0, energy=1), 100.0, 30.0)

    _new, (idle, work) = windows.observe(sample(0.9, energy=2), 155.0, 30.0)

    assert (idle.start_seconds, idle.end_seconds, idle.sm) == (100.0, 125.0, 0.0)
    assert (work.start_seconds, work.end_seconds, work.sm) == (125.0, 155.0, 0.9)


def test_a_frozen_profiler_is_abandoned() -> None:
    """The same busy sample for 2.5 intervals is not a measurement: its time is known only coarsely."""
    windows = DeviceWindows()
    windows.observe(sample(0.7, energy=1), 100.0, 30.0)
    for second in range(1, 80):
        windows.observe(sample(0.7, energy=1 + second), 100.0 + second, 30.0)

    assert windows.expire(174.0, 75.0, 0.9) is None
    window = windows.expire(176.0, 75.0, 0.9)

    assert window is not None
    assert (window.source, window.start_seconds, window.end_seconds) == ("nvml", 100.0, 176.0)
    assert (window.graphics, window.sm) == (0.9, None)
    assert windows.open_since is None
    assert not windows.fresh(176.0, 75.0)


def test_a_gap_is_not_counted() -> None:
    """After a hang the window begins with the next new sample."""
    windows = DeviceWindows()
    windows.observe(sample(0.1), 100.0, 30.0)
    windows.restart()

    assert windows.observe(sample(0.2), 130.0, 30.0) == (True, ())
    assert windows.open_since == 130.0


def test_link_rates_become_bytes() -> None:
    """DCGM gives bytes per second of its last window: 2 GB/s over 30 s are 60 GB."""
    windows = DeviceWindows()
    windows.observe(sample(0.1), 100.0, 30.0)

    _new, (window,) = windows.observe(
        DeviceSample({"sm": 0.2}, {"nvlink_receive_bytes": 2e9}), 130.0, 30.0
    )

    assert window.nvlink_receive_bytes == pytest.approx(60e9)


def test_the_interval_is_learned() -> None:
    """Changes ten seconds apart: the next look is shortly before the next change."""
    interval = CollectInterval(0.0)
    assert (interval.seconds, interval.known) == (30.0, False)
    for second in range(31):
        interval.looked(float(second), changed=second % 10 == 0)

    assert (interval.seconds, interval.known) == (10.0, True)
    assert interval.next_look(30.0) == pytest.approx(8.5)
    assert interval.next_look(39.5) == pytest.approx(1.0)
    assert interval.stale_seconds == 25.0


def test_a_shorter_interval_is_learned_again() -> None:
    """A change found at the first look after a pause may be old: looks become frequent again."""
    interval = CollectInterval(0.0)
    for second in range(61):
        interval.looked(float(second), changed=second % 20 == 0)
    assert interval.known

    interval.looked(78.5, changed=True)

    assert not interval.known
    assert interval.next_look(78.5) == 1.0


def test_without_changes_little_is_read() -> None:
    """An idle host is scraped every five seconds once two intervals have passed."""
    interval = CollectInterval(0.0)

    assert interval.next_look(10.0) == 1.0
    assert interval.next_look(61.0) == 5.0
