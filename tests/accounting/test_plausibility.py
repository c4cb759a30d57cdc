"""Driver readings that are well-formed but cannot be true."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from exporter.accounting.device import COARSE_SOURCE
from exporter.accounting.plausibility import Inconsistency, Plausibility, PlausibleTick
from exporter.readings import ActivityWindow, FastReading


LIMIT = 700.0


def tick(
    judge: Plausibility,
    second: float,
    *,
    sm: float | None = 0.0,
    graphics: float | None = 0.0,
    utilization: float | None = 1.0,
    power: float | None = 70.0,
    energy: float | None = None,
    seconds: float = 1.0,
) -> PlausibleTick:
    """One tick whose window has this activity."""
    fast = FastReading(second, gpu_utilization=utilization, power_watts=power, energy_joules=energy)
    window = ActivityWindow(
        "gpm", second - seconds, second, graphics=graphics, sm=sm, tensor=sm, dram=0.0
    )
    return judge.judge(fast, window, LIMIT)


def test_latched_utilization_is_left_out() -> None:
    """100 % with no SM active and idle power for three seconds: the utilization is false."""
    judge = Plausibility()
    first, second, third = (tick(judge, at) for at in (1.0, 2.0, 3.0))

    assert (first.false, second.false) == ({}, {})
    assert third.false == {"utilization": Inconsistency.UTILIZATION_LATCHED}
    assert third.fast.gpu_utilization is None
    assert third.window is not None
    assert third.window.sm == 0.0


def test_a_silent_gpm_is_left_out() -> None:
    """Zeros at 490 of 700 W and full utilization: the activity is false, its time is kept."""
    judge = Plausibility()
    judged = [tick(judge, at, power=490.0) for at in (1.0, 2.0, 3.0)][-1]

    assert judged.false == {"activity": Inconsistency.ACTIVITY_SILENT}
    assert judged.fast.gpu_utilization == 1.0
    assert judged.window is not None
    assert judged.window.source == COARSE_SOURCE
    assert judged.window.seconds == 1.0
    assert (judged.window.graphics, judged.window.sm, judged.window.dram) == (1.0, None, None)


def test_contradictory_values_are_both_left_out() -> None:
    """At 280 of 700 W either may be true: neither is shown, all of the time is unresolved."""
    judge = Plausibility()
    judged = [tick(judge, at, power=280.0) for at in (1.0, 2.0, 3.0)][-1]

    assert set(judged.false) == {"utilization", "activity"}
    assert judged.fast.gpu_utilization is None
    assert judged.window is not None
    assert judged.window.graphics is None


def test_only_the_sms_are_silent() -> None:
    """When graphics activity still works, it is kept and only the SM activities are left out."""
    judge = Plausibility()
    judged = [tick(judge, at, power=490.0, graphics=0.9) for at in (1.0, 2.0, 3.0)][-1]

    assert judged.window is not None
    assert judged.window.source == "gpm"
    assert (judged.window.graphics, judged.window.sm) == (0.9, None)


def test_power_alone_is_evidence_where_utilization_is_unknown() -> None:
    """In MIG mode there is no utilization: zeros at three quarters of the power limit are wrong."""
    judge = Plausibility()
    judged = [tick(judge, at, utilization=None, power=525.0) for at in (1.0, 2.0, 3.0)][-1]

    assert judged.false == {"activity": Inconsistency.ACTIVITY_SILENT}


def test_lagging_utilization_is_plausible() -> None:
    """Work has just ended: utilization follows a second later, and nothing is left out."""
    judge = Plausibility()
    tick(judge, 1.0, sm=0.8, graphics=0.9, power=450.0)
    after = [tick(judge, 2.0, power=120.0), tick(judge, 3.0, utilization=0.0, power=80.0)]

    assert [judged.false for judged in after] == [{}, {}]


def test_a_window_of_a_minute_is_evidence_at_once() -> None:
    """DCGM's windows are long: one of 30 s with 30 busy readings is proof enough."""
    judge = Plausibility()
    for second in range(29):
        judge.judge(FastReading(float(second), gpu_utilization=1.0, power_watts=490.0), None, LIMIT)
    judged = tick(judge, 30.0, power=490.0, seconds=30.0)

    assert judged.false == {"activity": Inconsistency.ACTIVITY_SILENT}


