"""What a MIG instance can do, and what a GPU does as the sum of its instances."""

from dataclasses import replace

import pytest

from exporter.accounting.mig import (
    InstanceShare,
    instance_peaks,
    memory_share,
    whole_gpu_window,
)
from exporter.accounting.peaks import PeakOverride
from exporter.readings import ActivityWindow, DeviceIdentity


GPU = DeviceIdentity(
    index="0",
    uuid="GPU-1",
    name="NVIDIA H100 80GB HBM3",
    compute_capability=(9, 0),
    sm_clock_max_hertz=1.98e9,
    memory_size_bytes=81559 << 20,
)
SMALL = replace(GPU, uuid="MIG-1", mig="7", sm_count=16, memory_size_bytes=9984 << 20)
LARGE = replace(GPU, uuid="MIG-2", mig="1", sm_count=60, memory_size_bytes=40448 << 20)


def test_peaks_are_shared_by_sms_and_memory_slices() -> None:
    """1g.10gb has 16 of 132 SMs and one of eight memory slices."""
    peaks = instance_peaks(GPU, SMALL)

    assert peaks.flops["bf16"] == pytest.approx(989.4e12 * 16 / 132)
    assert peaks.dram_bytes_per_second == pytest.approx(3350e9 / 8)
    assert peaks.sm_count == 16
    assert peaks.nvlink_bytes_per_second is None


def test_memory_comes_in_eighths() -> None:
    """3g.40gb has half of the memory, although NVML says 40448 of 81559 MiB."""
    assert memory_share(81559 << 20, 40448 << 20) == 0.5
    assert memory_share(81559 << 20, 1) == 0.125
    assert memory_share(None, 1) is None


def test_an_unknown_model_is_derived_from_the_instances_sms() -> None:
    """16 SMs x 4096 FLOP per clock x 92.4 % of 1.98 GHz: a GPU in MIG mode reports no SM count."""
    unknown = replace(GPU, name="NVIDIA H100 SXM6")

    assert instance_peaks(unknown, SMALL).flops["bf16"] == pytest.approx(16 * 4096 * 1.98e9 * 0.924)


def test_configured_values_of_the_gpu_are_shared_among_instances() -> None:
    """16 of 128 SMs have an eighth of 2 PFLOP/s; 1g.10gb an eighth of 4 TB/s."""
    override = PeakOverride({"bf16": 2e15}, sm_count=128, dram_bytes_per_second=4e12)
    peaks = instance_peaks(GPU, SMALL, override)

    assert peaks.origin == "config"
    assert peaks.flops["bf16"] == 2.5e14
    assert peaks.dram_bytes_per_second == 5e11


def test_without_an_sm_count_there_is_no_peak() -> None:
    """No value is better than a wrong one."""
    assert instance_peaks(GPU, replace(SMALL, sm_count=None)).flops == {}


def window(**activities: float) -> ActivityWindow:
    return ActivityWindow("gpm", 10.0, 11.0, **activities)


def test_the_gpu_is_the_weighted_sum_of_its_instances() -> None:
    """60 SMs at 0.5 and 16 at 1.0 of 132, the rest idle: 46/132; memory by slices: 0.8/2 + 0.4/8."""
    whole = whole_gpu_window(
        [
            (window(sm=0.5, dram=0.8), InstanceShare(60 / 132, 0.5)),
            (window(sm=1.0, dram=0.4), InstanceShare(16 / 132, 0.125)),
        ]
    )

    assert whole is not None
    assert whole.sm == pytest.approx(46 / 132)
    assert whole.dram == pytest.approx(0.45)
    assert (whole.start_seconds, whole.end_seconds) == (10.0, 11.0)


def test_what_one_instance_does_not_know_is_unknown_for_the_gpu() -> None:
    """An activity is summed only when every instance has it."""
    whole = whole_gpu_window(
        [
            (window(sm=0.5, fp64=0.1), InstanceShare(0.5, 0.5)),
            (window(sm=0.5), InstanceShare(0.5, None)),
        ]
    )

    assert whole is not None
    assert (whole.sm, whole.fp64, whole.dram) == (0.5, None, None)


def test_no_instances_no_window() -> None:
    """Nothing is known about a GPU in MIG mode without instances."""
    assert whole_gpu_window([]) is None
