"""Shares that sum exactly: what a device counted is what its holders are charged for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.attribution.ledger import (
    DEPARTED_MAX,
    DEPARTED_SECONDS,
    DeviceLedger,
    Partition,
    Totals,
    shares_of,
)
from exporter.attribution.snapshot import NOBODY, Account, Holder


A, B, C = (Holder("pod", "team", name, "main") for name in "abc")


def totals(flop: float, dram: float, energy: float, **seconds: float) -> Totals:
    return Totals(flop, dram, energy, seconds)


class TestShares:
    def test_several_share_by_their_sm_time(self) -> None:
        """3 and 1 seconds are three quarters and one quarter; an idle holder is charged nothing."""
        assert shares_of([A, B, C], {A: 3.0, B: 1.0}) == (
            {A: 0.75, B: 0.25, C: 0.0},
            "process_utilization",
        )

    def test_a_process_without_a_holder_is_charged_to_nobody(self) -> None:
        """1 of 4 seconds belongs to a process that no holder owns."""
        assert shares_of([A, B], {A: 2.0, B: 1.0, NOBODY: 1.0}) == (
            {A: 0.5, B: 0.25, NOBODY: 0.25},
            "process_utilization",
        )

    @pytest.mark.parametrize("usage", [{}, {NOBODY: 5.0}])
    def test_without_driver_data_shares_are_equal(self, usage) -> None:
        """No samples, or processes that cannot be distinguished: a pod's namespace hides them."""
        assert shares_of([A, B], usage) == ({A: 0.5, B: 0.5}, "equal")


