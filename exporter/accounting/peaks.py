"""Peak rates per GPU model: the data sheet where it is known, else derived from the silicon.

The table `peaks.json` holds dense FLOP per clock and SM by compute capability and class (CUDA C++
Programming and Best Practices Guides, NVIDIA architecture whitepapers), and the dense figures of
the data sheets by model. Compute capability alone is not enough: L40 and L40S share 8.9 and differ
by two. From Hopper on, data sheets rate the tensor pipe at a lower clock than the chip may run
(H100 SXM: 989.4 TFLOP/s is 132 SMs x 4096 x 1.83 GHz, it runs at up to 1.98 GHz).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from exporter.readings import DeviceIdentity


# Table key of the figures that the tensor pipe delivers, by precision. fp16t is fp16 and bf16
# with fp32 accumulation, fp64t the FP64 tensor instructions.
_TENSOR_KEYS = {
    "fp64": "fp64t",
    "tf32": "tf32",
    "fp16": "fp16t",
    "bf16": "fp16t",
    "fp8": "fp8",
    "fp6": "fp6",
    "fp4": "fp4",
    "int8": "int8",
    "int4": "int4",
}
_PLAIN_KEYS = {"fp64": "fp64", "fp32": "fp32", "fp16": "fp16"}
_FIRST_WITH_BF16 = (8, 0)
_FULL_HOPPER = re.compile(r"H(100|200|800)")  # H20 and its like have a quarter of the rate
_FULL_HOPPER_SMS = 100
# Mining boards and those with a D suffix are cut down in ways that no rate describes.
_CAPPED = re.compile(r"CMP|\d ?D\b")
_NOT_IN_TABLE = "not in the table of models: derived from its silicon"
_NOT_ENOUGH = "not in the table of models, and its compute capability alone does not say enough"
# Share of the maximum clock at which data sheets rate the tensor pipe.
_CLASS_TENSOR_SHARE = {"9.0/dc": 0.924, "10.0/dc": 0.944, "10.3/dc": 0.913}
# Boards for which NVML reports a higher maximum clock than their data sheet: 2100 of 1695 MHz (RTX
# A5000), 3105 of 2520 (RTX 4090); of a laptop's GPU the sheet depends on its cooling.
_CLOCKS_ABOVE_SHEET = ("RTX", "GeForce", "TITAN", "Quadro", "Laptop", "Max-Q", "Mobile")
# NVML's memory in GiB over the sheet's gigabytes: ECC and the driver take up to an eighth.
_SIZE_SHARES = (0.86, 1.06)
# Clock x bus width over the sheet's bandwidth: sheets round, and older drivers gave B200 8192 bits.
_BANDWIDTH_SHARES = (0.92, 1.09)
# A sheet's figure over SMs x rate x maximum clock: 0.866 for an H100 NVL.
_SHEET_SHARES = (0.85, 1.05)
_TERA = 1e12
_GIGA = 1e9

# Bytes per second, lane and direction after line coding (8b/10b up to generation 2, 128b/130b up to
# 5; generation 6 uses PAM4 with FLITs). Source: PCI-SIG base specifications.
_PCIE_LANE_BYTES = {
    1: 0.25e9,
    2: 0.5e9,
    3: 8e9 * 128 / 130 / 8,
    4: 16e9 * 128 / 130 / 8,
    5: 32e9 * 128 / 130 / 8,
    6: 64e9 * 242 / 256 / 8,
}


@dataclass(frozen=True, slots=True)
class Peaks:
    """The best that a device can do.

    `flops` is the dense peak by precision in FLOP/s, `tensor_rate` and `plain_rate` the FLOP per
    clock and SM by precision of the tensor and the plain pipes (a fused multiply-add counts 2).
    `origin` is `datasheet`, `derived`, `config` or, for a processor that exceeded its derived peak,
    `measured`. `model` is the table's name of the GPU model, `board_watts` the design power of its
    data sheet.
    `doubt` explains why this is not a data-sheet figure, or what is missing; None otherwise.
    """

    origin: str
    model: str
    sm_count: int | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    tensor_rate: Mapping[str, float] = field(default_factory=dict)
    plain_rate: Mapping[str, float] = field(default_factory=dict)
    dram_bytes_per_second: float | None = None
    nvlink_bytes_per_second: float | None = None
    board_watts: float | None = None
    doubt: str | None = None

    @property
    def default_precision(self) -> str | None:
        """The precision at which tensor work is valued when nothing more specific is known."""
        for precision in ("bf16", "fp16", "fp32"):
            if precision in self.flops or precision in self.tensor_rate:
                return precision
        return None


@dataclass(frozen=True, slots=True)
class PeakOverride:
    """A GPU's configured peaks, which override the table and the driver.

    `flops` is dense FLOP/s by precision, `dram_bytes_per_second` the device memory's bandwidth.
    """

    flops: Mapping[str, float] = field(default_factory=dict)
    sm_count: int | None = None
    dram_bytes_per_second: float | None = None

    def __bool__(self) -> bool:
        """Whether it sets anything."""
        return (
            bool(self.flops) or self.sm_count is not None or self.dram_bytes_per_second is not None
        )


@cache
def _table() -> Any:
    return json.loads(Path(__file__).with_name("peaks.json").read_text(encoding="utf-8"))


def pcie_bytes_per_second(generation: int, width: int) -> float | None:
    """PCIe bandwidth in bytes/s per direction; None for a generation that is not known."""
    per_lane = _PCIE_LANE_BYTES.get(generation)
    return None if per_lane is None else per_lane * width


def find_peaks(identity: DeviceIdentity, override: PeakOverride | None = None) -> Peaks:
    """Peaks of a GPU: what the configuration says, else its data sheet, else its silicon.

    A name alone proves little: a row of the table is used only where nothing that the driver
    reports about the board (compute capability, SMs, memory size and bandwidth) contradicts it. A
    GPU that neither its name nor its compute capability identifies has no peaks rather than wrong
    ones.
    """
    if not override:
        return _found(identity)
    identity = replace(identity, sm_count=override.sm_count or identity.sm_count)
    return _overruled(_found(identity), identity, override)


def _found(identity: DeviceIdentity) -> Peaks:
    named = [gpu for gpu in _table()["gpus"] if identity.name in gpu["names"]]
    doubts: list[str] = []
    for gpu in named:
        against = _contradiction(gpu, identity)
        if against is None:
            return _from_data_sheet(gpu, identity)
        doubts.append(f"it is called {gpu['model']}, but has {against}")
    kin = [gpu for gpu in _table()["gpus"] if _is_like(gpu, identity.name)]
    for gpu in kin:
        if identity.sm_count is not None and _contradiction(gpu, identity) is None:
            return _from_data_sheet(gpu, identity)
    for gpu in (*named, *kin):
        if _fits_capability(gpu, identity):
            doubts.append(f"not in the table of models; taken for kin of {gpu['model']}")
            return _derived(identity, gpu["class"], _tensor_share(gpu), doubts[0])
    gpu_class, why = _class_of(identity)
    share = _CLASS_TENSOR_SHARE.get(gpu_class or "", 1.0)
    return _derived(identity, gpu_class, share, doubts[0] if doubts else why)


def _is_like(gpu: Mapping[str, Any], name: str) -> bool:
    """Whether the name belongs to the row's family: by its patterns, or as a vGPU of it."""
    return any(fnmatchcase(name, pattern) for pattern in gpu.get("like", ())) or any(
        name.startswith(f"{known}-") for known in gpu["names"]
    )


