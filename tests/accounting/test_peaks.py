"""Peak rates: the data sheet where the GPU is known, else what its silicon says."""

import json
from importlib.resources import files

import pytest

from exporter.accounting.peaks import find_peaks, pcie_bytes_per_second
from exporter.readings import DeviceIdentity


TABLE = json.loads(files("exporter.accounting").joinpath("peaks.json").read_text())


def peaks_of(name: str, **facts: object):
    return find_peaks(DeviceIdentity("0", "GPU-1", name, **facts))  # type: ignore[arg-type]


def test_an_h100_has_its_data_sheet() -> None:
    """NVIDIA H100 data sheet, SXM5, dense: half of the sparse figures."""
    peaks = peaks_of("NVIDIA H100 80GB HBM3")

    assert peaks.origin == "datasheet"
    assert {name: round(flops / 1e12, 1) for name, flops in peaks.flops.items()} == {
        "fp64": 66.9,
        "fp32": 66.9,
        "tf32": 494.7,
        "fp16": 989.4,
        "bf16": 989.4,
        "fp8": 1978.9,
        "int8": 1978.9,
    }
    assert peaks.dram_bytes_per_second == 3.35e12
    assert peaks.nvlink_bytes_per_second == 450e9


def test_silicon_without_a_unit_has_no_peak_for_it() -> None:
    """An A100 has no fp8, a T4 no bf16: absent, not zero."""
    assert "fp8" not in peaks_of("NVIDIA A100-SXM4-80GB").flops
    assert "bf16" not in peaks_of("Tesla T4").flops
    assert peaks_of("Tesla T4").default_precision == "fp16"


def test_l40_and_l40s_differ_by_two() -> None:
    """Both are compute capability 8.9 with 142 SMs: the name decides."""
    l40, l40s = peaks_of("NVIDIA L40"), peaks_of("NVIDIA L40S")

    assert l40s.flops["bf16"] / l40.flops["bf16"] == pytest.approx(2, rel=0.01)
    assert l40s.tensor_rate["bf16"] == 2 * l40.tensor_rate["bf16"]


def test_an_a10g_is_no_a10() -> None:
    """The cloud's A10G has more SMs and half their tensor rate: GEMMs reach 67 to 69 of its 70 TFLOP/s.

    By its compute capability alone it would be taken for 80 x 1024 x 1.71 GHz, twice as much.
    """
    a10g = peaks_of("NVIDIA A10G", compute_capability=(8, 6), sm_count=80)

    assert a10g.origin == "datasheet"
    assert a10g.tensor_rate["bf16"] == peaks_of("NVIDIA A10").tensor_rate["bf16"] / 2
    assert a10g.flops["bf16"] == 70e12


def test_a_figure_that_the_sheet_leaves_out_follows_its_tensor_clock() -> None:
    """H800's sheet has no int8: twice its bf16, as on every Hopper."""
    h800 = peaks_of("NVIDIA H800")

    assert h800.flops["int8"] == pytest.approx(2 * h800.flops["bf16"], rel=1e-6)


def test_an_unknown_gpu_is_derived_from_its_silicon() -> None:
    """100 SMs of compute capability 9.0 at 2 GHz: 100 x 4096 x 2e9."""
    peaks = peaks_of(
        "NVIDIA H900",
        compute_capability=(9, 0),
        sm_count=100,
        sm_clock_max_hertz=2e9,
        memory_clock_max_hertz=2.619e9,
        memory_bus_width_bits=5120,
    )

    assert peaks.origin == "derived"
    assert peaks.flops["bf16"] == 100 * 4096 * 2e9
    assert peaks.dram_bytes_per_second == pytest.approx(3352e9, rel=1e-3)


def test_an_unknown_geforce_gets_the_capped_rates() -> None:
    """GeForce boards run fp32 accumulation at half rate."""
    facts = {"compute_capability": (8, 9), "sm_count": 10, "sm_clock_max_hertz": 1e9}

    assert peaks_of("NVIDIA GeForce RTX 4070", **facts).tensor_rate["bf16"] == 512
    assert peaks_of("NVIDIA RTX 4000 Ada Generation", **facts).tensor_rate["bf16"] == 1024


def test_a_gpu_that_nobody_knows_has_no_peak() -> None:
    """Better none than a wrong one."""
    assert not peaks_of("NVIDIA X1", compute_capability=(42, 0), sm_count=9).flops


# The table's own remarks: rows whose figures no single clock reproduces (export-capped H20, B100
# whose boost clock is a placeholder), and figures that follow a lower tensor clock.
_ODD_MODELS = {"H20 96GB", "B100 (HGX)", "GB10 (DGX Spark)"}


@pytest.mark.parametrize("gpu", TABLE["gpus"], ids=lambda gpu: gpu["model"])
def test_data_sheets_agree_with_the_silicon(gpu: dict) -> None:
    """SMs x rate x boost clock gives the sheet's figure, or more: sheets rate tensors lower."""
    rates = TABLE["rates"][gpu["class"]]
    for key, teraflops in gpu["teraflops"].items():
        silicon = gpu["sm_count"] * rates[key] * gpu["boost_mhz"] * 1e6 / 1e12
        if gpu["model"] in _ODD_MODELS:
            assert 0.5 < silicon / teraflops < 1.5
        else:
            assert 0.89 < silicon / teraflops < 1.17, key


def test_every_name_in_the_table_finds_its_own_model() -> None:
    """No pattern shadows another row."""
    for gpu in TABLE["gpus"]:
        for pattern in gpu["names"]:
            assert peaks_of(pattern.replace("*", "16GB")).model == gpu["model"]


@pytest.mark.parametrize(
    ("generation", "width", "gigabytes"), [(3, 16, 15.75), (4, 16, 31.5), (5, 16, 63.0)]
)
def test_pcie_bandwidth(generation: int, width: int, gigabytes: float) -> None:
    """16 lanes of generation 4: 16 GT/s x 16 x 128/130 / 8 = 31.5 GB/s a direction."""
    assert pcie_bytes_per_second(generation, width) == pytest.approx(gigabytes * 1e9, rel=0.001)
    assert pcie_bytes_per_second(99, width) is None
