"""Host processors: their peak rates, and the events that count their operations.

A peak is cores x FLOP per cycle and core x clock, and never below what was measured. FLOP per cycle
and core is the width of the vectors over that of the precision, times the units that multiply and add
at once, times 2 for a fused multiply-add. A row that no source states is left out: then the peak is
the highest rate that was measured.

Sources, checked in November 2026:

- Zen 4: two pipes multiply and add (Software Optimization Guide 57647, 2.11.1, in LLVM's
  X86ScheduleZnver4.td); 512 bits take two passes of 256 (A. Yee, Zen5's AVX512 Teardown).
- Zen 5: both pipes have 512 bits (the same teardown), those of laptops 256. A probe of a server
  reached 42 % of fp32, 82 % of bf16 and 87 % of int8 of its row.
- Skylake servers: two units of 512 bits; Gold 5xxx have one, but the Gold 5122 two (Intel community,
  Calculate the Max Flops on Skylake). Cascade Lake: "depends upon CPU SKU" (Microway). So the
  Gold 5222, Cooper Lake's Gold 53xx and Core X are left out.
- AMX: 1024 bf16 and 2048 int8 operations a cycle and core (Wikipedia, Advanced Matrix Extensions, after
  Intel). AMX-FP16 is left out.
- Neoverse V1: two pipes of 256 bits, N2: two of 128 (AnandTech, Arm Announces Neoverse V1, N2);
  V2: four of 128 (Software Optimization Guide, in LLVM's AArch64SchedNeoverseV2.td).
- Older rows (Zen to Zen 3, AVX2, AVX and SSE of Intel, clients of Ice Lake, Neoverse N1) are from the
  vendors' optimization guides and were not looked up again.

The events are those of Linux (tools/perf/pmu-events/arch/…), which come from the vendors. What these
lists do not state is not counted.

- Intel (x86/*/floating-point.json): FP_ARITH_INST_RETIRED, by precision and width, a fused multiply-add
  as two. AMX_OPS_RETIRED was in the lists of Sapphire and Emerald Rapids, and Intel has withdrawn it.
- AMD (x86/amdzen1 to amdzen5/floating-point.json): fp_ret_sse_avx_ops counts operations, a fused
  multiply-add as two. Only Zen and Zen+ report the precision of all of them.
- Arm (arm64/arm/neoverse-v1 and neoverse-n2-v2/fp_operation.json, metrics.json): FP_FIXED_OPS_SPEC, and
  FP_SCALE_OPS_SPEC per 128 bits of an SVE vector, a fused multiply-add as two. They count executed
  operations, including those after a mispredicted branch. Neoverse N1 has neither.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from exporter.accounting.flop import PipeWork
from exporter.accounting.peaks import Peaks
from flopwatch.processor import Processor


_AMD = "AuthenticAMD"
_ZEN = 23  # 17h: Zen, Zen+, and Zen 2 from model 30h on
_ZEN_2_FIRST_MODEL = 0x30
_ZEN_4 = 25  # 19h: Zen 3, and Zen 4, which has AVX-512
_ZEN_5 = 26  # 1Ah
# Zen 5 processors for laptops have units of 256 bits.
_ZEN_5_NARROW_MODELS = (range(0x20, 0x30), range(0x60, 0x80))
_SKYLAKE_SERVER = 85
_ONE_UNIT_NAMES = re.compile(r"Xeon.* (Bronze|Silver|Gold 5(?!122))")
_UNVERIFIED_NAMES = re.compile(r"Xeon.* Gold 5(222|3\d\d)|Core\(TM\)")
# Cannon, Ice, Tiger and Rocket Lake for clients.
_ONE_UNIT_MODELS = frozenset({102, 125, 126, 140, 141, 167})
_ARM = 0x41
# fp64, fp32 and fp16 by part number.
_NEOVERSE = {
    0xD0C: (8, 16, 32),  # N1: two units of 128 bits
    0xD40: (16, 32, 64),  # V1: two of 256
    0xD49: (8, 16, 32),  # N2: two of 128
    0xD4F: (16, 32, 64),  # V2: four of 128
}
_AMX_BF16 = 1024
_AMX_INT8 = 2048
# A measurement may pass the derived peak by this much without proving it wrong: the clock that
# both are held against is measured as well.
_TOLERANCE = 1.02

_FP64, _FP32 = PipeWork("fp64", "fp64"), PipeWork("fp32", "fp32")
_ANY = PipeWork("any", "any")


class Event(NamedTuple):
    """A hardware event, and how many FLOP each count of it stands for.

    `config` is the kernel's format of raw events: a mask and the event's number; Arm's have no mask.
    """

    config: int
    work: PipeWork
    flop: float


# Elements of a vector; the counter counts a fused multiply-add twice.
_INTEL = (
    Event(0x01C7, _FP64, 1),
    Event(0x02C7, _FP32, 1),
    Event(0x04C7, _FP64, 2),
    Event(0x08C7, _FP32, 4),
    Event(0x10C7, _FP64, 4),
    Event(0x20C7, _FP32, 8),
)
_INTEL_512 = (Event(0x40C7, _FP64, 8), Event(0x80C7, _FP32, 16))
# The first family 6 model with FP_ARITH_INST_RETIRED is Broadwell (61).
_INTEL_FIRST_MODEL = 61
_INTEL_WITHOUT = frozenset({63, 69, 70})  # Haswell does not have it
# Zen and Zen+: four bits for each precision, one for each of add, multiply, divide, multiply-add.
_AMD_ZEN = (Event(0x0F03, _FP32, 1), Event(0xF003, _FP64, 1))
# From Zen 2 on the four bits are for all precisions. Zen 4 has a fifth one for bf16's multiply-adds; on
# Zen 5 the upper bits select a data type, and none is all of them.
_AMD_ZEN_2 = (Event(0x0F03, _ANY, 1),)
_AMD_ZEN_4 = (Event(0x1F03, _ANY, 1),)
_AMD_ZEN_5 = (Event(0x0F03, _ANY, 1),)
# By part number, the width of the SVE vectors over 128 bits: V1, N2, V2.
_ARM_VECTORS = {0xD40: 2, 0xD49: 1, 0xD4F: 1}


class PerfUnavailableError(Exception):
    """The operations cannot be counted; `remedy` says what to do, if there is a remedy."""

    def __init__(self, text: str, remedy: str | None = None) -> None:
        super().__init__(text)
        self.remedy = remedy


def flop_per_cycle(processor: Processor) -> dict[str, float]:
    """FLOP per cycle and core by precision, as far as a source states it; empty if none does."""
    if processor.implementer is not None:
        return _arm(processor)
    flags = processor.flags
    bits = _vector_bits(processor)
    if bits is None:
        return {}
    # Two units that do a multiplication and an addition of `bits` each.
    rates = {"fp64": bits / 16, "fp32": bits / 8}
    if flags & {"avx512_vnni", "avx_vnni"}:
        rates["int8"] = bits / 2
    if processor.vendor == _AMD and processor.family == _ZEN_5 and "avx512_bf16" in flags:
        rates["bf16"] = bits / 4
    if "avx512_fp16" in flags:
        rates["fp16"] = bits / 4
    if "amx_bf16" in flags:
        rates["bf16"] = _AMX_BF16
    if "amx_int8" in flags:
        rates["int8"] = _AMX_INT8
    return rates


def processor_peaks(processor: Processor, clock_hertz: float | None) -> Peaks:
    """The peaks of all usable cores at this clock; only rates where the clock is not known."""
    rates = flop_per_cycle(processor)
    cycles = processor.threads * clock_hertz if clock_hertz else None
    return Peaks(
        origin="derived",
        model=processor.name,
        sm_count=processor.threads,
        flops={} if cycles is None else {name: rate * cycles for name, rate in rates.items()},
        plain_rate=rates,
    )


def held_peaks(
    peaks: Peaks,
    *,
    clock_hertz: float | None,
    measured_flops: Mapping[str, float],
    measured_bandwidth: float | None,
) -> Peaks:
    """A processor's peaks after probes: at their clock, and never below what they measured.

    `measured_*` are the highest that were accepted, `clock_hertz` the highest clock of a probe. A
    processor names no memory bandwidth: its peak is the highest copy rate. Where a measurement passes
    a derived peak, the derivation is wrong: `origin` is `measured`, and `doubt` says so.
    """
    flops = dict(peaks.flops)
    if clock_hertz and peaks.sm_count:
        for precision, rate in peaks.plain_rate.items():
            at_clock = rate * peaks.sm_count * clock_hertz
            flops[precision] = max(flops.get(precision, 0.0), at_clock)
    wrong = []
    for precision, measured in measured_flops.items():
        derived = flops.get(precision)
        if derived is not None and measured > _TOLERANCE * derived:
            wrong.append(f"{precision} ({measured / derived:.0%} of the derived peak)")
        flops[precision] = max(measured, derived or 0.0)
    held = replace(peaks, flops=flops, dram_bytes_per_second=measured_bandwidth)
    if not wrong:
        return held
    doubt = (
        f"measured more than was derived in {', '.join(sorted(wrong))}: the measured maximum counts"
    )
    return replace(held, origin="measured", doubt=doubt)


def events_of(processor: Processor) -> tuple[Event, ...]:
    """The events that count its floating-point operations; raises PerfUnavailableError."""
    family, model = processor.family or 0, processor.model or 0
    if processor.vendor == "GenuineIntel" and family == 6:
        if "avx512f" not in processor.flags and (
            model < _INTEL_FIRST_MODEL or model in _INTEL_WITHOUT
        ):
            raise PerfUnavailableError("this processor has no counter of floating-point operations")
        return (*_INTEL, *_INTEL_512) if "avx512f" in processor.flags else _INTEL
    if processor.vendor == "AuthenticAMD" and family == 23:
        return _AMD_ZEN if model < 0x30 else _AMD_ZEN_2
    if processor.vendor == "AuthenticAMD" and family == 25:
        return _AMD_ZEN_4 if "avx512f" in processor.flags else _AMD_ZEN_2
    if processor.vendor == "AuthenticAMD" and family == 26:
        return _AMD_ZEN_5
    if processor.implementer == _ARM and processor.part in _ARM_VECTORS:
        vectors = _ARM_VECTORS[processor.part]
        return (Event(0x80C1, _ANY, 1), Event(0x80C0, _ANY, vectors))
    raise PerfUnavailableError(f"the counters of this processor are not known ({processor.name})")


def _vector_bits(processor: Processor) -> int | None:
    """The width of its vectors, such that two units of it multiply and add; None: no source."""
    flags = processor.flags
    if processor.model == _SKYLAKE_SERVER and _UNVERIFIED_NAMES.search(processor.name):
        return None
    if "avx512f" in flags:
        return 256 if _is_half_width(processor) else 512
    if "fma" in flags:
        first_zen = processor.family == _ZEN and (processor.model or 0) < _ZEN_2_FIRST_MODEL
        return 128 if processor.vendor == _AMD and first_zen else 256
    if "avx" in flags and processor.vendor != _AMD:
        return (
            128  # a multiplication and an addition of 256 bits, in place of two fused ones of 128
        )
    return 64 if "sse2" in flags else None  # likewise of 128 bits


def _is_half_width(processor: Processor) -> bool:
    """Whether it has 512-bit instructions and half of the units that this width suggests."""
    family, model = processor.family, processor.model or 0
    if processor.vendor == _AMD:
        narrow = any(model in models for models in _ZEN_5_NARROW_MODELS)
        return family == _ZEN_4 or (family == _ZEN_5 and narrow)
    server = model == _SKYLAKE_SERVER and _ONE_UNIT_NAMES.search(processor.name) is not None
    return server or model in _ONE_UNIT_MODELS


def _arm(processor: Processor) -> dict[str, float]:
    part = processor.part if processor.implementer == _ARM else None
    rates = _NEOVERSE.get(part or 0)
    if rates is None:
        # Two units of 128 bits: what every Arm server core has at least.
        return {"fp64": 8.0, "fp32": 16.0} if "asimd" in processor.flags else {}
    fp64, fp32, fp16 = rates
    half = {"fp16": float(fp16)} if "asimdhp" in processor.flags else {}
    return {"fp64": float(fp64), "fp32": float(fp32), **half}
