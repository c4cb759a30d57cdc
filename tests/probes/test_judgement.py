"""Judging a result, on numbers worked by hand."""

from dataclasses import replace

import msgspec
import pytest

from probes.facts import DeviceFacts
from probes.judgement import contention, judge, undisturbed_run
from probes.protocol import KernelInfo, Result


GEMM = KernelInfo(name="gemm_bf16", quantity="flops", label="bf16")
COPY = KernelInfo(name="copy_device", quantity="bandwidth", label="device")
LAUNCH = KernelInfo(name="launch", quantity="latency", label="")
H100 = DeviceFacts(
    key="0",
    uuid="GPU-0",
    name="H100",
    kind="cuda",
    flop_per_clock_per_sm={"bf16": 4096.0},
    sm_clock_max_hertz=1.98e9,
)
# 100 GFLOP in 0.125 ms are 800 TFLOP/s; at 1.755 GHz 132 SMs could do 948.9.
RESULT = Result(
    identifier=1,
    shape=(2048, 2048, 11920),
    work_per_run=1e11,
    run_seconds=(0.000125,) * 7,
    executed_runs=9,
    clock_hertz=1.755e9,
    digest="aa",
    repeats_agree=True,
    exact=None,
    memory_bytes=0,
)


def changed(**fields):
    return msgspec.structs.replace(RESULT, **fields)


def verdict(result=RESULT, *, kernel=GEMM, facts=H100, baseline=None, digest=None, shared=False):
    return judge(
        kernel,
        result,
        facts,
        units=132,
        baseline=baseline,
        expected_digest=digest,
        shared=shared,
    )


class TestAccepted:
    def test_flops_and_efficiency(self):
        """800 TFLOP/s over 132 x 4096 x 1.755 GHz = 0.8431; per clock 455,840 FLOP."""
        judged = verdict()

        assert judged.outcome == "ok"
        assert judged.value == pytest.approx(8e14)
        assert judged.efficiency == pytest.approx(0.8431, abs=1e-4)
        assert judged.normalised == pytest.approx(455_840, rel=1e-5)

    def test_the_clock_divides_out(self):
        """At half the clock and half the speed the efficiency is the same."""
        slow = changed(run_seconds=(0.00025,) * 7, clock_hertz=1.755e9 / 2)

        assert verdict(slow, facts=replace(H100, sm_clock_max_hertz=None)).efficiency == (
            pytest.approx(verdict().efficiency)
        )

    def test_an_efficiency_above_one_stands(self):
        """A wrong table is visible: nothing is clamped."""
        assert verdict(changed(run_seconds=(0.0001,) * 7)).efficiency == pytest.approx(
            1.0539, abs=1e-4
        )

    def test_no_clock_no_efficiency(self):
        """The speed still counts; but FLOP/s are nothing to compare FLOP per clock with."""
        judged = verdict(changed(clock_hertz=None))

        assert judged.outcome == "ok"
        assert judged.efficiency is None
        assert judged.value == pytest.approx(8e14)
        assert judged.normalised is None

    def test_a_processor_may_never_report_its_clock(self):
        """Then its FLOP/s are compared with each other."""
        cpu = replace(H100, kind="cpu")
        judged = verdict(changed(clock_hertz=None), facts=cpu)

        assert judged.normalised == judged.value == pytest.approx(8e14)

    def test_one_slow_run_of_seven_does_not_move_the_median(self):
        """T = 6 x 125 + 200 µs = 950, W = 875: share 0.921, accepted at the median."""
        judged = verdict(changed(run_seconds=(0.000125,) * 6 + (0.0002,)))

        assert judged.outcome == "ok"
        assert judged.value == pytest.approx(8e14)
        assert judged.contention.share == pytest.approx(875 / 950)

    def test_a_copy_is_bytes_per_second(self):
        """64 MiB read and written in 50 µs; the clock does not scale memory."""
        copy = changed(work_per_run=2.0 * 2**26, run_seconds=(5e-5,) * 7)
        judged = verdict(copy, kernel=COPY)

        assert judged.value == pytest.approx(2.684e12, rel=1e-3)
        assert judged.normalised == judged.value
        assert judged.efficiency is None

    def test_a_latency_is_its_median(self):
        """Launch jitter is not a sign of a tenant."""
        launches = changed(
            work_per_run=1.0, run_seconds=(4e-6, 5e-6, 2e-5), clock_hertz=None, digest=""
        )
        judged = verdict(launches, kernel=LAUNCH)

        assert judged.outcome == "ok"
        assert judged.value == 5e-6
        assert not judged.checked

    def test_launches_that_waited_for_a_tenant_are_discarded(self):
        """On a shared GPU a median of 2 ms beside a fastest of 6 µs is the tenant's time slice."""
        waited = changed(
            work_per_run=1.0, run_seconds=(6e-6, 2e-3, 2e-3), clock_hertz=None, digest=""
        )

        assert verdict(waited, kernel=LAUNCH, shared=True).outcome == "contended"
        assert verdict(waited, kernel=LAUNCH).outcome == "ok"

    def test_launches_beside_an_idle_tenant_count(self):
        """Jitter of the host: the median is 1.5 times the fastest."""
        jitter = changed(
            work_per_run=1.0, run_seconds=(6e-6, 9e-6, 9e-6), clock_hertz=None, digest=""
        )

        assert verdict(jitter, kernel=LAUNCH, shared=True).value == 9e-6


