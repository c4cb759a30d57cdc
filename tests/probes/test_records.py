"""How long a probe's value is shown: by the cycle of its own kernel."""

import pytest

from probes.judgement import Contention, Judgement
from probes.protocol import KernelInfo
from probes.records import DeviceRecord


INTERVAL = 60.0
GEMM = KernelInfo("gemm_bf16", "flops", "bf16")
COPY = KernelInfo("copy_device", "bandwidth", "device")


def accepted(value: float) -> Judgement:
    """A good run of this value."""
    return Judgement(
        outcome="ok",
        value=value,
        normalised=value,
        efficiency=None,
        contention=Contention(0.0, 0.0),
        checked=False,
    )


def record(kernel: KernelInfo, *instants: float) -> DeviceRecord:
    """A device whose kernel was measured at these instants, with value 1 each time."""
    made = DeviceRecord("0", "GPU-0")
    for at in instants:
        judgement = accepted(1.0)
        made.judged(kernel, judgement, 0.9, "", now=at, unix_time=1.7e9 + at)
        made.clocked(1e9, at)
    return made


@pytest.mark.parametrize(
    ("instants", "last_shown"),
    [
        ((0.0,), 900.0),  # no cycle known yet: 15 intervals
        ((0.0, 60.0), 360.0),  # every interval: 2.5 of them are less than 5
        ((0.0, 240.0), 840.0),  # every fourth: 2.5 x 240 s after its last
        ((0.0, 3600.0), 4500.0),  # held back for an hour: never more than 15 intervals
    ],
)
def test_a_value_lives_as_long_as_its_kernels_cycle_allows(
    instants: tuple[float, ...], last_shown: float
) -> None:
    """Then it is gone from every gauge; the time of the last success stays forever."""
    made = record(GEMM, *instants)
    shown = made.snapshot(last_shown, INTERVAL)
    gone = made.snapshot(last_shown + 0.1, INTERVAL)

    assert (shown.flops, shown.baseline_ratio) == ({"bf16": 1.0}, {"gemm_bf16": 0.9})
    assert shown.sm_clock_hertz == 1e9
    assert (gone.flops, gone.baseline_ratio, gone.sm_clock_hertz) == ({}, {}, None)
    assert gone.last_success_seconds == {"gemm_bf16": 1.7e9 + instants[-1]}


def test_each_kernel_has_its_own_cycle() -> None:
    """The GEMM was due long ago, the copy is not yet."""
    made = record(GEMM, 0.0, 60.0)
    for at in (60.0, 360.0):
        copied = accepted(2.0)
        made.judged(COPY, copied, None, "", now=at, unix_time=at)
    results = made.snapshot(500.0, INTERVAL)

    assert results.flops == {}
    assert results.bandwidth_bytes_per_second == {("device", ""): 2.0}
