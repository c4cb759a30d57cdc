"""The ledger never lets a device be charged more than its budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.budget import Ledger, limits


class TestLimits:
    def test_the_default_budget(self):
        """60 x 20 ms an hour = 1.2 s; less the reserve of 250 ms, over 60: 15.83 ms a minute."""
        bounds = limits(60.0, 0.020, 0.250)

        assert bounds.horizon_seconds == 3600.0
        assert bounds.horizon_budget_seconds == pytest.approx(1.2)
        assert bounds.usable_seconds == pytest.approx(0.95 / 60)
        assert bounds.chunk_deadline_seconds == 0.250

    def test_a_small_budget_shortens_the_chunk_deadline(self):
        """4 x 10 ms an hour = 40 ms: the reserve is a quarter, 10 ms, and 7.5 ms are usable."""
        bounds = limits(900.0, 0.010, 0.250)

        assert bounds.chunk_deadline_seconds == pytest.approx(0.010)
        assert bounds.usable_seconds == pytest.approx(0.0075)

    def test_an_hour_has_only_whole_intervals(self):
        """Of 25 minutes there are two in an hour: 2 x 20 ms."""
        assert limits(1500.0, 0.020, 0.001).horizon_budget_seconds == pytest.approx(0.040)

    def test_an_interval_longer_than_an_hour_is_its_own_horizon(self):
        """Two hours: one budget in them."""
        bounds = limits(7200.0, 0.020, 0.001)

        assert bounds.horizon_seconds == 7200.0
        assert bounds.horizon_budget_seconds == pytest.approx(0.020)


class TestLedger:
    def test_it_takes_the_worst_in_advance_and_gives_back(self):
        """15 ms allowed and a hang of 250 ms are held until the run took 3 ms only."""
        ledger = Ledger(limits(60.0, 0.020, 0.250))
        charge = ledger.precharge(100.0, 0.015)

        assert ledger.spent(100.0, 60.0) == pytest.approx(0.265)
        assert ledger.allowance(100.0) == 0.0

        ledger.settle(charge, 100.5, 0.003)

        assert ledger.allowance(100.5) == pytest.approx(0.95 / 60 - 0.003)

    def test_a_spent_interval_is_fresh_for_the_next_cycle(self):
        """The next cycle comes within the minute of this one's end, and finds its budget."""
        ledger = Ledger(limits(60.0, 0.020, 0.250))
        ledger.add(100.3, 0.015)

        assert ledger.allowance(101.0) < 0.001
        assert ledger.allowance(160.0) == pytest.approx(0.95 / 60)

    def test_hangs_use_up_the_hour(self):
        """After 4 hangs of 250 ms, 0.2 s of 1.2 s are left, less than a fifth might take."""
        ledger = Ledger(limits(60.0, 0.020, 0.250))
        for minute in range(4):
            ledger.add(minute * 60.0, 0.250)

        assert ledger.allowance(600.0) == 0.0
        assert ledger.allowance(3600.0) > 0.0

    def test_charges_before_a_restart_count(self):
        """A restarted daemon finds what it spent before."""
        before = Ledger(limits(60.0, 0.020, 0.250))
        before.add(10.0, 0.015)
        after = Ledger(limits(60.0, 0.020, 0.250))
        after.restore(before.charges())

        assert after.allowance(11.0) == before.allowance(11.0)

    @given(
        st.lists(
            st.tuples(
                st.floats(0.0, 900.0),  # pause before the run
                st.floats(0.0, 1.0),  # of the allowance used
                st.booleans(),  # and a hung chunk on top
            ),
            max_size=120,
        ),
        st.sampled_from(
            [(60.0, 0.020), (1.0, 0.005), (900.0, 0.020), (1500.0, 0.1), (7200.0, 0.5)]
        ),
    )
    def test_no_hour_exceeds_its_budget(self, runs, setting):
        """Whenever runs come and however they end, no window of an hour holds more than its budget."""
        interval, budget = setting
        bounds = limits(interval, budget, 0.250)
        ledger = Ledger(bounds)
        now, spans = 0.0, []
        for pause, share, hangs in runs:
            now += pause
            allowance = ledger.allowance(now)
            if not allowance:
                continue
            charge = ledger.precharge(now, allowance)
            took = allowance * share + (bounds.chunk_deadline_seconds if hangs else 0.0)
            spans.append((now, took))
            now += took
            ledger.settle(charge, now, took)

        for start, _ in spans:
            window = sum(t for s, t in spans if start <= s < start + bounds.horizon_seconds)
            assert window <= bounds.horizon_budget_seconds + 1e-9
