"""The accounts of one device over its life: ticks, missed ticks, gaps, resets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.accounting.device import DeviceAccounts, LastWindow
from exporter.accounting.peaks import find_peaks
from exporter.readings import ActivityWindow, ClockSample, DeviceIdentity, FastReading


IDENTITY = DeviceIdentity(
    "0", "GPU-1", "NVIDIA H100 80GB HBM3", sm_count=132, sm_clock_max_hertz=2e9
)
MAX_WINDOW = 4.0


class Accounts:
    """Accounts driven by hand: a clock of 1 GHz, windows as the test says."""

    def __init__(self) -> None:
        self.accounts = DeviceAccounts(IDENTITY, find_peaks(IDENTITY))

    def tick(
        self,
        at: float,
        window: ActivityWindow | None = None,
        open_since: float | None = None,
        **fast: float,
    ) -> LastWindow | None:
        self.accounts.observe_clock(ClockSample(at, 1e9, 0))
        return self.accounts.observe(
            FastReading(at, sm_clock_hertz=1e9, event_reasons=4, **fast),
            window,
            precision="bf16",
            max_window_seconds=MAX_WINDOW,
            window_started_seconds=open_since,
        )

    @property
    def seconds(self) -> float:
        return sum(self.accounts.counters().state_seconds.values())

    @property
    def tensor_flop(self) -> float:
        return sum(
            flop
            for (work, _source), flop in self.accounts.counters().flop.items()
            if work.pipe == "tensor"
        )


def busy(start: float, end: float) -> ActivityWindow:
    return ActivityWindow(
        "gpm", start, end, graphics=1, sm=1, tensor=0.5, hmma_tensor=0.5, dram=0.5
    )


FLOP_PER_SECOND = 0.5 * 132 * 1e9 * 4096


def test_windows_tile_time() -> None:
    """Three ticks of one second: three seconds, and the FLOP of three seconds."""
    accounts = Accounts()
    accounts.tick(0.0)
    for start in range(3):
        accounts.tick(start + 1.0, busy(start, start + 1.0), open_since=start + 1.0)

    assert accounts.seconds == pytest.approx(3)
    assert accounts.tensor_flop == pytest.approx(3 * FLOP_PER_SECOND)


def test_a_missed_tick_loses_nothing() -> None:
    """The window after it is longer, and counts all of it."""
    accounts = Accounts()
    accounts.tick(0.0)
    accounts.tick(1.0, busy(0, 1), open_since=1.0)
    accounts.tick(3.0, busy(1, 3), open_since=3.0)

    assert accounts.seconds == pytest.approx(3)
    assert accounts.tensor_flop == pytest.approx(3 * FLOP_PER_SECOND)


def test_a_gap_is_not_counted() -> None:
    """A window longer than the daemon can have watched is dropped, in FLOP and in seconds."""
    accounts = Accounts()
    accounts.tick(0.0)
    accounts.tick(1.0, busy(0, 1), open_since=1.0)
    assert accounts.tick(60.0, busy(1, 60), open_since=60.0) is None

    assert accounts.seconds == pytest.approx(1)
    assert accounts.tensor_flop == pytest.approx(FLOP_PER_SECOND)


def test_no_span_is_counted_twice() -> None:
    """A window that overlaps time already accounted is rejected."""
    accounts = Accounts()
    accounts.tick(0.0)
    accounts.tick(1.0, busy(0, 1), open_since=1.0)
    accounts.tick(2.0, busy(0.5, 2), open_since=2.0)

    assert accounts.seconds == pytest.approx(1)


def test_without_activity_the_tick_is_known_coarsely() -> None:
    """No GPM: NVML's utilization says how much was idle; the rest is unresolved, no FLOP."""
    accounts = Accounts()
    accounts.tick(0.0, gpu_utilization=0.75)
    accounts.tick(2.0, gpu_utilization=0.75)

    states = accounts.accounts.counters().state_seconds
    # The clock is at half its maximum; the GPU was busy for three quarters of the other half.
    assert states["unresolved"] == pytest.approx(0.75)
    assert states["idle"] == pytest.approx(0.25)
    assert states["clock_other"] + states["clock_power"] == pytest.approx(1.0)
    assert accounts.tensor_flop == 0


