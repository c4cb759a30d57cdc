"""Peaks of host processors: by family, worked by hand, and compared with measurements."""

import pytest

from exporter.accounting.processor import flop_per_cycle, held_peaks, processor_peaks
from flopwatch.processor import Processor


AVX512 = frozenset({"sse2", "avx", "fma", "avx512f"})
INTEL, AMD = "GenuineIntel", "AuthenticAMD"


def x86(vendor: str, family: int, model: int, flags: str = "", name: str = "") -> Processor:
    return Processor(
        cores=(0, 1),
        vendor=vendor,
        family=family,
        model=model,
        name=name,
        flags=AVX512 | set(flags.split()),
    )


@pytest.mark.parametrize(
    ("processor", "rates"),
    [
        pytest.param(
            # Two units, a multiply and an add each: 2 * 2 * 512 / 32 = 64; bf16 twice, int8 four times.
            x86(AMD, 26, 2, "avx512_vnni avx512_bf16"),
            {"fp64": 32, "fp32": 64, "bf16": 128, "int8": 256},
            id="Zen 5 server",
        ),
        pytest.param(
            x86(AMD, 26, 0x24, "avx512_vnni avx512_bf16"),
            {"fp64": 16, "fp32": 32, "bf16": 64, "int8": 128},
            id="Zen 5 laptop: units of 256 bits",
        ),
        pytest.param(
            x86(AMD, 25, 17, "avx512_vnni"),
            {"fp64": 16, "fp32": 32, "int8": 128},
            id="Zen 4: two passes",
        ),
        pytest.param(
            # A tile product of 16 x 16 x 32 takes 16 cycles: 2 * 8192 / 16 = 1024.
            x86(INTEL, 6, 143, "avx512_vnni avx512_fp16 amx_bf16 amx_int8"),
            {"fp64": 32, "fp32": 64, "fp16": 128, "bf16": 1024, "int8": 2048},
            id="Sapphire Rapids: AMX",
        ),
        pytest.param(
            x86(INTEL, 6, 85, "avx512_vnni", "Intel(R) Xeon(R) Platinum 8280 CPU @ 2.70GHz"),
            {"fp64": 32, "fp32": 64, "int8": 256},
            id="Cascade Lake",
        ),
        pytest.param(
            x86(INTEL, 6, 85, "avx512_vnni", "Intel(R) Xeon(R) Silver 4210 CPU @ 2.20GHz"),
            {"fp64": 16, "fp32": 32, "int8": 128},
            id="Cascade Lake with one unit",
        ),
        *(
            pytest.param(
                x86(INTEL, 6, 85, "avx512_vnni", f"Intel(R) {name} @ 3.80GHz"), {}, id=f"{name}: ?"
            )
            for name in ("Xeon(R) Gold 5222 CPU", "Xeon(R) Gold 5318H CPU", "Core(TM) i9-7900X CPU")
        ),
        pytest.param(
            Processor(cores=(0,), implementer=0x41, part=0xD0C, flags=frozenset({"asimd"})),
            {"fp64": 8, "fp32": 16},
            id="Neoverse N1: 2 * 2 * 128 / 32",
        ),
        pytest.param(
            Processor(
                cores=(0,), implementer=0x41, part=0xD4F, flags=frozenset({"asimd", "asimdhp"})
            ),
            {"fp64": 16, "fp32": 32, "fp16": 64},
            id="Neoverse V2: four of 128 bits",
        ),
        pytest.param(
            Processor(
                cores=(0,), vendor=AMD, family=23, model=1, flags=frozenset({"sse2", "avx", "fma"})
            ),
            {"fp64": 8, "fp32": 16},
            id="the first Zen: units of 128 bits",
        ),
        pytest.param(
            Processor(cores=(0,), vendor=AMD, family=23, model=49, flags=frozenset({"fma"})),
            {"fp64": 16, "fp32": 32},
            id="Zen 2",
        ),
        pytest.param(Processor(cores=(0,)), {}, id="names nothing"),
    ],
)
def test_flop_per_cycle_and_core(processor: Processor, rates: dict[str, float]) -> None:
    """By the vendors' optimization guides."""
    assert flop_per_cycle(processor) == rates


def test_the_peak_is_of_all_usable_cores() -> None:
    """Two of Zen 5 at 4 GHz: 2 * 64 * 4e9 = 512 GFLOP/s in fp32; with a quota of one core half."""
    two = x86(AMD, 26, 2)
    one = Processor(
        cores=(0, 1), quota=1.0, vendor=AMD, family=26, model=2, flags=two.flags, name=""
    )

    assert processor_peaks(two, 4e9).flops["fp32"] == 512e9
    assert processor_peaks(one, 4e9).flops["fp32"] == 256e9
    assert processor_peaks(two, None).flops == {}


def held(clock: float | None = None, **measured: float):
    return held_peaks(
        processor_peaks(x86(AMD, 26, 2), 4e9),
        clock_hertz=clock,
        measured_flops=measured,
        measured_bandwidth=4e10,
    )


def test_a_probe_at_a_higher_clock_raises_the_peak() -> None:
    """4.2 GHz was measured: 2 * 64 * 4.2e9, and the derivation still holds."""
    peaks = held(clock=4.2e9, fp32=5.2e11)

    assert peaks.flops["fp32"] == pytest.approx(537.6e9)
    assert peaks.origin == "derived"
    assert peaks.doubt is None


def test_a_measurement_that_passes_the_peak_proves_it_wrong() -> None:
    """614.4 of 512 GFLOP/s is 120 %: the measured maximum becomes the peak, with a note."""
    peaks = held(fp32=614.4e9)

    assert peaks.flops["fp32"] == 614.4e9
    assert peaks.origin == "measured"
    assert peaks.doubt is not None
    assert "fp32 (120 % of the derived peak)".replace(" %", "%") in peaks.doubt
    assert peaks.flops["fp64"] == 256e9


def test_a_precision_without_a_source_has_the_measured_peak() -> None:
    """No table has this processor's fp16 rate."""
    assert held(fp16=1e11).flops["fp16"] == 1e11
    assert held(fp16=1e11).origin == "derived"


def test_memory_bandwidth_is_the_highest_copy() -> None:
    """A processor does not report its memory bandwidth."""
    assert held().dram_bytes_per_second == 4e10
