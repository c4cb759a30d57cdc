"""All cores as one device: other programs can delay a measurement, and never make it low."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from probes.facts import DeviceFacts
from probes.judgement import judge, undisturbed
from probes.kernels import all_kernels
from probes.protocol import KernelInfo, Result


pytest.importorskip("torch")

from probes.cpu import CpuDevice, ThreadTimes, _all_present
from probes.device import Allowance
from probes.measure import Workbench, measure
from probes.protocol import Device, Run


MS = 1_000_000
GEMM = KernelInfo(name="gemm_fp32", quantity="flops", label="fp32")
PROCESSOR = DeviceFacts(key="cpu0", uuid="CPU-0", name="", kind="cpu")


@pytest.mark.parametrize(
    ("taken", "team", "present"),
    [
        ((1.00, 1.00), 2, True),  # both worked, or busy-waited, for the whole millisecond
        ((1.00, 0.96), 2, True),  # clocks are read one after the other
        ((1.00, 0.90), 2, False),  # the second thread had to wait a tenth of the run
        ((1.00, 0.00), 2, False),  # the other program kept its core
        ((1.00, 0.00), 1, True),  # a kernel of one thread: the others sleep
        ((0.00, 1.00, 1.00), 2, True),  # torch has other threads, which sleep
        ((1.00,), 2, False),  # a team that is not whole
        ((*[1.00] * 63, 0.50), 64, False),  # one of 64 halves the speed of all
    ],
)
def test_every_thread_of_the_team_must_have_worked(taken, team, present):
    """By its own processor time over a run of 1 ms."""
    before = [5 * MS] * len(taken)
    after = [start + int(each * MS) for start, each in zip(before, taken, strict=True)]

    assert _all_present(before, after, MS, team) is present


def result(spans, preempted=()):
    return Result(
        identifier=1,
        shape=(256, 256, 256),
        work_per_run=3.4e7,
        run_seconds=spans,
        executed_runs=len(spans),
        clock_hertz=4e9,
        digest="",
        repeats_agree=True,
        exact=None,
        memory_bytes=1,
        preempted=preempted,
    )


def judged(measured):
    return judge(
        GEMM,
        measured,
        PROCESSOR,
        units=2,
        baseline=None,
        expected_digest=None,
        shared=False,
    )


def test_agreeing_runs_give_no_value_when_they_were_preempted():
    """Ten times as slow, seven times alike, with a thread away each time: nothing is accepted."""
    slow = result((0.0017,) * 7, preempted=(True,) * 7)

    assert judged(slow).outcome == "contended"
    assert judged(slow).value is None


def test_the_value_is_that_of_the_undisturbed_runs():
    """Three of 0.170 ms: 3.4e7 / 0.00017 = 200 GFLOP/s; the faster one that was preempted is no run."""
    mixed = result(
        (0.00016, 0.00017, 0.00017, 0.00017, 0.0017), preempted=(True, False, False, False, True)
    )

    assert undisturbed(mixed) == (0.00017,) * 3
    assert judged(mixed).value == pytest.approx(2e11)


def test_a_gemm_that_is_too_small_has_no_value():
    """Seven runs of 3 microseconds agree; they show the start of the threads, not the cores' speed."""
    assert judged(result((0.000003,) * 7)).outcome == "contended"


def test_two_undisturbed_runs_are_too_few():
    """Three must agree."""
    assert judged(result((0.001,) * 4, (True, True, False, False))).outcome == "contended"


def test_process_cpu_time_advances_within_a_tick():
    """This thread's work of some 0.1 ms shows, where the process's clock may lag by a tick."""
    times = ThreadTimes()
    sum(range(20_000))

    assert 0 < times.seconds_since() < 5


def test_only_precisions_that_the_processor_multiplies_in_are_probed(monkeypatch):
    """On one with AVX2 alone torch would emulate bf16, fp16, int8 and fp8."""
    from probes.kernels import gemm

    class Avx2:
        native_precisions = frozenset({"fp32", "fp64"})

    monkeypatch.setattr(gemm, "read_processor", Avx2)
    device = CpuDevice(Device(kind="cpu", key="cpu0", l2_bytes=512 * 1024), 1)
    have = {
        kernel.label
        for kernel in all_kernels().values()
        if kernel.quantity == "flops"
        and kernel.available(device, Allowance(lambda _: None, float("inf")))
    }

    assert have == {"fp32", "fp64"}