def test_the_change_from_coarse_to_activity_leaves_neither_hole_nor_overlap() -> None:
    """GPM's first sample is in the middle of a tick: coarse before it, by activity after it."""
    accounts = Accounts()
    accounts.tick(0.0, gpu_utilization=0.5)
    accounts.tick(1.0, open_since=0.6, gpu_utilization=0.5)
    accounts.tick(2.0, busy(0.6, 2.0), open_since=2.0)

    assert accounts.seconds == pytest.approx(2)
    assert accounts.tensor_flop == pytest.approx(1.4 * FLOP_PER_SECOND)


def test_a_failed_activity_reading_waits_for_the_next() -> None:
    """While GPM's window is open, none of its time is accounted coarsely."""
    accounts = Accounts()
    accounts.tick(0.0, open_since=0.0)
    accounts.tick(1.0, open_since=0.0, gpu_utilization=0.5)
    accounts.tick(2.0, busy(0, 2), open_since=2.0)

    assert accounts.seconds == pytest.approx(2)
    assert accounts.tensor_flop == pytest.approx(2 * FLOP_PER_SECOND)


def test_a_window_that_is_given_up_is_booked_by_utilization() -> None:
    """GPM fails at 1 s and restarts at 5 s: four seconds, of which a quarter was busy."""
    accounts = Accounts()
    for second in range(6):
        accounts.tick(
            float(second),
            busy(0, 1) if second == 1 else None,
            open_since=float(second) if second in (0, 5) else 1.0,
            gpu_utilization=0.25,
        )
    states = accounts.accounts.counters().state_seconds

    assert accounts.seconds == pytest.approx(5.0)
    # Half of each second is lost to the clock of 1 of 2 GHz; three quarters of the rest idle.
    assert states["idle"] == pytest.approx(4 * 0.5 * 0.75)
    assert states["unresolved"] == pytest.approx(4 * 0.5 * 0.25)


def test_time_before_a_windows_start_is_not_lost() -> None:
    """A trial of GPM took from 1 s to 1.4 s, and the first window begins where it ended."""
    accounts = Accounts()
    accounts.tick(0.0)
    accounts.tick(1.0)
    accounts.tick(2.0, busy(1.4, 2.0), open_since=2.0)

    assert accounts.seconds == pytest.approx(2.0)
    assert accounts.tensor_flop == pytest.approx(0.6 * FLOP_PER_SECOND)


def test_a_window_that_is_given_up_after_a_gap_begins_after_it() -> None:
    """Nothing was observed from 1 s to 9 s: a window open over it is not accounted in any way."""
    accounts = Accounts()
    accounts.tick(0.0)
    accounts.tick(1.0, open_since=1.0)
    accounts.tick(9.0)
    accounts.tick(10.0)

    assert accounts.seconds == pytest.approx(2.0)


def test_the_clock_of_a_long_window_is_the_whole_windows() -> None:
    """Two minutes at 0.5 GHz and two at 1.5 GHz, eight samples a second, are a mean of 1 GHz."""
    accounts = Accounts()
    for step in range(8 * 240 + 1):
        hertz = 0.5e9 if step < 8 * 120 else 1.5e9
        accounts.accounts.observe_clock(ClockSample(step / 8, hertz, 0))
    last = accounts.accounts.observe(
        FastReading(240.0),
        busy(0, 240),
        precision="bf16",
        max_window_seconds=300.0,
        window_started_seconds=240.0,
    )

    assert last is not None
    assert last.clock.mean_hertz == pytest.approx(1e9, rel=0.01)


def test_time_restarts_after_a_gap() -> None:
    """Unwatched time is in no counter; the time after it is."""
    accounts = Accounts()
    accounts.tick(0.0, gpu_utilization=0.5)
    accounts.tick(1.0, gpu_utilization=0.5)
    accounts.accounts.forget_open_spans()
    accounts.tick(3.0, gpu_utilization=0.5)
    accounts.tick(4.0, gpu_utilization=0.5)

    assert accounts.seconds == pytest.approx(2)
    reasons = accounts.accounts.counters().event_reason_seconds
    assert reasons["sw_power_cap"] == pytest.approx(2)