class TestContention:
    def test_the_bracket_of_a_half_busy_tenant(self):
        """T/W = 1.5: an open-loop tenant has a third of the GPU, a closed-loop one half."""
        beside = contention((0.001, 0.002), None, shared=False)

        assert beside.low == pytest.approx(1 / 3)
        assert beside.high == pytest.approx(0.5)

    def test_the_upper_bound_ends_at_one(self):
        """T/W = 4 means at least one tenant that is always busy."""
        assert contention((0.001, 0.007), None, shared=False).high == 1.0

    def test_alone_on_the_device(self):
        """Equal runs: 0 and 0."""
        beside = contention((0.001, 0.001), None, shared=False)

        assert (beside.low, beside.high) == (0.0, 0.0)

    def test_a_baseline_shows_what_slices_hide(self):
        """All runs took twice the baseline: on a shared GPU that is a tenant at 50-100 %."""
        beside = contention((0.002, 0.002), 0.001, shared=True)

        assert (beside.low, beside.high) == (0.5, 1.0)

    def test_alone_a_slow_run_is_the_hardware(self):
        """Without other processes on the GPU none took the time."""
        assert contention((0.002, 0.002), 0.001, shared=False).low == 0.0

    def test_a_faster_run_than_the_baseline_is_no_negative_tenant(self):
        """W never exceeds T."""
        assert contention((0.001, 0.001), 0.002, shared=True).low == 0.0

    def test_the_baseline_scales_with_the_clock(self):
        """455,840 FLOP per clock at half the clock take 250 µs: no other tenant."""
        slow = changed(run_seconds=(0.00025,) * 7, clock_hertz=1.755e9 / 2)

        assert verdict(slow, baseline=455_840.0, shared=True).contention.low == pytest.approx(
            0, abs=1e-4
        )

    def test_runs_that_were_all_interrupted_are_not_judged(self):
        """Spread over 125-300 µs with no three alike: contended, and no value."""
        judged = verdict(changed(run_seconds=(0.000125, 0.0002, 0.00024, 0.00028, 0.0003)))

        assert judged.outcome == "contended"
        assert judged.value is None
        assert judged.normalised is None
        assert judged.efficiency is None

    def test_the_fastest_runs_judge_a_shared_gpu(self):
        """Three of six ran undisturbed within 3 %: their mean of 126 µs counts."""
        runs = (0.000125, 0.000126, 0.000127, 0.0004, 0.0005, 0.0006)
        judged = verdict(changed(run_seconds=runs), shared=True)

        assert judged.outcome == "ok"
        assert judged.value == pytest.approx(1e11 / 0.000126)
        assert judged.contention.low > 0.5

    def test_two_alike_are_not_enough(self):
        """Chance makes two runs alike."""
        assert undisturbed_run((0.1, 0.1, 0.2, 0.3)) is None


class TestRejected:
    def test_a_slow_clock_is_throttling(self):
        """1.4 GHz is below three quarters of 1.98: only the efficiency, without the clock, counts."""
        judged = verdict(changed(clock_hertz=1.4e9, run_seconds=(0.000157,) * 7))

        assert judged.outcome == "throttled"
        assert judged.value is None
        assert judged.normalised is None
        assert judged.efficiency == pytest.approx(0.8415, abs=1e-3)

    def test_a_host_processor_may_run_slower_than_its_turbo(self):
        """The turbo clock of a single core is not guaranteed."""
        cpu = replace(H100, kind="cpu")

        assert verdict(changed(clock_hertz=1.0e9), facts=cpu).outcome == "ok"

    @pytest.mark.parametrize(
        ("result", "digest"),
        [
            (RESULT, "bb"),
            (changed(repeats_agree=False), None),
            (changed(exact=False), None),
            (changed(exact=False), "aa"),
        ],
    )
    def test_wrong_bits(self, result, digest):
        """Other bits than before, repeats that differ, or an inexact integer: no value is taken."""
        judged = verdict(result, digest=digest)

        assert judged.outcome == "mismatch"
        assert judged.value is None

    def test_a_mismatch_outweighs_contention(self):
        """Every run has one outcome, and corruption takes precedence."""
        torn = changed(run_seconds=(0.000125, 0.0002, 0.0003), repeats_agree=False)

        assert verdict(torn).outcome == "mismatch"

    def test_the_same_bits_again(self):
        """The expected result arrived."""
        judged = verdict(digest="aa")

        assert judged.outcome == "ok"
        assert judged.checked
