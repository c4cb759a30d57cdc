"""Peak rates: from the data sheet for a known GPU, else derived from its compute capability."""

import json
from importlib.resources import files

import pytest

from exporter.accounting.peaks import PeakOverride, find_peaks, pcie_bytes_per_second
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


def test_an_a10g_is_not_an_a10() -> None:
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
    """100 SMs of compute capability 9.0 at 2 GHz: 100 x 4096 x 92.4 % of 2e9, as sheets rate Hopper's tensors."""
    peaks = peaks_of(
        "NVIDIA H900",
        compute_capability=(9, 0),
        sm_count=100,
        sm_clock_max_hertz=2e9,
        memory_clock_max_hertz=2.619e9,
        memory_bus_width_bits=5120,
    )

    assert peaks.origin == "derived"
    assert peaks.flops["bf16"] == pytest.approx(100 * 4096 * 2e9 * 0.924)
    assert peaks.flops["fp64"] == 100 * 256 * 2e9
    assert peaks.flops["fp32"] == 100 * 256 * 2e9
    assert peaks.dram_bytes_per_second == pytest.approx(3352e9, rel=1e-3)


def test_an_l20_has_its_sheet_and_not_twice_of_it() -> None:
    """Compute capability 8.9 and 92 SMs say 239 TFLOP/s; the sheet says 119.5."""
    facts = {
        "compute_capability": (8, 9),
        "sm_count": 92,
        "sm_clock_max_hertz": 2.52e9,
        "memory_clock_max_hertz": 9.001e9,
        "memory_bus_width_bits": 384,
        "memory_size_bytes": 46068 << 20,
    }
    l20 = peaks_of("NVIDIA L20", **facts)

    assert l20.origin == "datasheet"
    assert l20.flops["bf16"] == 119.5e12
    assert l20.tensor_rate["bf16"] == 512
    # An undescribed sibling: its compute capability leaves a factor of two open.
    l22 = peaks_of("NVIDIA L22", **facts)
    assert not l22.flops
    assert not l22.tensor_rate
    assert l22.doubt is not None
    assert "does not say enough" in l22.doubt
    assert l22.dram_bytes_per_second == pytest.approx(864e9, rel=1e-3)


HOPPER = {
    "compute_capability": (9, 0),
    "sm_count": 78,
    "sm_clock_max_hertz": 1.98e9,
    "memory_bus_width_bits": 6144,
}


def test_an_h20_3e_is_not_an_h20() -> None:
    """141 GB at 4.8 TB/s; a variant missing from the table is not taken for one in the table."""
    big = {**HOPPER, "memory_clock_max_hertz": 3.201e9, "memory_size_bytes": 143771 << 20}
    known = peaks_of("NVIDIA H20-3e", **big)
    unknown = peaks_of("NVIDIA H20-5x", **big)

    assert (known.origin, known.dram_bytes_per_second, known.flops["bf16"]) == (
        "datasheet",
        4.8e12,
        148e12,
    )
    assert unknown.origin == "derived"
    assert unknown.dram_bytes_per_second == pytest.approx(4917e9, rel=1e-3)
    # 78 SMs x 1024 x the 1853 MHz at which H20's sheet rates its tensors.
    assert unknown.flops["bf16"] == pytest.approx(148e12, rel=1e-3)


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"memory_size_bytes": 143771 << 20}, "140 GiB of memory, not 96"),
        ({"memory_clock_max_hertz": 3.201e9}, "4917 GB/s, not 4000"),
        ({"sm_count": 60}, "60 SMs, not 78"),
        ({"compute_capability": (10, 0)}, "compute capability 10.0"),
    ],
)
def test_a_board_that_contradicts_its_table_row_is_derived_and_logged(
    facts: dict, word: str
) -> None:
    """The name says H20; any one of NVML's facts can contradict it."""
    true = {**HOPPER, "memory_clock_max_hertz": 2.619e9, "memory_size_bytes": 97871 << 20}
    assert peaks_of("NVIDIA H20", **true).origin == "datasheet"

    peaks = peaks_of("NVIDIA H20", **{**true, **facts})

    assert peaks.origin == "derived"
    assert peaks.doubt is not None
    assert word in peaks.doubt


def test_a_gb300_nvl_without_a_core_count_has_its_sheet() -> None:
    """The table has the SM count when the driver does not report it."""
    peaks = peaks_of("NVIDIA GB300 NVL", compute_capability=(10, 3))

    assert peaks.origin == "datasheet"
    assert (peaks.sm_count, peaks.flops["bf16"], peaks.flops["fp4"]) == (152, 2.5e15, 15e15)


def test_a_board_without_a_core_count_says_what_is_missing() -> None:
    """Rates are known, peaks are not; the configuration can supply the SM count."""
    facts = {"compute_capability": (10, 0), "sm_clock_max_hertz": 2e9}
    blind = peaks_of("NVIDIA B250", **facts)
    told = find_peaks(
        DeviceIdentity("0", "GPU-1", "NVIDIA B250", **facts), PeakOverride(sm_count=100)
    )  # type: ignore[arg-type]

    assert not blind.flops
    assert blind.doubt is not None
    assert "number of SMs" in blind.doubt
    assert told.origin == "config"
    assert told.flops["bf16"] == pytest.approx(100 * 8192 * 2e9 * 0.944)