def _fits_capability(gpu: Mapping[str, Any], identity: DeviceIdentity) -> bool:
    return identity.compute_capability in (None, _class_capability(gpu["class"]))


def _contradiction(gpu: Mapping[str, Any], identity: DeviceIdentity) -> str | None:
    """What the driver reports about the board that contradicts the row's model; None if nothing."""
    if not _fits_capability(gpu, identity):
        assert identity.compute_capability is not None
        major, minor = identity.compute_capability
        return f"compute capability {major}.{minor}"
    if identity.sm_count not in (None, gpu["sm_count"]):
        return f"{identity.sm_count} SMs, not {gpu['sm_count']}"
    sizes: Sequence[float] = gpu.get("memory_gigabytes", ())
    if sizes and identity.memory_size_bytes is not None:
        size = identity.memory_size_bytes / 2**30
        if not any(_SIZE_SHARES[0] <= size / known <= _SIZE_SHARES[1] for known in sizes):
            return f"{size:.0f} GiB of memory, not {' or '.join(f'{known:g}' for known in sizes)}"
    bandwidth = _derived_dram_bandwidth(identity)
    if sizes and bandwidth is not None:
        sheet = gpu["dram_gigabytes_per_second"] * _GIGA
        if not _BANDWIDTH_SHARES[0] <= bandwidth / sheet <= _BANDWIDTH_SHARES[1]:
            return (
                f"a memory bandwidth of {bandwidth / _GIGA:.0f} GB/s, "
                f"not {gpu['dram_gigabytes_per_second']:g}"
            )
    return None