class TestCharges:
    def test_a_worked_example(self) -> None:
        """The one of docs/cost.md: two pods share a GPU for 10 s, of which it idles 4 s.

        600 TFLOP and 3,000 J. By SM time A has two thirds of the work. FLOP: 400 and 200. Idle time:
        2 s each. Busy time: 4 and 2 s. Energy: 1,200 J of the idle time in halves, 1,800 J by SM time.
        """
        ledger = DeviceLedger()
        owners = {1: A, 2: B}
        ledger.charge(
            totals(0.0, 0.0, 50.0, tensor=0.0, idle=0.0),
            [A, B],
            process_seconds={1: 0.0, 2: 0.0},
            owners=owners,
            now=0.0,
        )
        ledger.charge(
            totals(600e12, 9e12, 3050.0, tensor=6.0, idle=4.0),
            [A, B],
            process_seconds={1: 4.0, 2: 2.0},
            owners=owners,
            now=10.0,
        )
        accounts = ledger.charges().accounts

        assert accounts[A].flop == pytest.approx(400e12)
        assert accounts[B].flop == pytest.approx(200e12)
        assert accounts[A].state_seconds == pytest.approx({"tensor": 4.0, "idle": 2.0})
        assert accounts[B].state_seconds == pytest.approx({"tensor": 2.0, "idle": 2.0})
        assert accounts[A].energy_joules == pytest.approx(600 + 1200)
        assert accounts[B].energy_joules == pytest.approx(600 + 600)
        # What the device had used before any holder was watched.
        assert accounts[NOBODY].energy_joules == 50.0
        assert ledger.charges().basis == {A: "process_utilization", B: "process_utilization"}

    @pytest.mark.parametrize(("holders", "charged"), [([A], A), ([], NOBODY)])
    def test_the_only_holder_or_nobody_has_everything(
        self, holders: list[Holder], charged: Holder
    ) -> None:
        """Whatever the driver reports about the processes: 6 s of B's, 600 TFLOP, 3,000 J."""
        ledger = DeviceLedger()
        for now, flop, seconds in ((0.0, 0.0, 0.0), (10.0, 600e12, 6.0)):
            ledger.charge(
                totals(flop, flop / 66.0, 300.0 * now, tensor=seconds, idle=now - seconds),
                holders,
                process_seconds={2: seconds},
                owners={2: B},
                now=now,
            )
        charges = ledger.charges()
        account = charges.accounts[charged]

        assert charges.basis == {charged: "exclusive"}
        assert (account.flop, account.dram_bytes) == (600e12, 600e12 / 66.0)
        assert account.energy_joules == 3000.0
        assert account.state_seconds == {"tensor": 6.0, "idle": 4.0}

    @pytest.mark.parametrize("holders", [[A], [A, B]])
    def test_charges_that_were_given_out_stay_as_they_are(self, holders: list[Holder]) -> None:
        """A scrape that is being written does not see the next tick's."""
        ledger = DeviceLedger()
        given = []
        for now in (1.0, 2.0, 3.0):
            ledger.charge(
                totals(now, now, now, idle=now), holders, process_seconds=None, owners={}, now=now
            )
            given.append(ledger.charges())

        shown = [sum(each.flop or 0.0 for each in one.accounts.values()) for one in given]
        idle = [
            sum(each.state_seconds.get("idle", 0.0) for each in one.accounts.values())
            for one in given
        ]
        assert shown == [1.0, 2.0, 3.0]
        assert idle == [1.0, 2.0, 3.0]

    def test_idle_capacity_is_charged_to_its_holder_or_to_nobody(self) -> None:
        """An unused GPU that a pod holds is charged to the pod; without a pod, to no one."""
        ledger = DeviceLedger()
        for now, holders in ((0.0, [A]), (10.0, [A]), (30.0, [])):
            ledger.charge(
                totals(0.0, 0.0, now, idle=now),
                holders,
                process_seconds=None,
                owners={},
                now=now,
            )
        accounts = ledger.charges().accounts

        assert accounts[A].state_seconds == {"idle": 10.0}
        assert accounts[A].energy_joules == pytest.approx(10.0)
        assert accounts[NOBODY].state_seconds == {"idle": 20.0}

    def test_a_new_holder_starts_at_zero(self) -> None:
        """So that the first scrape of its series loses nothing."""
        ledger = DeviceLedger()
        ledger.charge(
            totals(1e12, 1.0, 1.0, tensor=1.0), [A], process_seconds=None, owners={}, now=0.0
        )
        ledger.charge(
            totals(1e12, 1.0, 1.0, tensor=1.0), [A, B], process_seconds=None, owners={}, now=1.0
        )

        assert ledger.charges().accounts[B].flop == 0.0

    def test_a_short_pause_of_samples_keeps_the_last_shares(self) -> None:
        """The driver's samples come late; after ten seconds they are too old to use."""
        ledger = DeviceLedger()
        owners = {1: A, 2: B}
        seconds = {1: 0.0, 2: 0.0}

        def flop_of_a(flop: float, now: float) -> float:
            ledger.charge(
                totals(flop, 0.0, 0.0, tensor=now),
                [A, B],
                process_seconds=dict(seconds),
                owners=owners,
                now=now,
            )
            return ledger.charges().accounts[A].flop or 0.0

        flop_of_a(0.0, 0.0)
        seconds[1] = 1.0
        assert flop_of_a(10.0, 1.0) == 10.0
        assert flop_of_a(20.0, 2.0) == 20.0
        assert flop_of_a(30.0, 20.0) == 25.0

    def test_a_departed_holder_is_shown_for_an_hour(self) -> None:
        """Then its accounts are dropped; no other counter changes."""
        ledger = DeviceLedger()
        ledger.charge(
            totals(1.0, 1.0, 1.0, idle=1.0), [A], process_seconds=None, owners={}, now=0.0
        )
        for now in (1.0, DEPARTED_SECONDS):
            ledger.charge(
                totals(1.0, 1.0, 1.0, idle=1.0), [B], process_seconds=None, owners={}, now=now
            )
        assert A in ledger.charges().accounts
        before = ledger.charges().accounts[B]

        ledger.charge(
            totals(1.0, 1.0, 1.0, idle=1.0),
            [B],
            process_seconds=None,
            owners={},
            now=DEPARTED_SECONDS + 1,
        )
        after = ledger.charges().accounts
        assert A not in after
        assert after[B].flop == before.flop

    def test_the_most_recent_departures_are_shown(self) -> None:
        """A pod that crashes and restarts every second under a new name does not fill the memory."""
        ledger = DeviceLedger()
        pods = [Holder("pod", "team", f"crash-{number}", "main") for number in range(200)]
        for number, pod in enumerate(pods):
            ledger.charge(
                totals(number + 1.0, 0.0, 0.0, idle=1.0),
                [pod],
                process_seconds=None,
                owners={},
                now=float(number),
            )

        shown = [holder for holder in ledger.charges().accounts if holder is not NOBODY]
        assert shown == pods[-1 - DEPARTED_MAX :]