def test_the_configuration_overrules_table_and_silicon() -> None:
    """Peaks, SM count and bandwidth as the user gives them; a rate that contradicts them follows."""
    h100 = DeviceIdentity(
        "0", "GPU-1", "NVIDIA H100 80GB HBM3", sm_count=132, sm_clock_max_hertz=1.98e9
    )
    peaks = find_peaks(
        h100, PeakOverride({"bf16": 500e12, "fp8": 1.979e15, "fp32": 40e12}, None, 3e12)
    )

    assert peaks.origin == "config"
    assert (peaks.flops["bf16"], peaks.flops["fp32"]) == (500e12, 40e12)
    assert peaks.flops["tf32"] == 494.7e12
    assert peaks.dram_bytes_per_second == 3e12
    # 500e12 / (132 x 1.98 GHz) = 1913, half of Hopper's 4096; 1979 TFLOP/s are its 8192 at 1830 MHz.
    assert peaks.tensor_rate["bf16"] == pytest.approx(1913, rel=1e-3)
    assert peaks.tensor_rate["fp8"] == 8192
    assert peaks.plain_rate["fp32"] == pytest.approx(40e12 / (132 * 1.98e9))


def test_an_unknown_geforce_gets_the_capped_rates() -> None:
    """GeForce boards run fp32 accumulation at half rate; their maximum clock is above their sheet's."""
    facts = {"compute_capability": (8, 9), "sm_count": 10, "sm_clock_max_hertz": 1e9}
    geforce = peaks_of("NVIDIA GeForce RTX 4040", **facts)

    assert geforce.tensor_rate["bf16"] == 512
    assert geforce.default_precision == "bf16"
    assert not geforce.flops
    assert (
        peaks_of("NVIDIA RTX 4000 Ada Generation Laptop GPU", **facts).tensor_rate["bf16"] == 1024
    )


@pytest.mark.parametrize(
    ("name", "capability", "sms", "sheet_bf16"),
    [
        ("NVIDIA GeForce RTX 4090 D", (8, 9), 114, 147.1e12),
        ("NVIDIA GeForce RTX 5090 D", (12, 0), 170, None),
        ("NVIDIA RTX 6000D", (12, 0), 156, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), 76, None),
        ("NVIDIA RTX A5000 Laptop GPU", (8, 6), 48, None),
        ("NVIDIA CMP 170HX", (8, 0), 70, None),
        ("NVIDIA GeForce GTX 1660", (7, 5), 22, None),
    ],
)
def test_cut_down_and_mobile_boards_have_their_sheet_or_none(
    name: str, capability: tuple[int, int], sms: int, sheet_bf16: float | None
) -> None:
    """114 SMs x 512 x 2.52 GHz for the D; where no sheet is known, there is no peak."""
    peaks = peaks_of(name, compute_capability=capability, sm_count=sms, sm_clock_max_hertz=2.5e9)

    assert peaks.flops.get("bf16") == (
        None if sheet_bf16 is None else pytest.approx(sheet_bf16, rel=0.01)
    )


def test_boards_of_one_name_are_distinguished_by_their_silicon() -> None:
    """A GeForce RTX 3080 has 10 GB and 68 SMs, or 12 GB and 70."""
    name = "NVIDIA GeForce RTX 3080"
    assert peaks_of(name, sm_count=68, memory_size_bytes=10 << 30).model == "RTX 3080"
    assert peaks_of(name, sm_count=70, memory_size_bytes=12 << 30).model == "RTX 3080 12GB"


def test_a_vgpu_is_of_its_boards_class() -> None:
    """An A40-24Q computes as an A40 does, on half of its memory."""
    vgpu = peaks_of(
        "NVIDIA A40-24Q",
        compute_capability=(8, 6),
        sm_count=84,
        sm_clock_max_hertz=1.74e9,
        memory_size_bytes=24 << 30,
    )

    assert vgpu.origin == "derived"
    assert vgpu.flops["bf16"] == pytest.approx(149.7e12, rel=0.01)


def test_an_unknown_gpu_has_no_peak() -> None:
    """No value is better than a wrong one."""
    assert not peaks_of("NVIDIA X1", compute_capability=(42, 0), sm_count=9).flops


# The table's own remarks: rows whose figures no single clock reproduces (export-capped H20, B100
# whose boost clock is a placeholder), and figures that follow a lower tensor clock.
_ODD_MODELS = {"H20 96GB", "H20 141GB", "B100 (HGX)", "GB10 (DGX Spark)"}


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
    """No row shadows another, given what the driver reports about the board."""
    for gpu in TABLE["gpus"]:
        major, minor = gpu["class"].partition("/")[0].split(".")
        for name in gpu["names"]:
            for size in gpu.get("memory_gigabytes", [None]):
                peaks = peaks_of(
                    name,
                    compute_capability=(int(major), int(minor)),
                    sm_count=gpu["sm_count"],
                    memory_size_bytes=None if size is None else int(size * 2**30),
                    memory_bus_width_bits=1024,
                    memory_clock_max_hertz=gpu["dram_gigabytes_per_second"] * 1e9 * 8 / 2 / 1024,
                )
                assert (peaks.origin, peaks.model) == ("datasheet", gpu["model"]), name


@pytest.mark.parametrize(
    ("generation", "width", "gigabytes"), [(3, 16, 15.75), (4, 16, 31.5), (5, 16, 63.0)]
)
def test_pcie_bandwidth(generation: int, width: int, gigabytes: float) -> None:
    """16 lanes of generation 4: 16 GT/s x 16 x 128/130 / 8 = 31.5 GB/s a direction."""
    assert pcie_bytes_per_second(generation, width) == pytest.approx(gigabytes * 1e9, rel=0.001)
    assert pcie_bytes_per_second(99, width) is None
