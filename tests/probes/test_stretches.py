"""How long a processor is measured: back to back, until enough of the fastest runs agree."""

import types

import pytest

from probes.device import Allowance, AllowanceError
from probes.kernels import all_kernels
from probes.measure import Workbench, measure
from probes.protocol import Device, Run


torch = pytest.importorskip("torch")

from probes.cpu import CpuDevice  # noqa: E402 - needs torch
from probes.device import Chunk  # noqa: E402 - needs torch


SHAPE = (2**20,)


@pytest.fixture(scope="module")
def opened():
    return CpuDevice(Device(kind="cpu", key="cpu0", l2_bytes=512 * 1024), 1)


class Scripted:
    """A processor whose stretches take what the test says; `counts` are their numbers of runs."""

    def __init__(self, device, spans):
        self.device = device
        self.spans = iter(spans)
        self.counts = []

    def measured(self, allowance=1.0, **fields):
        kernel = all_kernels()["copy_device"]
        allowance = Allowance(lambda _: None, allowance)
        bench = Workbench(self.device)
        self.device.arena.reset()
        prepared = kernel.prepare(self.device, allowance, SHAPE, None)
        prepared.verify = lambda device, allowance: types.SimpleNamespace(
            digest="", repeats_agree=True, exact=None
        )
        bench._prepared["copy_device", SHAPE, None] = (self.device.arena.epoch, prepared)

        def chunk(allowance, enqueue, first, count):
            self.counts.append(count)
            # A run that is preempted has a minus sign.
            script = [next(self.spans) for _ in range(count)]
            spans = [abs(each) for each in script]
            allowance.idle(sum(spans))
            return Chunk(spans, sum(spans), 3e9, [each < 0 for each in script])

        self.device.chunk = chunk
        try:
            return measure(
                bench,
                kernel,
                Run(
                    identifier=1,
                    kernel="copy_device",
                    device=0,
                    allowance_seconds=allowance,
                    max_chunk_seconds=0.001,
                    gap_seconds=10.0,
                    timed_runs=4,
                    shape=SHAPE,
                ),
                allowance,
            )
        finally:
            del self.device.chunk


def test_a_quiet_processor_is_measured_in_one_stretch(opened):
    """Two runs to learn how long one takes, one that is dropped, four that count; no gap of 10 s."""
    processor = Scripted(opened, [0.003, 0.001, 0.002, *[0.001] * 4])
    result = processor.measured()

    assert processor.counts == [2, 5]
    assert result.run_seconds == (0.001,) * 4
    assert result.clock_hertz == 3e9


def test_a_disturbed_one_until_three_runs_agree(opened):
    """Within 3 % of the fastest: 1.00, 1.01, 1.02 ms, the last of them in the second stretch."""
    first = [0.009, 0.0010, 0.0015, 0.00101, 0.0020]
    second = [0.009, 0.00102, 0.0015, 0.0016, 0.0017]
    processor = Scripted(opened, [0.003, 0.001, *first, *second, *[1.0] * 10])
    result = processor.measured()

    assert processor.counts == [2, 5, 5]
    assert result.run_seconds == (*first[1:], *second[1:])


def test_one_that_never_agrees_six_times_as_long(opened):
    """Four runs were asked for, 24 are done, all different: the judgement will be contended."""
    growing = [0.001 * 1.1**number for number in range(30)]
    processor = Scripted(opened, [0.003, 0.001, *growing])

    assert len(processor.measured().run_seconds) == 24
    assert processor.counts == [2, *[5] * 6]


def test_runs_that_were_preempted_do_not_agree(opened):
    """The first stretch's four are alike, and each lost a thread: the second one is needed."""
    processor = Scripted(opened, [0.003, 0.001, *[-0.004] * 5, *[0.001] * 5])
    result = processor.measured()

    assert processor.counts == [2, 5, 5]
    assert result.preempted == (True,) * 4 + (False,) * 4
    assert result.run_seconds == (0.004,) * 4 + (0.001,) * 4


def test_long_runs_are_reported_two_at_a_time(opened):
    """Of 12 ms each: two go past 20 ms, and more would look like a kernel that hangs."""
    processor = Scripted(opened, [0.013, 0.012, *[0.013, 0.012] * 3])
    result = processor.measured()

    assert processor.counts == [2, 2, 2, 2]
    assert result.run_seconds == (0.012,) * 3


def test_the_allowance_ends_a_stretch_early(opened):
    """13 ms: two runs take 4.0, three 3.4, four 7.1, and nothing is left for a third stretch."""
    spans = [0.003, 0.001, 0.001, 0.0011, 0.0013, 0.0015, 0.0018, *[0.0019] * 10]
    processor = Scripted(opened, spans)
    result = processor.measured(allowance=0.013)

    assert processor.counts == [2, 3, 4]
    assert len(result.run_seconds) == 2 + 3


def test_fewer_than_three_runs_give_no_result(opened):
    """The allowance holds the first two runs and nothing more."""
    with pytest.raises(AllowanceError):
        Scripted(opened, [0.003, 0.001]).measured(allowance=0.0045)