def _tensor_clock(gpu: Mapping[str, Any]) -> float:
    """The clock in Hz at which the data sheet rates the tensor pipe."""
    sheet, rates = gpu["teraflops"], _table()["rates"][gpu["class"]]
    if "fp16t" not in sheet:
        return float(gpu["boost_mhz"]) * 1e6
    return float(sheet["fp16t"] * _TERA / (gpu["sm_count"] * rates["fp16t"]))


def _tensor_share(gpu: Mapping[str, Any]) -> float:
    return _tensor_clock(gpu) / (float(gpu["boost_mhz"]) * 1e6)


def _from_data_sheet(gpu: Mapping[str, Any], identity: DeviceIdentity) -> Peaks:
    sheet: dict[str, float] = gpu["teraflops"]
    rates: dict[str, float] = _table()["rates"][gpu["class"]]
    sms: int = gpu["sm_count"]
    boost = gpu["boost_mhz"] * 1e6
    figures = {key: value * _TERA for key, value in sheet.items()}
    tensor_clock = _tensor_clock(gpu)  # for the precisions that the sheet leaves out
    capability = _class_capability(gpu["class"])
    nvlink = gpu["nvlink_gigabytes_per_second_both_directions"]
    return Peaks(
        origin="datasheet",
        model=gpu["model"],
        sm_count=identity.sm_count or sms,
        flops=_peak_flops(
            {key: sms * rate * tensor_clock for key, rate in rates.items()} | figures,
            {key: sms * rate * boost for key, rate in rates.items()} | figures,
            capability,
        ),
        tensor_rate=_tensor_rates(rates, capability),
        plain_rate={p: rates[key] for p, key in _PLAIN_KEYS.items() if key in rates},
        dram_bytes_per_second=gpu["dram_gigabytes_per_second"] * _GIGA,
        nvlink_bytes_per_second=nvlink * _GIGA / 2 if nvlink else None,
        board_watts=gpu.get("tdp_watts"),
    )


def _derived(
    identity: DeviceIdentity, gpu_class: str | None, tensor_share: float, doubt: str | None
) -> Peaks:
    """SMs x rate x maximum clock; the tensor pipe at the share of it that data sheets rate it at.

    Desktop and laptop boards may clock a quarter higher than their sheet says: their rates, and so
    their FLOP, are known, but no peak.
    """
    peaks = Peaks(
        origin="derived",
        model=identity.name,
        sm_count=identity.sm_count,
        dram_bytes_per_second=_derived_dram_bandwidth(identity),
        doubt=doubt,
    )
    if gpu_class is None:
        return peaks
    rates: dict[str, float] = _table()["rates"][gpu_class]
    capability = _class_capability(gpu_class)
    peaks = replace(
        peaks,
        tensor_rate=_tensor_rates(rates, capability),
        plain_rate={p: rates[key] for p, key in _PLAIN_KEYS.items() if key in rates},
    )
    if identity.sm_count is None:
        return replace(peaks, doubt=_joined(doubt, "the driver does not tell its number of SMs"))
    if identity.sm_clock_max_hertz is None:
        return replace(peaks, doubt=_joined(doubt, "the driver does not tell its maximum clock"))
    if any(word in identity.name for word in _CLOCKS_ABOVE_SHEET):
        return replace(peaks, doubt=_joined(doubt, "its data sheet's clock is not known"))
    per_rate = identity.sm_count * identity.sm_clock_max_hertz
    plain = {key: rate * per_rate for key, rate in rates.items()}
    # Sheets rate the FP64 tensor pipe at the full clock.
    tensor = {key: v if key == "fp64t" else v * tensor_share for key, v in plain.items()}
    return replace(peaks, flops=_peak_flops(tensor, plain, capability))