class TestCoreByCore:
    """A GEMM: each core on its own, and the rates are added up."""

    SPEC = Device(kind="cpu", key="cpu0", l2_bytes=512 * 1024)

    def test_the_rates_of_the_cores_are_added_up(self, monkeypatch):
        """Cores of 1 and 3 runs a millisecond do 4 together: a run on each in 2 / 4 = 0.5 ms."""
        device = CpuDevice(self.SPEC, 2)
        spans = {0: [0.0011, 0.001], 1: [0.001 / 3, 0.0005]}
        monkeypatch.setattr("probes.cpu._pieces", lambda _, core, *__: (spans[core], 4e9 + core))
        sent = []
        chunk = device.core_by_core(Allowance(sent.append, 1.0), lambda _: None, 1, 2)

        # The fastest run of each core first, then the second ones: 2 / (1 / 0.0011 + 2) ms.
        assert chunk.run_seconds == pytest.approx([0.0005, 2 / (1 / 0.0011 + 1 / 0.0005)])
        assert chunk.clock == 4e9 + 0.5
        assert chunk.preempted == (False, False)

    def test_each_core_has_its_own_thread_and_operands(self):
        """Run 0 is always on the first core, run 1 on the second; none on the caller's thread."""
        cores = sorted(os.sched_getaffinity(0))[:2]
        device = CpuDevice(self.SPEC, len(cores), cores)
        seen = set()

        def note(number):
            seen.add((number, frozenset(os.sched_getaffinity(0)), threading.get_native_id()))

        device.core_by_core(Allowance(lambda _: None, 1.0), note, 2, 5)

        assert {(number, mask) for number, mask, _ in seen} == {
            (number, frozenset({core})) for number, core in enumerate(cores)
        }
        assert len(seen) == len(cores)
        assert threading.get_native_id() not in {thread for _, _, thread in seen}

    def test_a_core_gets_no_help_from_other_threads(self):
        """torch splits nothing of a core's run, not even after others have set the number of threads."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            device = CpuDevice(self.SPEC, 2)
            matrix, seen = torch.ones(256, 256), set()

            def run(_):
                torch.mm(matrix, matrix).sum()
                seen.add(torch.get_num_threads())

            for _ in range(2):
                device.core_by_core(Allowance(lambda _: None, 1.0), run, 2, 5)

            assert seen == {1}
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)

    def test_busy_cores_are_measured_as_well(self):
        """With three endless loops on each core, a GEMM is accepted after some tries."""
        device = CpuDevice(self.SPEC, 1)
        loops = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(3 * len(os.sched_getaffinity(0)))
        ]
        try:
            bench, kernel = Workbench(device), all_kernels()["gemm_fp32"]
            judged_runs = [judged(measure(bench, kernel, RUN, Allowance(lambda _: None, 1.0)))]
            while judged_runs[-1].value is None and len(judged_runs) < 100:
                judged_runs.append(
                    judged(measure(bench, kernel, RUN, Allowance(lambda _: None, 1.0)))
                )
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()

        assert judged_runs[-1].outcome == "ok"


RUN = Run(
    identifier=1,
    kernel="gemm_fp32",
    device=0,
    allowance_seconds=1.0,
    max_chunk_seconds=0.001,
    gap_seconds=0.0,
    timed_runs=7,
)


@pytest.mark.parametrize(
    ("utilization", "seconds", "outcome"),
    [
        (0.9, 0.00021, "ok"),  # 81 % of the baseline's speed
        (0.9, 0.00022, "contended"),  # 77 %, but other programs could be the cause
        (0.05, 0.00022, "ok"),  # 77 %, and no other program is the cause: the processor is slow
        (None, 0.00022, "ok"),
    ],
)
def test_a_busy_processor_is_not_slow(utilization, seconds, outcome):
    """3.4e7 FLOP in 0.00017 s at 4 GHz is the baseline: 50 FLOP a cycle."""
    facts = replace(PROCESSOR, utilization_ratio=utilization)
    verdict = judge(
        GEMM,
        result((seconds,) * 7),
        facts,
        units=2,
        baseline=50.0,
        expected_digest=None,
        shared=False,
    )

    assert verdict.outcome == outcome


@pytest.mark.parametrize(("utilization", "normalised"), [(0.9, None), (0.05, 1e11)])
def test_bandwidth_used_by_others_is_not_blamed_on_the_memory(utilization, normalised):
    """3.4e7 bytes in 0.34 ms are 100 GB/s, half of the baseline: it is exported and not compared."""
    verdict = judge(
        KernelInfo(name="copy_device", quantity="bandwidth", label="device"),
        result((0.00034,) * 7),
        replace(PROCESSOR, utilization_ratio=utilization),
        units=2,
        baseline=2e11,
        expected_digest=None,
        shared=False,
    )

    assert verdict.value == pytest.approx(1e11)
    assert verdict.normalised == (None if normalised is None else pytest.approx(normalised))
