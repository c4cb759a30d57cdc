"""What a dcgm-exporter exposes, by device: the profiling fields of DCGM, old and new names.

Names and units: dcgm_fields.h (ratios 0..1; PCIe and NVLink in bytes per second, whatever the
exposition's TYPE says). Blank values: dcgm_structs.h, DCGM_INT32_BLANK and its like.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


_PREFIX = "DCGM_FI_"
_PROFILING = "DCGM_FI_PROF_"

# Activity of ActivityWindow, then the field's old name and its name since DCGM 4.6, both without
# prefix. Old names are what dcgm-exporter's counter files are written in.
_ACTIVITIES: tuple[tuple[str, str, str], ...] = (
    ("graphics", "GR_ENGINE_ACTIVE", "GR_ENGINE_UTIL_RATIO"),
    ("sm", "SM_ACTIVE", "SM_UTIL_RATIO"),
    ("occupancy", "SM_OCCUPANCY", "SM_OCCUPANCY_RATIO"),
    ("any_tensor", "PIPE_TENSOR_ACTIVE", "TENSOR_UTIL_RATIO"),
    ("dram", "DRAM_ACTIVE", "DRAM_UTIL_RATIO"),
    ("fp64", "PIPE_FP64_ACTIVE", "FP64_UTIL_RATIO"),
    ("fp32", "PIPE_FP32_ACTIVE", "FP32_UTIL_RATIO"),
    ("fp16", "PIPE_FP16_ACTIVE", "FP16_UTIL_RATIO"),
    ("imma_tensor", "PIPE_TENSOR_IMMA_ACTIVE", "IMMA_UTIL_RATIO"),
    ("hmma_tensor", "PIPE_TENSOR_HMMA_ACTIVE", "HMMA_UTIL_RATIO"),
    ("dfma_tensor", "PIPE_TENSOR_DFMA_ACTIVE", "DFMA_UTIL_RATIO"),
    ("integer", "PIPE_INT_ACTIVE", "INT_UTIL_RATIO"),
)
_RATES: tuple[tuple[str, str], ...] = (
    ("pcie_transmit_bytes", "PCIE_TX_BYTES"),
    ("pcie_receive_bytes", "PCIE_RX_BYTES"),
    ("nvlink_transmit_bytes", "NVLINK_TX_BYTES"),
    ("nvlink_receive_bytes", "NVLINK_RX_BYTES"),
)
_ACTIVITY_BY_FIELD = {
    _PROFILING + name: activity for activity, old, new in _ACTIVITIES for name in (old, new)
}
_RATE_BY_FIELD = {_PROFILING + name: rate for rate, name in _RATES}

# What the time split and the FLOP counters need of every GPU that DCGM can profile. HMMA, IMMA and
# DFMA are not among them: GPUs before Ampere have none of their own.
WANTED_FIELDS: Mapping[str, str] = {
    activity: _PROFILING + old
    for activity, old, _new in _ACTIVITIES
    if activity in {"graphics", "sm", "any_tensor", "dram", "fp64", "fp32", "fp16"}
}


# Without any of these there are no FLOPS, whatever else the counters file has.
_PIPES = frozenset({"any_tensor", "hmma_tensor", "fp64", "fp32", "fp16"})
_RATE_MAX = 1e13
# Ratios may pass 1 by rounding.
_RATIO_MAX = 1.01


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A GPU by its UUID, or one of its MIG instances by the GPU's UUID and the instance's id."""

    uuid: str
    gpu_instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One device in one scrape. `others` holds all its values that are not profiling fields."""

    activities: Mapping[str, float] = field(default_factory=dict)
    bytes_per_second: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)
    implausible: int = 0

    @property
    def idle(self) -> bool:
        """Whether no activity was seen at all."""
        return not any(self.activities.values())

    @property
    def tells_flops(self) -> bool:
        """Whether there is a pipe's activity, from which operations can be counted."""
        return not _PIPES.isdisjoint(self.activities)

    @property
    def missing_fields(self) -> tuple[str, ...]:
        """DCGM's names of the wanted fields that are not there."""
        return tuple(
            name for activity, name in WANTED_FIELDS.items() if activity not in self.activities
        )


def parse(text: str) -> dict[DeviceKey, DeviceSample]:
    """All devices of an exposition. Raises ValueError where it is no exposition."""
    devices: dict[DeviceKey, dict[str, float]] = {}
    for sample in _samples(text):
        key = _key(sample.labels)
        if key is not None:
            # A GPU shared by several pods has a row for each, with the same values.
            with suppress(OverflowError):  # a whole number beyond all floats
                devices.setdefault(key, {}).setdefault(sample.name, float(sample.value))
    return {key: _device(key, values) for key, values in devices.items()}


def _samples(text: str) -> Iterator[Sample]:
    """DCGM's samples. Other lines are not parsed: they may be many, and none of our business."""
    lines = [line for line in text.splitlines() if line.startswith(_PREFIX)]
    for family in text_string_to_metric_families("\n".join([*lines, ""])):
        yield from family.samples


def _key(labels: Mapping[str, str]) -> DeviceKey | None:
    names = {name.lower(): value for name, value in labels.items()}
    uuid = names.get("uuid")
    return DeviceKey(uuid, names.get("gpu_i_id") or None) if uuid else None


def _device(key: DeviceKey, values: Mapping[str, float]) -> DeviceSample:
    activities: dict[str, float] = {}
    rates: dict[str, float] = {}
    others: dict[str, float] = {}
    implausible = 0
    for name, value in values.items():
        if not math.isfinite(value):
            continue
        if _is_blank(value):
            implausible += name in _ACTIVITY_BY_FIELD or name in _RATE_BY_FIELD
            continue
        if name in _ACTIVITY_BY_FIELD:
            if 0 <= value <= _RATIO_MAX:
                activities[_ACTIVITY_BY_FIELD[name]] = min(value, 1.0)
            else:
                implausible += 1
        elif name in _RATE_BY_FIELD:
            if key.gpu_instance_id is not None:
                continue  # links are the GPU's: what stands in its instances' rows is not theirs
            if 0 <= value <= _RATE_MAX:
                rates[_RATE_BY_FIELD[name]] = value
            else:
                implausible += 1
        else:
            others[name] = value
    return DeviceSample(activities, rates, others, implausible)


def _is_blank(value: float) -> bool:
    """DCGM's blanks lie at the top of 32 bit, of 64 bit, and from 2^47 on for doubles."""
    return 0x7FFFFFF0 <= value <= 0x7FFFFFFF or value >= 2**47
