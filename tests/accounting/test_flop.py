"""Operations counted from pipe activities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.accounting.flop import PipeWork, count_flop
from exporter.accounting.peaks import Peaks, find_peaks
from exporter.readings import ActivityWindow, DeviceIdentity


H100 = find_peaks(
    DeviceIdentity("0", "GPU-1", "NVIDIA H100 80GB HBM3", compute_capability=(9, 0), sm_count=132)
)
A100 = find_peaks(DeviceIdentity("0", "GPU-1", "NVIDIA A100-SXM4-80GB", sm_count=108))


def window(seconds: float = 2.0, **values: float) -> ActivityWindow:
    return ActivityWindow("gpm", 10.0, 10.0 + seconds, **values)


def test_bf16_work_on_an_h100() -> None:
    """0.5 x 132 SMs x 1.5 GHz x 2 s x 4096 FLOP per clock and SM = 8.11008e14 FLOP."""
    flop = count_flop(window(hmma_tensor=0.5), H100, "bf16", 1.5e9)

    assert flop[PipeWork("tensor", "bf16")] == pytest.approx(8.11008e14)


def test_the_same_time_is_worth_twice_as_much_in_fp8() -> None:
    """HMMA time has no precision of its own: it is counted in the headline precision."""
    bf16 = count_flop(window(hmma_tensor=0.5), H100, "bf16", 1.5e9)
    fp8 = count_flop(window(hmma_tensor=0.5), H100, "fp8", 1.5e9)

    assert fp8[PipeWork("tensor", "fp8")] == 2 * bf16[PipeWork("tensor", "bf16")]


def test_fp8_work_that_only_the_union_shows_is_counted() -> None:
    """Tensor time that belongs to no named pipe counts as FP8 when the GPU serves in FP8."""
    seen = window(tensor=0.4, hmma_tensor=0.1, imma_tensor=0.0, dmma_tensor=0.0)

    fp8 = count_flop(seen, H100, "fp8", 1e9)
    bf16 = count_flop(seen, H100, "bf16", 1e9)

    assert fp8[PipeWork("tensor", "fp8")] == pytest.approx(0.4 * 132 * 2e9 * 8192)
    assert bf16[PipeWork("tensor", "bf16")] == pytest.approx(0.1 * 132 * 2e9 * 4096)


def test_every_pipe_has_its_own_counter() -> None:
    """Integer, FP64 tensor and the plain pipes at their own rates: one second at 1 GHz."""
    flop = count_flop(
        window(
            1.0,
            hmma_tensor=0.0,
            imma_tensor=0.1,
            dmma_tensor=0.2,
            dfma_tensor=0.2,
            fp64=0.3,
            fp32=0.4,
            fp16=0.5,
        ),
        H100,
        "bf16",
        1e9,
    )

    assert dict(flop) == {
        PipeWork("tensor", "bf16"): 0,
        PipeWork("tensor", "int8"): pytest.approx(0.1 * 132e9 * 8192),
        # DMMA and DFMA are two names for FP64 matrix work: the larger, not the sum.
        PipeWork("tensor", "fp64"): pytest.approx(0.2 * 132e9 * 256),
        PipeWork("fp64", "fp64"): pytest.approx(0.3 * 132e9 * 128),
        PipeWork("fp32", "fp32"): pytest.approx(0.4 * 132e9 * 256),
        PipeWork("fp16", "fp16"): pytest.approx(0.5 * 132e9 * 512),
    }


def test_counted_cycles_replace_clock_and_time() -> None:
    """With cycle counters no clock is sampled: 3e9 cycles are 3e9 cycles."""
    counted = ActivityWindow("gpm_cycles", 0.0, 2.0, hmma_tensor=0.5, sm_cycles=3e9)

    assert count_flop(counted, H100, "bf16", None)[PipeWork("tensor", "bf16")] == pytest.approx(
        0.5 * 132 * 3e9 * 4096
    )


def test_a_device_that_knows_only_the_union_is_counted_at_the_headline_precision() -> None:
    """dcgm-exporter's default fields have no split by pipe."""
    flop = count_flop(window(tensor=0.5), A100, "bf16", 1e9)

    assert dict(flop) == {PipeWork("tensor", "bf16"): pytest.approx(0.5 * 108 * 2e9 * 2048)}


def test_an_integer_headline_values_integer_work() -> None:
    """A GPU that serves in int4 does its work in IMMA; its half-precision work stays bf16."""
    flop = count_flop(window(1.0, hmma_tensor=0.1, imma_tensor=0.5), A100, "int4", 1e9)

    assert flop[PipeWork("tensor", "int4")] == pytest.approx(0.5 * 108e9 * 8192)
    assert flop[PipeWork("tensor", "bf16")] == pytest.approx(0.1 * 108e9 * 2048)


def test_nothing_is_counted_without_a_clock_or_an_sm_count() -> None:
    """A guess would be a number that was never measured."""
    assert not count_flop(window(hmma_tensor=0.5), H100, "bf16", None)
    assert not count_flop(window(hmma_tensor=0.5), Peaks("derived", "?"), "bf16", 1e9)


@given(
    st.floats(min_value=0, max_value=1),
    st.floats(min_value=0, max_value=3e9),
    st.floats(min_value=0.01, max_value=0.99),
)
def test_a_window_cut_in_two_counts_the_same(activity: float, hertz: float, cut: float) -> None:
    """FLOP are additive over time."""
    key = PipeWork("tensor", "bf16")
    whole = count_flop(window(10.0, hmma_tensor=activity), H100, "bf16", hertz)[key]
    parts = [
        count_flop(window(seconds, hmma_tensor=activity), H100, "bf16", hertz)[key]
        for seconds in (10.0 * cut, 10.0 * (1 - cut))
    ]

    assert sum(parts) == pytest.approx(whole, rel=1e-6)
