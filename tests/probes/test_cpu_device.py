"""All cores as one device: a run counts only when none of its threads had to wait for others."""

import pytest

from probes.facts import DeviceFacts
from probes.judgement import judge, undisturbed
from probes.kernels import all_kernels
from probes.protocol import KernelInfo, Result


pytest.importorskip("torch")

from probes.allowance import Allowance
from probes.cpu import CpuDevice, ThreadTimes, _all_present
from probes.protocol import Device


MS = 1_000_000
GEMM = KernelInfo(name="gemm_fp32", quantity="flops", label="fp32")
PROCESSOR = DeviceFacts(key="cpu0", uuid="CPU-0", name="", kind="cpu")


@pytest.mark.parametrize(
    ("taken", "team", "present"),
    [
        ((1.00, 1.00), 2, True),  # both worked, or waited awake, for the whole millisecond
        ((1.00, 0.96), 2, True),  # clocks are read one after the other
        ((1.00, 0.90), 2, False),  # the second thread had to wait a tenth of the run
        ((1.00, 0.00), 2, False),  # the other program kept its core
        ((1.00, 0.00), 1, True),  # a kernel of one thread: the others sleep
        ((0.00, 1.00, 1.00), 2, True),  # torch has other threads, which sleep
        ((1.00,), 2, False),  # a team that is not whole
        ((*[1.00] * 63, 0.50), 64, False),  # one of 64 halves the speed of all
    ],
)
def test_each_thread_of_the_team_must_have_been_at_work(taken, team, present):
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


def test_runs_that_agree_are_no_value_when_they_were_preempted():
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


def test_a_gemm_that_is_too_small_is_no_value():
    """Seven runs of 3 microseconds agree; they show the start of the threads, not the cores' speed."""
    assert judged(result((0.000003,) * 7)).outcome == "contended"


def test_two_undisturbed_runs_are_too_few():
    """Three must agree."""
    assert judged(result((0.001,) * 4, (True, True, False, False))).outcome == "contended"


def test_the_threads_own_clocks_go_on_within_a_tick():
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