AMOUNT = st.floats(0, 1e18, allow_nan=False)


class TestPartitions:
    """A GPU with MIG instances: work by what each instance did, time by the SMs that it has."""

    @staticmethod
    def charged(partition: Partition | None, **seconds: float) -> DeviceLedger:
        ledger = DeviceLedger()
        for total in (
            totals(0.0, 0.0, 50.0, **dict.fromkeys(seconds, 0.0)),
            totals(400e12, 9e12, 1050.0, **seconds),
        ):
            ledger.charge(
                total, [A, B], process_seconds=None, owners={}, now=0.0, partition=partition
            )
        return ledger

    def test_a_worked_example(self) -> None:
        """A has half of the SMs and is busy for a fifth of 10 s, B has a quarter and is busy for four fifths.

        So A's SMs are 0.1 of the GPU at work, B's 0.2: the GPU is busy for 3 s, and idle for 7 s: 4 of
        them are A's, 0.5 are B's, 2.5 of the free quarter. Idle energy is 700 J: 400, 50 and 250 J; busy
        energy 300 J: 100 and 200 J. FLOP and bytes are those that the instances counted.
        """
        partition = Partition(
            sms={A: 0.5, B: 0.25, NOBODY: 0.25},
            flop={A: 1e12, B: 3e12},
            dram_bytes={A: 2e9, B: 1e9},
            busy={A: 0.1, B: 0.2},
            basis={A: "exclusive", B: "exclusive"},
        )
        charges = self.charged(partition, memory=3.0, idle=7.0).charges()
        a, b, nobody = (charges.accounts[holder] for holder in (A, B, NOBODY))

        assert (a.flop, b.flop) == pytest.approx((100e12, 300e12))
        assert (a.dram_bytes, b.dram_bytes) == pytest.approx((6e12, 3e12))
        assert a.state_seconds == pytest.approx({"memory": 1.0, "idle": 4.0})
        assert b.state_seconds == pytest.approx({"memory": 2.0, "idle": 0.5})
        assert nobody.state_seconds == pytest.approx({"memory": 0.0, "idle": 2.5})
        assert nobody.flop == pytest.approx(0.0, abs=1.0)
        assert (a.energy_joules, b.energy_joules) == pytest.approx((500.0, 250.0))
        assert nobody.energy_joules == pytest.approx(250.0 + 50.0)
        assert set(charges.basis.values()) == {"exclusive"}

    def test_an_idle_instance_pays_for_its_time_alone(self) -> None:
        """The GPU says that it was busy all the time, as one of its instances was: FLOP and energy are B's.

        Each still has the time of its half of the SMs, whatever it did.
        """
        partition = Partition(
            sms={A: 0.5, B: 0.5, NOBODY: 0.0},
            flop={A: 0.0, B: 1.0},
            dram_bytes={A: 0.0, B: 1.0},
            busy={A: 0.0, B: 0.5},
            basis={A: "exclusive", B: "exclusive"},
        )
        accounts = self.charged(partition, memory=10.0).charges().accounts

        assert accounts[A].flop == 0.0
        assert accounts[A].energy_joules == 0.0
        assert accounts[B].energy_joules == pytest.approx(1000.0)
        assert accounts[A].state_seconds == pytest.approx({"memory": 5.0})

    def test_what_a_departed_holder_did_is_nobodys(self) -> None:
        """A did a quarter of 400 TFLOP, and one that has left the rest: they are not A's."""
        gone = Holder("job", hpc_job="gone")
        partition = Partition(
            sms={A: 0.5, NOBODY: 0.5},
            flop={A: 1.0, gone: 3.0},
            busy={A: 0.5},
            basis={A: "exclusive"},
        )
        accounts = self.charged(partition, memory=10.0).charges().accounts

        assert accounts[A].flop == pytest.approx(100e12)
        assert accounts[NOBODY].flop == pytest.approx(300e12)

    def test_instances_that_do_not_report_share_by_their_sms(self) -> None:
        """And the basis says that it is an assumption."""
        charges = self.charged(Partition(sms={A: 0.5, B: 0.25, NOBODY: 0.25}), idle=10.0).charges()

        assert charges.accounts[A].flop == pytest.approx(200e12)
        assert charges.accounts[A].energy_joules == pytest.approx(500.0)
        assert set(charges.basis.values()) == {"equal"}


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    """Any division of a GPU among tenants, with any work: less time busy than its SMs have."""
    cuts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    sms = {holder: cut / 132 for holder, cut in zip((A, B, C), cuts, strict=False)}
    sms[NOBODY] = 1.0 - sum(sms.values())
    amounts = st.dictionaries(st.sampled_from([A, B, C, NOBODY]), AMOUNT)
    at_work = {holder: draw(st.floats(0, part)) for holder, part in sms.items()}
    return Partition(sms, draw(amounts), draw(amounts), at_work, {A: "exclusive"})


