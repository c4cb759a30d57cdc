"""The GPM trials distinguish the known driver behaviours, tested on drivers that show each of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu_acceptance_parts import gpm_trials
from benchmarks.gpu_acceptance_parts.statistics_of import kind_of_count, scale_of_cycles
from exporter.collect.nvml import gpm
from tests.acceptance.driver import evaluate
from tests.fake_nvml import H100, H100_NO_CYCLES, FakeNvml, Load


LOAD = replace(Load.prefill(), sm_clock_mhz=1500)


def test_multi_metric_calls_that_collapse_are_detected(tmp_path: Path) -> None:
    """A correct driver differs in none, one that repeats the first metric's value in nearly all."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(LOAD)
        trial = "asdict(trials.multi_equals_single(handle, 3, 0.12))"
        true = evaluate(fake, trial)
        fake.set(0, gpm_collapse=1)
        collapsed = evaluate(fake, trial)

    assert true == {"windows": 3, "unequal": []}
    assert gpm.HMMA_TENSOR in collapsed["unequal"]
    assert gpm.GRAPHICS not in collapsed["unequal"]  # the first one itself


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_cycle_counters_are_since_boot_and_scaled(tmp_path: Path, mode: str) -> None:
    """The fake counts since boot, as mean or sum over 132 SMs, at the 1.5 GHz of its load."""
    with FakeNvml([replace(H100, cycles_mode=mode)], tmp_path) as fake:
        fake.gpu(0).set_load(LOAD)
        trial = evaluate(fake, "asdict(trials.cycles(handle, 0.2, lambda: 1.5e9))")

    first, second, both = (
        {int(metric): value for metric, value in trial[name].items()}
        for name in ("first", "second", "both")
    )
    for metric in (gpm.SM_CYCLES_ELAPSED, gpm.HMMA_CYCLES):
        assert kind_of_count(first[metric], second[metric], both[metric]) == "since_boot"
    growth = second[gpm.SM_CYCLES_ELAPSED] - first[gpm.SM_CYCLES_ELAPSED]
    assert scale_of_cycles(growth, trial["seconds"], trial["hertz"], 132) == mode


def test_percentages_are_of_the_window(tmp_path: Path) -> None:
    """Values of the load, from percentages and from cycle counters alike."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(LOAD)
        found = evaluate(fake, "trials.window_under(handle, 0.2)")

    assert found[str(gpm.HMMA_TENSOR)] == pytest.approx(100 * LOAD.hmma_tensor, rel=0.01)
    assert found[str(gpm.HMMA_CYCLES)] == pytest.approx(100 * LOAD.hmma_tensor, rel=0.01)
    assert found[str(gpm.DRAM)] == pytest.approx(100 * LOAD.dram, rel=0.01)


def test_an_old_driver_has_no_cycles(tmp_path: Path) -> None:
    """Percentages alone, and no made-up counters."""
    with FakeNvml([H100_NO_CYCLES], tmp_path) as fake:
        fake.gpu(0).set_load(LOAD)
        found = evaluate(fake, "trials.window_under(handle, 0.15)")

    assert not {str(metric) for metric in gpm.CYCLE_IDS} & found.keys()
    assert str(gpm.SM) in found


def test_the_cost_of_a_tick_is_listed_by_call(tmp_path: Path) -> None:
    """A GPM call of 10 ms: a sample takes one, four metrics take four calls alone and one together."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.set(0, gpm_call_ns=10_000_000)
        sample, alone, together = evaluate(fake, "trials.tick_cost(handle, [1, 2, 3, 4], 2)")

    assert sample >= 0.01
    assert alone >= 0.04
    assert together >= 0.01
    assert alone > 2 * together


def test_metrics_that_a_load_changed() -> None:
    """By more than the given points above its idle value; rates in bytes are not percentages."""
    idle = {gpm.SM: 1.0, gpm.HMMA_TENSOR: 0.0, gpm.PCIE_RECEIVE_MIB: 0.0}
    loaded = {
        gpm.SM: 99.0,
        gpm.HMMA_TENSOR: 80.0,
        gpm.IMMA_TENSOR: 3.0,
        gpm.PCIE_RECEIVE_MIB: 900.0,
        gpm.HMMA_CYCLES: 80.0,
    }

    assert gpm_trials.moved(idle, loaded, 5) == [gpm.SM, gpm.HMMA_TENSOR, gpm.HMMA_CYCLES]


def test_counters_that_stood_still_have_no_shares() -> None:
    """No elapsed cycles, no division."""
    assert (
        gpm_trials.cycle_percentages({gpm.SM_CYCLES_ELAPSED: 5}, {gpm.SM_CYCLES_ELAPSED: 5}) == {}
    )