def _overruled(peaks: Peaks, identity: DeviceIdentity, override: PeakOverride) -> Peaks:
    """The peaks with the configured figures in their place.

    A figure that the silicon's known rate does not explain changes the rate too, so that FLOP and
    peak stay consistent.
    """
    flops = {**peaks.flops, **override.flops}
    tensor_rate, plain_rate = dict(peaks.tensor_rate), dict(peaks.plain_rate)
    sms, clock = peaks.sm_count, identity.sm_clock_max_hertz
    if sms and clock:
        for precision, value in override.flops.items():
            implied = value / (sms * clock)
            rates = tensor_rate if precision in _TENSOR_KEYS else plain_rate
            if precision == "fp64" and "fp64" not in tensor_rate:
                rates = plain_rate
            known = rates.get(precision)
            if known is None or not _SHEET_SHARES[0] <= implied / known <= _SHEET_SHARES[1]:
                rates[precision] = implied
    return replace(
        peaks,
        origin="config",
        flops=flops,
        tensor_rate=tensor_rate,
        plain_rate=plain_rate,
        dram_bytes_per_second=override.dram_bytes_per_second or peaks.dram_bytes_per_second,
        doubt=None if override.flops else peaks.doubt,
    )


def _joined(*parts: str | None) -> str:
    return "; ".join(part for part in parts if part)


def _peak_flops(
    tensor: Mapping[str, float], plain: Mapping[str, float], capability: tuple[int, int]
) -> dict[str, float]:
    """The best that the silicon has for each precision: tensor pipe first, plain pipe else.

    `tensor` and `plain` are FLOP/s by key of the table.
    """
    peaks: dict[str, float] = {}
    for precision in ("fp64", "fp32", *_TENSOR_KEYS):
        value = tensor.get(_TENSOR_KEYS.get(precision, ""))
        if value is None and precision in ("fp64", "fp32"):
            value = plain.get(_PLAIN_KEYS[precision])
        if value is not None and (precision != "bf16" or capability >= _FIRST_WITH_BF16):
            peaks[precision] = value
    return peaks


def _tensor_rates(rates: Mapping[str, float], capability: tuple[int, int]) -> dict[str, float]:
    return {
        precision: rates[key]
        for precision, key in _TENSOR_KEYS.items()
        if key in rates and not (precision == "bf16" and capability < _FIRST_WITH_BF16)
    }


def _class_capability(gpu_class: str) -> tuple[int, int]:
    major, minor = gpu_class.partition("/")[0].split(".")
    return int(major), int(minor)


def _class_of(identity: DeviceIdentity) -> tuple[str | None, str | None]:
    """Row of the rate table for a GPU with an unknown name, and why it is a guess or there is none.

    Boards of one compute capability differ by two (GeForce, L40) or four (H20): a class is taken
    only where the name or the silicon leaves no choice.
    """
    if identity.compute_capability is None:
        return None, "the driver does not tell its compute capability"
    major, minor = identity.compute_capability
    capability = f"{major}.{minor}"
    classes = [known for known in _table()["rates"] if known.startswith(f"{capability}/")]
    if not classes:
        return None, f"compute capability {capability} is not in the table"
    unknown = None, _NOT_ENOUGH
    name = identity.name
    if _CAPPED.search(name):
        return unknown
    if len(classes) == 1:
        return classes[0], _NOT_IN_TABLE
    if capability == "9.0":
        full = _FULL_HOPPER.search(name) or (identity.sm_count or 0) >= _FULL_HOPPER_SMS
        return ("9.0/dc", _NOT_IN_TABLE) if full else unknown
    if "GeForce RTX" in name:
        return f"{capability}/gf", _NOT_IN_TABLE
    if "RTX" in name and "TITAN" not in name:
        return f"{capability}/dc", _NOT_IN_TABLE
    return unknown


def _derived_dram_bandwidth(identity: DeviceIdentity) -> float | None:
    """2 transfers per clock x bus width: exact for HBM and for GDDR as NVML reports its clock."""
    if identity.memory_clock_max_hertz is None or identity.memory_bus_width_bits is None:
        return None
    return 2 * identity.memory_clock_max_hertz * identity.memory_bus_width_bits / 8