def test_energy_stays_monotonic_over_a_driver_reload() -> None:
    """The device restarts at zero; the counter continues from its last value."""
    accounts = Accounts()
    for at, joules in enumerate((1000.0, 1100.0, 5.0, 25.0)):
        accounts.tick(at, energy_joules=joules)

    assert accounts.accounts.counters().energy_joules == pytest.approx(1120)


def test_every_tick_is_one_observation() -> None:
    """50 % of the tensor pipe at 1 GHz of the sheet's 1.83 GHz is 27 % of the data sheet."""
    accounts = Accounts()
    accounts.tick(0.0)
    for start in range(5):
        accounts.tick(start + 1.0, busy(start, start + 1.0), open_since=start + 1.0)

    ticks = accounts.accounts.counters().tick_utilization["bf16"]
    assert ticks.count == 5
    assert ticks.total == pytest.approx(5 * FLOP_PER_SECOND / 989.4e12)
    assert ticks.counts[ticks.bounds.index(0.3)] == 5


def test_the_last_window_gives_the_gauges() -> None:
    """Achieved FLOP/s and their share of the data sheet, of that tick alone."""
    accounts = Accounts()
    accounts.tick(0.0)
    last = accounts.tick(1.0, busy(0, 1), open_since=1.0)

    assert last is not None
    assert last.achieved_flops["bf16"] == pytest.approx(FLOP_PER_SECOND)
    assert last.flops_utilization["bf16"] == pytest.approx(FLOP_PER_SECOND / 989.4e12)


@given(
    st.lists(
        st.tuples(
            st.floats(min_value=0.05, max_value=8),  # seconds to the next tick
            st.floats(min_value=0, max_value=1),  # activity
            st.sampled_from(["gpm", "failed", "lost"]),
        ),
        max_size=40,
    )
)
def test_counters_never_fall_and_never_exceed_elapsed_time(
    ticks: list[tuple[float, float, str]],
) -> None:
    """Whatever a device does, no counter decreases and no time is counted that did not elapse."""
    accounts = Accounts()
    now = opened = 0.0
    accounts.tick(now, open_since=now)
    before = accounts.accounts.counters()
    for seconds, activity, outcome in ticks:
        now += seconds
        if outcome == "lost":
            accounts.accounts.forget_open_spans()
            opened = now
            continue
        closed = None
        if outcome == "gpm":
            closed = ActivityWindow(
                "gpm", opened, now, graphics=activity, sm=activity, hmma_tensor=activity
            )
            opened = now
        accounts.tick(now, closed, open_since=opened, gpu_utilization=activity)
        after = accounts.accounts.counters()
        for key, value in before.flop.items():
            assert after.flop[key] >= value
        for state, value in before.state_seconds.items():
            assert after.state_seconds[state] >= value
        before = after

    assert accounts.seconds <= now + 1e-6


@given(
    st.lists(
        st.tuples(
            st.floats(min_value=0.05, max_value=MAX_WINDOW),  # watched seconds to the next tick
            st.sampled_from([0.0, 0.0, 5.0, 3600.0, 86_400.0]),  # asleep after them
            st.booleans(),  # whether the driver answers with a window
            st.floats(min_value=0, max_value=1),
        ),
        max_size=40,
    )
)
def test_a_suspended_machine_does_not_count_the_suspension(
    steps: list[tuple[float, float, bool, float]],
) -> None:
    """The monotonic clock jumps: the tick of the jump is not counted, all others are in full."""
    accounts = Accounts()
    now = opened = awake = 0.0
    accounts.tick(now, open_since=now, gpu_utilization=0.5)
    before = 0.0
    for seconds, asleep, answers, activity in steps:
        now += seconds + asleep
        awake += 0.0 if asleep else seconds
        window = None
        if answers:
            window = ActivityWindow(
                "gpm", opened, now, graphics=activity, sm=activity, hmma_tensor=activity
            )
            opened = now
        accounts.tick(now, window, open_since=opened, gpu_utilization=activity)
        assert accounts.seconds >= before
        before = accounts.seconds

    # A window that a sleep made too long is dropped with its watched part, which is at most one
    # window.
    sleeps = sum(asleep > 0 for _, asleep, _, _ in steps)
    assert accounts.seconds <= awake + sleeps * MAX_WINDOW + 1e-6
