"""The hour of one device, in a fixed piece of memory."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.accounting.time_split import EVENT_REASONS
from exporter.device_state import DeviceState
from exporter.status.history import COLUMNS, Ring
from tests.status.examples import COARSE, DECODE, IDLE, PREFILL, Load, gpu, ticked


class Clockwork:
    """A ring and its device, ticked by hand; the first tick sets where to count from."""

    def __init__(self, now: float = 1000.0) -> None:
        self.ring = Ring()
        self.now = now
        self.device: DeviceState = ticked(gpu(0), IDLE, now, 1.0, 0.0)
        self.ring.observe(self.device)

    def tick(self, load: Load, seconds: float = 1.0, times: int = 1) -> None:
        for _ in range(times):
            self.now += seconds
            self.device = ticked(self.device, load, self.now, seconds, 0.0)
            self.ring.observe(self.device)


class TestMinute:
    def test_an_empty_ring_has_no_values(self) -> None:
        """Before the second tick there is no span, and no share of it."""
        summary = Clockwork().ring.minute(1000.0)

        assert (summary.seconds, summary.states, summary.achieved_flops) == (0.0, {}, None)

    def test_shares_are_of_the_time_that_was_watched(self) -> None:
        """20 s at 0.25 tensor and 20 s idle are 0.125 tensor over the 40 s seen."""
        clock = Clockwork()
        clock.tick(Load({"tensor": 0.25, "memory": 0.75}), times=20)
        clock.tick(IDLE, times=20)

        summary = clock.ring.minute(clock.now)

        assert pytest.approx(summary.seconds) == 40.0
        assert pytest.approx(summary.states["tensor"]) == 0.125
        assert pytest.approx(summary.states["memory"]) == 0.375
        assert pytest.approx(summary.states["idle"]) == 0.5

    def test_rates_are_means_over_time(self) -> None:
        """30 s at 100 TFLOP/s and 0.9 of the bandwidth, 10 s at none: 75 TFLOP/s and 0.675."""
        clock = Clockwork()
        clock.tick(Load({"memory": 1.0}, flops=100e12, dram=0.9), times=30)
        clock.tick(IDLE, times=10)

        summary = clock.ring.minute(clock.now)

        assert pytest.approx(summary.achieved_flops) == 75e12
        assert pytest.approx(summary.dram_bandwidth) == 0.675

    def test_it_forgets_what_is_older(self) -> None:
        """After a minute of decoding nothing is left of the idle time before."""
        clock = Clockwork()
        clock.tick(IDLE, times=100)
        clock.tick(DECODE, times=61)

        assert pytest.approx(clock.ring.minute(clock.now).states["idle"], abs=1e-4) == 0.07

    def test_a_device_without_activity_counters_has_no_flops(self) -> None:
        """Unknown work is absent, not zero."""
        clock = Clockwork()
        clock.tick(COARSE, times=20)

        assert clock.ring.minute(clock.now).achieved_flops is None

    def test_flop_of_another_precision_do_not_count(self) -> None:
        """When the headline changes from bf16 to fp8 and back, no FLOP is counted twice."""
        clock = Clockwork()
        load = Load({"tensor": 1.0}, flops=10e12)
        clock.tick(load, times=10)
        clock.device = replace(clock.device, precision="fp8")
        clock.tick(load, times=10)
        clock.device = replace(clock.device, precision="bf16")
        clock.tick(load, times=10)

        assert pytest.approx(clock.ring.minute(clock.now).achieved_flops) == 10e12


class TestObserve:
    def test_the_same_snapshot_twice_counts_once(self) -> None:
        """Looking more often than the device ticks changes nothing."""
        clock = Clockwork()
        clock.tick(DECODE, times=5)
        for _ in range(10):
            clock.ring.observe(clock.device)

        assert pytest.approx(clock.ring.minute(clock.now).seconds) == 5.0

    def test_a_missed_snapshot_loses_nothing(self) -> None:
        """Counters continue: the next snapshot includes the missed one."""
        clock = Clockwork()
        clock.now += 1
        clock.device = ticked(clock.device, DECODE, clock.now, 1.0, 0.0)
        clock.tick(DECODE)

        assert pytest.approx(clock.ring.minute(clock.now).seconds) == 2.0

    def test_time_before_the_first_snapshot_is_not_claimed(self) -> None:
        """Counters that were already high when the ring began are where it counts from."""
        clock = Clockwork()
        clock.device = replace(
            clock.device,
            counters=replace(clock.device.counters, state_seconds={"idle": 86400.0}),
        )
        late = Ring()
        late.observe(clock.device)

        assert late.hour(clock.now).seconds == 0.0

    def test_counters_that_fell_restart(self) -> None:
        """A re-created device counts from zero: the decrease is not counted as time."""
        clock = Clockwork()
        clock.tick(DECODE, times=10)
        clock.device = ticked(gpu(0), IDLE, clock.now + 1, 1.0, 0.0)
        clock.ring.observe(clock.device)
        clock.now += 1
        clock.tick(DECODE, times=3)

        assert pytest.approx(clock.ring.hour(clock.now).seconds) == 13.0

    def test_a_device_that_is_down_leaves_a_gap(self) -> None:
        """Ten minutes lost are ten minutes not watched, not ten minutes idle."""
        clock = Clockwork(now=12_000.0)
        clock.tick(DECODE, seconds=10.0, times=30)
        clock.ring.observe(replace(gpu(0), at_seconds=clock.now + 1, up=False))
        clock.now += 600
        clock.tick(DECODE, seconds=10.0, times=6)

        tensor = clock.ring.columns(clock.now - 1)["tensor"]

        assert pytest.approx(clock.ring.hour(clock.now).seconds) == 360.0
        assert [0.12, *[None] * 10, 0.12] == tensor[-12:]

    def test_a_long_tick_is_spread_over_its_minutes(self) -> None:
        """A window of two minutes fills both of them, not the last."""
        clock = Clockwork(now=12_000.0)
        clock.tick(DECODE, seconds=120.0)

        tensor = clock.ring.columns(clock.now - 1)["tensor"]

        assert pytest.approx(tensor[-2:]) == [0.12, 0.12]
        assert tensor[-3] is None


class TestHour:
    def test_it_holds_an_hour_and_no_more(self) -> None:
        """After two hours the ring sums 3600 seconds, within one slot."""
        clock = Clockwork()
        clock.tick(DECODE, seconds=5.0, times=1440)

        assert 3589.9 < clock.ring.hour(clock.now).seconds <= 3600.1

    def test_the_hour_fades_without_new_samples(self) -> None:
        """Half an hour after the last tick half an hour is left; after an hour, nothing."""
        clock = Clockwork()
        clock.tick(DECODE, seconds=5.0, times=720)

        assert pytest.approx(clock.ring.hour(clock.now + 1800).seconds, abs=10.1) == 1800
        assert clock.ring.hour(clock.now + 3700).seconds == 0.0
        assert clock.ring.columns(clock.now + 3700) == {} or all(
            share is None for share in clock.ring.columns(clock.now + 3700)["tensor"]
        )

    def test_columns_are_minutes_oldest_first(self) -> None:
        """Thirty minutes of decoding, then thirty of prompts: the first half waits for memory."""
        clock = Clockwork(now=36_000.0)
        clock.tick(DECODE, seconds=5.0, times=360)
        clock.tick(PREFILL, seconds=5.0, times=360)

        columns = clock.ring.columns(clock.now - 1)

        assert all(len(shares) == COLUMNS for shares in columns.values())
        assert pytest.approx(columns["memory"][:30]) == [0.62] * 30
        assert pytest.approx(columns["memory"][30:]) == [0.14] * 30
        assert columns["clock_power"][:30] == [0.0] * 30

    def test_power_held_the_clock_for_a_share_of_the_hour(self) -> None:
        """900 of 3600 s under the cap at 1,200 MHz: held for 0.25, at that clock."""
        clock = Clockwork()
        clock.tick(DECODE, seconds=5.0, times=540)
        clock.tick(PREFILL, seconds=5.0, times=180)

        held = clock.ring.hour(clock.now).power_held

        assert pytest.approx(held.share, abs=0.003) == 0.25
        assert pytest.approx(held.mean_hertz) == 1200e6

    def test_overlapping_reasons_are_not_added_up(self) -> None:
        """Cap and brake at the same time count once."""
        both = EVENT_REASONS["sw_power_cap"] | EVENT_REASONS["hw_power_brake_slowdown"]
        clock = Clockwork()
        clock.tick(replace(PREFILL, reasons=both), times=20)
        clock.tick(DECODE, times=20)

        assert pytest.approx(clock.ring.minute(clock.now).power_held.share) == 0.5


class TestMemory:
    def test_it_never_grows(self) -> None:
        """64 rings take less than 5 MB, however long they run."""
        clock = Clockwork()
        before = clock.ring.size_bytes
        clock.tick(DECODE, seconds=60.0, times=1000)

        assert clock.ring.size_bytes == before
        assert 64 * before < 5e6

    @given(
        st.lists(
            st.tuples(
                st.floats(0.05, 700),
                st.sampled_from([DECODE, PREFILL, IDLE, COARSE]),
                st.floats(0, 9000),
            ),
            max_size=30,
        )
    )
    @settings(max_examples=150, deadline=None)
    def test_shares_sum_to_one_whatever_happens(
        self, ticks: list[tuple[float, Load, float]]
    ) -> None:
        """Any ticks and gaps: shares of what was watched sum to 1, and no more than an hour is known."""
        clock = Clockwork()
        for seconds, load, gap in ticks:
            clock.tick(load, seconds=seconds)
            clock.now += gap

        for summary in (clock.ring.minute(clock.now), clock.ring.hour(clock.now)):
            assert summary.seconds <= 3600.1
            if summary.seconds > 0:
                assert pytest.approx(sum(summary.states.values())) == 1.0
        for shares in zip(*clock.ring.columns(clock.now).values(), strict=True):
            known = [share for share in shares if share is not None]
            assert len(known) in (0, len(shares))
            if known:
                assert pytest.approx(sum(known), abs=0.005) == 1.0
