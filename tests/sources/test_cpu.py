"""The host processor standing in for a GPU: its assumed peak, from its own /proc."""

from pathlib import Path

import pytest

from exporter.collect.cpu import CpuSource


def processor(
    root: Path, flags: str, *, vendor: str = "GenuineIntel", family: str = "6"
) -> CpuSource:
    """Two cores at 2.5 GHz."""
    blocks = [
        f"processor\t: {number}\nvendor_id\t: {vendor}\ncpu family\t: {family}\n"
        f"model name\t: Test CPU @ 2.50GHz\nphysical id\t: 0\ncore id\t\t: {number}\n"
        f"flags\t\t: fpu {flags}\n"
        for number in range(2)
    ]
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("\n".join(blocks))
    return CpuSource(lambda: 0.0, root)


@pytest.mark.parametrize(
    ("flags", "fp64", "fp32"),
    [
        # Two units, a multiply and an add each: 2 * 2 * (512 / 64) = 32 and twice that.
        ("sse2 fma avx2 avx512f", 32, 64),
        # 2 * 2 * (256 / 64) = 16 and 32.
        ("sse2 fma avx2", 16, 32),
        # One multiplication and one addition of 128 bits: 2 * (128 / 64) = 4 and 8.
        ("sse2", 4, 8),
    ],
)
def test_the_peak_follows_from_the_widest_vectors(
    tmp_path: Path, flags: str, fp64: int, fp32: int
) -> None:
    """FLOP per cycle and core times two cores at 2.5 GHz, marked as derived."""
    source = processor(tmp_path, flags)
    peaks = source.peaks(source.identity())

    assert peaks.flops == {"fp64": fp64 * 5e9, "fp32": fp32 * 5e9}
    assert peaks.origin == "derived"


@pytest.mark.parametrize(("family", "fp32"), [("25", 32), ("26", 64)], ids=["Zen 4", "Zen 5"])
def test_zen_4_takes_two_passes_for_512_bits(tmp_path: Path, family: str, fp32: int) -> None:
    """It has no more FLOP per cycle than with 256 bits; its successor does."""
    source = processor(tmp_path, "sse2 fma avx2 avx512f", vendor="AuthenticAMD", family=family)

    assert source.peaks(source.identity()).flops["fp32"] == fp32 * 5e9


def test_a_processor_without_listed_instruction_sets_has_no_peak(tmp_path: Path) -> None:
    """Unknown is not zero."""
    source = processor(tmp_path, "")

    assert source.peaks(source.identity()).flops == {}