HOLDERS = st.lists(st.sampled_from([A, B, C]), unique=True, max_size=3)
TICKS = st.lists(
    st.tuples(
        HOLDERS,
        AMOUNT,  # FLOP
        AMOUNT,  # bytes
        st.floats(0, 1e6),  # joules
        st.dictionaries(
            st.sampled_from(["tensor", "memory", "stall", "idle", "clock_power"]),
            st.floats(0, 60),
        ),
        st.none() | st.dictionaries(st.integers(1, 5), st.floats(0, 60)),
        st.dictionaries(st.integers(1, 5), st.sampled_from([A, B, C, NOBODY])),
        st.floats(0, 3600),
        st.none() | partitions(),
    ),
    max_size=20,
)


@given(TICKS)
def test_the_shares_sum_to_the_device_and_no_counter_falls(ticks) -> None:
    """For random tenants that come and go, processes that move, partitions, gaps, and losses of samples.

    Accounts of holders that left an hour ago are kept here as they were when last seen.
    """
    ledger = DeviceLedger()
    flop = dram = energy = now = 0.0
    seconds: dict[str, float] = {}
    used: dict[int, float] = {}
    dropped: list[Account] = []
    before: dict[Holder, Account] = {}
    for holders, flops, moved, joules, spent, processes, owners, gap, partition in ticks:
        flop, dram, energy, now = flop + flops, dram + moved, energy + joules, now + gap
        for state, amount in spent.items():
            seconds[state] = seconds.get(state, 0.0) + amount
        for pid, amount in (processes or {}).items():
            used[pid] = used.get(pid, 0.0) + amount
        ledger.charge(
            Totals(flop, dram, energy, dict(seconds)),
            holders,
            process_seconds=None if processes is None else dict(used),
            owners=owners,
            now=now,
            partition=partition,
        )
        accounts = dict(ledger.charges().accounts)
        dropped += [account for holder, account in before.items() if holder not in accounts]

        everyone = [*accounts.values(), *dropped]
        for total, parts in (
            (flop, [account.flop or 0.0 for account in everyone]),
            (dram, [account.dram_bytes or 0.0 for account in everyone]),
            (energy, [account.energy_joules or 0.0 for account in everyone]),
            *(
                (total, [account.state_seconds.get(state, 0.0) for account in everyone])
                for state, total in seconds.items()
            ),
        ):
            assert math.fsum(parts) == pytest.approx(total, rel=1e-9, abs=1e-9)
        for holder, account in before.items():
            if holder in accounts:
                assert (accounts[holder].flop or 0.0) >= (account.flop or 0.0)
                assert (accounts[holder].energy_joules or 0.0) >= (account.energy_joules or 0.0)
        before = accounts