def test_a_source_becomes_plausible_again() -> None:
    """One window with activity clears the source."""
    judge = Plausibility()
    for at in (1.0, 2.0, 3.0):
        tick(judge, at, power=490.0)
    judged = tick(judge, 4.0, sm=0.5, graphics=0.9, power=490.0)

    assert judged.false == {}
    assert judged.window is not None
    assert judged.window.sm == 0.5


def test_idle_readings_of_an_idle_gpu_are_plausible() -> None:
    """No utilization, no activity, little power."""
    judge = Plausibility()

    assert all(tick(judge, float(at), utilization=0.0).false == {} for at in range(1, 30))


def test_an_energy_counter_that_stands_still_is_left_out() -> None:
    """Ten seconds at 455 W without a joule more."""
    judge = Plausibility()
    judged = [tick(judge, float(at), sm=0.5, power=455.0, energy=1000.0) for at in range(1, 13)]

    assert [j.fast.energy_joules for j in judged] == [1000.0] * 10 + [None] * 2
    assert judged[-1].false == {"energy_joules": Inconsistency.COUNTER_FROZEN}


def test_an_energy_counter_that_jumps_is_left_out() -> None:
    """2^47 mJ more within a second is the width of a register, not work."""
    judge = Plausibility()
    tick(judge, 1.0, sm=0.5, energy=1000.0)
    jumped = tick(judge, 2.0, sm=0.5, energy=1000.0 + 2**47 / 1000)
    back = tick(judge, 3.0, sm=0.5, energy=1900.0)

    assert jumped.fast.energy_joules is None
    assert jumped.false == {"energy_joules": Inconsistency.COUNTER_JUMPED}
    assert (back.fast.energy_joules, back.false) == (1900.0, {})


def test_a_counter_may_restart() -> None:
    """After a reset the device counts from zero: accepted once a second reading confirms it."""
    judge = Plausibility()
    tick(judge, 1.0, sm=0.5, energy=1e6)

    assert tick(judge, 2.0, sm=0.5, energy=3.0).false == {
        "energy_joules": Inconsistency.COUNTER_FELL
    }
    after = tick(judge, 3.0, sm=0.5, energy=503.0)
    assert after.false == {}
    assert after.fast.energy_joules == 503.0


def test_a_counter_that_falls_for_one_reading_is_left_out() -> None:
    """Otherwise its whole count would be added again when it returns."""
    judge = Plausibility()
    tick(judge, 1.0, sm=0.5, energy=1e6)
    dip = tick(judge, 2.0, sm=0.5, energy=0.0)
    back = tick(judge, 3.0, sm=0.5, energy=1e6 + 900)

    assert dip.false == {"energy_joules": Inconsistency.COUNTER_FELL}
    assert dip.fast.energy_joules is None
    assert back.false == {}
    assert back.fast.energy_joules == 1e6 + 900


def test_bytes_over_a_link_may_wrap() -> None:
    """Their registers are small: a lower count than before is not implausible."""
    judge = Plausibility()
    for at, counted in ((1.0, 4e9), (2.0, 1e9), (3.0, 3e9), (4.0, 5e8)):
        fast = FastReading(at, pcie_receive_bytes=counted)
        judged = judge.judge(fast, None, 700.0)
        assert judged.false == {}
        assert judged.fast.pcie_receive_bytes == counted


def test_a_restart_discards_the_samples() -> None:
    """Observations from before a gap prove nothing after it."""
    judge = Plausibility()
    tick(judge, 1.0)
    tick(judge, 2.0)
    judge.restart()

    assert tick(judge, 3.0).false == {}


shares = st.none() | st.floats(0, 1)


@given(
    st.lists(
        st.tuples(shares, shares, shares, st.none() | st.floats(0, 1000)), min_size=1, max_size=30
    )
)
def test_time_is_never_lost(ticks: list[tuple[float | None, ...]]) -> None:
    """Whatever the judgement, a window keeps its span, and no value is invented."""
    judge = Plausibility()
    for second, (sm, graphics, utilization, power) in enumerate(ticks, 1):
        judged = tick(
            judge, float(second), sm=sm, graphics=graphics, utilization=utilization, power=power
        )
        assert judged.window is not None
        assert (judged.window.start_seconds, judged.window.end_seconds) == (second - 1, second)
        assert judged.fast.gpu_utilization in (utilization, None)
        assert judged.window.sm in (sm, None)
        assert replace(judged.fast, gpu_utilization=utilization) == FastReading(
            float(second), gpu_utilization=utilization, power_watts=power
        )
