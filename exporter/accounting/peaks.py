"""Peak rates per GPU model: the data sheet where it is known, else derived from the silicon.

The table `peaks.json` holds dense FLOP per clock and SM by compute capability and class (CUDA C++
Programming and Best Practices Guides, NVIDIA architecture whitepapers), and the dense figures of
the data sheets by model. Compute capability alone is not enough: L40 and L40S share 8.9 and differ
by two. From Hopper on, data sheets rate the tensor pipe at a lower clock than the chip may run
(H100 SXM: 989.4 TFLOP/s is 132 SMs x 4096 x 1.83 GHz, it runs at up to 1.98 GHz).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    """What a device could do at best.

    `flops` is the dense peak by precision in FLOP/s, `tensor_rate` and `plain_rate` the FLOP per
    clock and SM by precision of the tensor and the plain pipes (a fused multiply-add counts 2).
    `origin` is `datasheet` or `derived`, `model` the table's name of the GPU model.
    """

    origin: str
    model: str
    sm_count: int | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    tensor_rate: Mapping[str, float] = field(default_factory=dict)
    plain_rate: Mapping[str, float] = field(default_factory=dict)
    dram_bytes_per_second: float | None = None
    nvlink_bytes_per_second: float | None = None

    @property
    def default_precision(self) -> str | None:
        """The precision at which tensor work is valued when nobody says better."""
        for precision in ("bf16", "fp16", "fp32"):
            if precision in self.flops:
                return precision
        return None


@cache
def _table() -> Any:
    return json.loads(Path(__file__).with_name("peaks.json").read_text(encoding="utf-8"))


def pcie_bytes_per_second(generation: int, width: int) -> float | None:
    """PCIe bandwidth in bytes/s per direction; None for a generation that is not known."""
    per_lane = _PCIE_LANE_BYTES.get(generation)
    return None if per_lane is None else per_lane * width


def find_peaks(identity: DeviceIdentity) -> Peaks:
    """Peaks of a GPU by its NVML name, else derived from its compute capability.

    A GPU that neither the table nor its compute capability can place has no peaks at all: better
    none than a wrong one.
    """
    for gpu in _table()["gpus"]:
        if any(fnmatchcase(identity.name, pattern) for pattern in gpu["names"]):
            return _from_data_sheet(gpu, identity)
    return _derived(identity)


def _from_data_sheet(gpu: Mapping[str, Any], identity: DeviceIdentity) -> Peaks:
    sheet: dict[str, float] = gpu["teraflops"]
    rates: dict[str, float] = _table()["rates"][gpu["class"]]
    sms: int = gpu["sm_count"]
    boost = gpu["boost_mhz"] * 1e6
    # The clock at which the data sheet rates the tensor pipe, for the precisions that it leaves out.
    tensor_clock = boost
    if "fp16t" in sheet:
        tensor_clock = sheet["fp16t"] * _TERA / (sms * rates["fp16t"])

    def figure(key: str, clock: float) -> float | None:
        if key in sheet:
            return sheet[key] * _TERA
        rate = rates.get(key)
        return None if rate is None else sms * rate * clock

    capability = _class_capability(gpu["class"])
    nvlink = gpu["nvlink_gigabytes_per_second_both_directions"]
    return Peaks(
        origin="datasheet",
        model=gpu["model"],
        sm_count=identity.sm_count or sms,
        flops=_peak_flops(
            lambda key: figure(key, tensor_clock), lambda key: figure(key, boost), capability
        ),
        tensor_rate=_tensor_rates(rates, capability),
        plain_rate={p: rates[key] for p, key in _PLAIN_KEYS.items() if key in rates},
        dram_bytes_per_second=gpu["dram_gigabytes_per_second"] * _GIGA,
        nvlink_bytes_per_second=nvlink * _GIGA / 2 if nvlink else None,
    )


def _derived(identity: DeviceIdentity) -> Peaks:
    model = identity.name
    dram = _derived_dram_bandwidth(identity)
    gpu_class = _class_of(identity)
    if gpu_class is None or identity.sm_count is None or identity.sm_clock_max_hertz is None:
        return Peaks(
            origin="derived", model=model, sm_count=identity.sm_count, dram_bytes_per_second=dram
        )
    rates: dict[str, float] = _table()["rates"][gpu_class]
    per_rate = identity.sm_count * identity.sm_clock_max_hertz
    capability = _class_capability(gpu_class)

    def figure(key: str) -> float | None:
        rate = rates.get(key)
        return None if rate is None else rate * per_rate

    return Peaks(
        origin="derived",
        model=model,
        sm_count=identity.sm_count,
        flops=_peak_flops(figure, figure, capability),
        tensor_rate=_tensor_rates(rates, capability),
        plain_rate={p: rates[key] for p, key in _PLAIN_KEYS.items() if key in rates},
        dram_bytes_per_second=dram,
    )


Figure = Callable[[str], float | None]


def _peak_flops(tensor: Figure, plain: Figure, capability: tuple[int, int]) -> dict[str, float]:
    """The best that the silicon has for each precision: tensor pipe first, plain pipe else."""
    peaks: dict[str, float] = {}
    for precision in ("fp64", "fp32", *_TENSOR_KEYS):
        if precision == "bf16" and capability < _FIRST_WITH_BF16:
            continue
        value = tensor(_TENSOR_KEYS[precision]) if precision in _TENSOR_KEYS else None
        if value is None and precision in ("fp64", "fp32"):
            value = plain(_PLAIN_KEYS[precision])
        if value is not None:
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


def _class_of(identity: DeviceIdentity) -> str | None:
    """Row of the rate table for a GPU that the model table does not know."""
    if identity.compute_capability is None:
        return None
    major, minor = identity.compute_capability
    capability = f"{major}.{minor}"
    rates = _table()["rates"]
    consumer = any(word in identity.name for word in ("GeForce", "TITAN"))
    for suffix in ("gf", "dc") if consumer else ("dc", "gf"):
        if f"{capability}/{suffix}" in rates:
            return f"{capability}/{suffix}"
    return None


def _derived_dram_bandwidth(identity: DeviceIdentity) -> float | None:
    """2 transfers per clock x bus width: exact for HBM and for GDDR as NVML reports its clock."""
    if identity.memory_clock_max_hertz is None or identity.memory_bus_width_bits is None:
        return None
    return 2 * identity.memory_clock_max_hertz * identity.memory_bus_width_bits / 8
