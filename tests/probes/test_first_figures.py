"""What is measured first and how often, and how a vanished worker comes back."""

from dataclasses import replace

import pytest
import structlog

from probes.protocol import KernelInfo
from tests.probes.simulation import COPY, GEMM, LAUNCH, Ending, Host, gpu


FP64 = KernelInfo(name="gemm_fp64", quantity="flops", label="fp64")


def processor(**fields):
    """A host processor whose FLOPS are shown in fp32."""
    return gpu(
        **{"key": "cpu0", "uuid": "CPU-0", "kind": "cpu", "headline_precision": "bf16"} | fields
    )


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path, [processor()])
    made.kernels = (LAUNCH, FP64, GEMM, COPY)
    return made


def names(host):
    return [request.kernel for request in host.requests]


class TestOrder:
    def test_the_headline_and_the_copy_come_first(self, host):
        """In the first cycle, whatever the registry's order."""
        host.cycle()

        assert names(host)[:2] == ["gemm_bf16", "copy_device"]

    def test_they_come_three_times_as_often_as_the_others(self, host):
        """Where an interval's budget holds one kernel: of 80 runs the headline has about 3 in 8."""
        host.script.extend([Ending(share=1.0)] * 200)
        for _ in range(90):
            host.cycle()
        counts = {name: names(host).count(name) for name in set(names(host))}
        total = sum(counts.values())

        assert counts["gemm_bf16"] / total == pytest.approx(3 / 8, abs=0.08)
        assert counts["copy_device"] / total == pytest.approx(3 / 8, abs=0.08)
        assert counts["gemm_fp64"] >= 5
        assert counts["launch"] >= 5

    def test_a_healthy_host_has_no_gap_in_two_hours(self, host):
        """Whatever of its allowance each run takes, the headline figures are never stale."""
        host.script.extend([Ending(share=0.7)] * 2000)
        host.cycle()
        for _ in range(120):
            seen = host.cycle()

            assert "bf16" in seen.flops
            assert ("device", "") in seen.bandwidth_bytes_per_second


# Runs of which no three agree: other programs disturbed them.
DISTURBED = Ending(share=0.05, changes={"run_seconds": (0.001, 0.002, 0.003)})


class TestDisturbed:
    def test_a_disturbed_headline_is_measured_once_more_in_its_cycle(self, host):
        """After the others, and only once: the copy's second try has a value here."""
        host.script.extend([Ending(share=0.05), DISTURBED, *[Ending(share=0.05)] * 3])
        seen = host.cycle()

        assert names(host) == ["gemm_bf16", "copy_device", "launch", "gemm_fp64", "copy_device"]
        assert ("device", "") in seen.bandwidth_bytes_per_second
        assert seen.runs["copy_device", "contended"] == 1

    def test_a_second_disturbed_run_is_the_last_of_the_cycle(self, host):
        """Where the machine stays busy, the budget is not spent on one kernel."""
        host.kernels = (COPY,)
        host.script.extend([DISTURBED] * 2)
        host.cycle()

        assert names(host) == ["copy_device"] * 2

    def test_a_repetition_that_the_budget_does_not_allow_is_no_skipped_kernel(self, host):
        """The kernel had its turn."""
        host.kernels = (COPY,)
        host.script.append(Ending(share=1.0, changes=DISTURBED.changes))
        seen = host.cycle()

        assert names(host) == ["copy_device"]
        assert seen.skips.get("budget", 0) == 0

    def test_other_kernels_and_gpus_wait_for_their_next_turn(self, host, tmp_path):
        """A processor's fp64 is no headline; on a GPU a tenant stays longer than a cycle."""
        host.kernels = (FP64,)
        beside = Host(tmp_path / "gpu")
        beside.kernels = (COPY,)
        for each in (host, beside):
            each.script.append(DISTURBED)
            each.cycle()

        assert names(host) == ["gemm_fp64"]
        assert names(beside) == ["copy_device"]


class TestFirstCycle:
    def test_the_first_headline_figures_may_take_more_at_once(self, host):
        """Each takes all of an interval's budget, and both are there after one cycle."""
        host.script.extend([Ending(share=0.3), Ending(share=0.3)])
        seen = host.cycle()

        assert "bf16" in seen.flops
        assert ("device", "") in seen.bandwidth_bytes_per_second
        usable = 0.95 / 60
        assert usable < seen.gpu_seconds <= 5 * usable

    def test_a_gpu_never_uses_this_rule(self, tmp_path):
        """20 ms a minute is a promise to the server beside it."""
        beside = Host(tmp_path)
        beside.kernels = (GEMM, COPY)
        beside.script.extend([Ending(share=1.0)] * 2)

        assert beside.cycle().gpu_seconds <= 0.020


class TestMisfits:
    @pytest.fixture
    def host(self, tmp_path):
        """A GPU: on a processor an allowance may also end because other programs took the cores."""
        return Host(tmp_path)

    def test_a_processor_that_is_busy_loses_no_kernel(self, tmp_path):
        """Its runs were preempted until the allowance ended; the kernel is tried again."""
        busy = Host(tmp_path, [processor()])
        busy.kernels = (FP64,)
        busy.script.extend([Ending("allowance", share=0.9)] * 4)
        for _ in range(4):
            busy.cycle()

        assert names(busy) == ["gemm_fp64"] * 4
        assert busy.snapshot().runs["gemm_fp64", "contended"] == 4

    def test_a_kernel_that_cannot_fit_is_left_out_by_name_once(self, host):
        """Twice a whole interval was too small for it: one warning, and no third try."""
        host.kernels = (FP64,)
        host.script.extend([Ending("allowance", share=0.9)] * 10)
        with structlog.testing.capture_logs() as logs:
            for _ in range(5):
                host.cycle()

        assert names(host) == ["gemm_fp64"] * 2
        said = [each for each in logs if each["event"] == "probe_kernel_left_out"]
        assert [each["kernel"] for each in said] == ["gemm_fp64"]
        assert said[0]["remedy"] == "raise probes.budget"

    def test_another_budget_is_another_chance(self, host):
        """It is tried again after a reload."""
        host.kernels = (FP64,)
        host.script.extend([Ending("allowance", share=0.9)] * 2)
        for _ in range(3):
            host.cycle()
        host.scheduler.reconfigure(replace(host.config, budget_seconds=0.1))
        host.cycle()

        assert names(host) == ["gemm_fp64"] * 3


class TestIdleDeath:
    def test_a_worker_that_was_ended_between_two_cycles_is_back_at_once(self, host):
        """No kernel failed: no failed run, no wait, one restart."""
        host.cycle()
        host.workers[-1].alive = False
        host.scheduler.revive()

        assert host.workers[-1].alive
        seen = host.cycle()
        assert seen.worker_restarts == 1
        assert {outcome for _, outcome in seen.runs} == {"ok"}
        assert "backoff" not in seen.skips

    def test_a_worker_that_is_killed_again_waits(self, host):
        """Within five minutes: an operator, or a lack of memory, keeps ending it."""
        host.cycle()
        for _ in range(2):
            host.workers[-1].alive = False
            host.scheduler.revive()
            host.scheduler.cycle()

        assert not host.workers[-1].alive
        assert host.snapshot().skips["backoff"] == 1

        host.cycle(after=60.0)
        assert host.workers[-1].alive

    def test_paused_it_stays_away(self, host):
        """Starting one takes memory, which a pause is meant to prevent."""
        host.cycle()
        host.scheduler.paused_by_operator = True
        host.workers[-1].alive = False
        host.scheduler.revive()

        assert not host.workers[-1].alive
