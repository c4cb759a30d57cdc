"""Parses what a dcgm-exporter exposes, by device, and makes windows of it.

Read are the profiling fields of DCGM, by old and new names. Names and units: dcgm_fields.h (ratios 0..1; PCIe and NVLink in bytes per second, whatever the
exposition's TYPE says; cycles and bytes since boot in `…_TOTAL`). dcgm-exporter 4.9 exposes the new
names, older ones those used in their counters file. Blank values: dcgm_structs.h, DCGM_INT32_BLANK
and its like. Field strings that dcgm-exporter cannot convert appear in its answer unchanged (`ERROR
- FAILED TO CONVERT TO STRING`): each line is read separately, and an invalid one does not affect others.

A GPU in MIG mode is assembled from the rows of its instances: by default dcgm-exporter has no row of
the whole GPU then. DCGM gives each instance's activities as shares of the instance itself; SMs and
memory slices of no instance are idle.

dcgm-exporter shows the mean of DCGM's last collection (30 s by default) without a timestamp, the
same one in every scrape until the next collection. A window spans the instants at which two
different samples were first seen; its activities are those of the sample that closed it. Where DCGM
exports the device's cycle totals, activities are their exact shares instead.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from exporter.accounting.device import COARSE_SOURCE
from exporter.accounting.mig import InstanceShare, whole_gpu_activities
from exporter.readings import DCGM_SOURCE, ActivityWindow


_PREFIX = "DCGM_FI_"
_PROFILING = "DCGM_FI_PROF_"

# Activity of ActivityWindow, then the field's old name and its name since DCGM 4.6, both without
# prefix.
_ACTIVITIES: tuple[tuple[str, str, str], ...] = (
    ("graphics", "GR_ENGINE_ACTIVE", "GR_ENGINE_UTIL_RATIO"),
    ("sm", "SM_ACTIVE", "SM_UTIL_RATIO"),
    ("occupancy", "SM_OCCUPANCY", "SM_OCCUPANCY_RATIO"),
    ("tensor", "PIPE_TENSOR_ACTIVE", "TENSOR_UTIL_RATIO"),
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
ELAPSED = "elapsed"
# Counters since boot, with DCGM 4.6 and a GPU that counts cycles.
_TOTALS: tuple[tuple[str, str], ...] = (
    (ELAPSED, "SM_CYCLES_ELAPSED_TOTAL"),
    ("sm", "SM_CYCLES_ACTIVE_TOTAL"),
    ("tensor", "MMA_CYCLES_ACTIVE_TOTAL"),
    ("dmma_tensor", "DMMA_CYCLES_ACTIVE_TOTAL"),
    ("hmma_tensor", "HMMA_CYCLES_ACTIVE_TOTAL"),
    ("imma_tensor", "IMMA_CYCLES_ACTIVE_TOTAL"),
    ("dfma_tensor", "DFMA_CYCLES_ACTIVE_TOTAL"),
    ("integer", "INT_CYCLES_ACTIVE_TOTAL"),
    ("fp64", "FP64_CYCLES_ACTIVE_TOTAL"),
    ("fp32", "FP32_CYCLES_ACTIVE_TOTAL"),
    ("fp16", "FP16_CYCLES_ACTIVE_TOTAL"),
    ("pcie_transmit_bytes", "PCIE_TX_BYTES_TOTAL"),
    ("pcie_receive_bytes", "PCIE_RX_BYTES_TOTAL"),
)
_ACTIVITY_BY_FIELD = {
    _PROFILING + name: activity for activity, old, new in _ACTIVITIES for name in (old, new)
}
_RATE_BY_FIELD = {_PROFILING + name: rate for rate, name in _RATES}
_TOTAL_BY_FIELD = {_PROFILING + name: total for total, name in _TOTALS}
_OF_LINKS = frozenset(rate for rate, _name in _RATES)

# What the time split and the FLOP counters need of every GPU that DCGM can profile. HMMA, IMMA and
# DFMA are not among them: GPUs before Ampere have none of their own.
WANTED_FIELDS: Mapping[str, str] = {
    activity: _PROFILING + old
    for activity, old, _new in _ACTIVITIES
    if activity in {"graphics", "sm", "tensor", "dram", "fp64", "fp32", "fp16"}
}

# Without any of these there are no FLOPS, whatever else the counters file has.
_PIPES = frozenset({"tensor", "hmma_tensor", "fp64", "fp32", "fp16"})
_RATE_MAX = 1e13
# Ratios may pass 1 by rounding.
_RATIO_MAX = 1.01
# 16 GPUs of seven instances, each shared by dozens of pods, with all fields, stay far below these:
# bounds for an answer that another program has written.
_DEVICES_MAX = 1024
_LINES_MAX = 50_000

_LINE = re.compile(rf"^{_PREFIX}[^\n]*", re.MULTILINE)
_SAMPLE = re.compile(r"(\w+)[ \t]*(?:\{(.*)\})?[ \t]+([^ \t]+)(?:[ \t]+-?\d+)?[ \t\r]*")
_LABEL = re.compile(r'[ \t]*(\w+)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(,|\Z)')
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|[Ii]nf|[Nn]a[Nn])")
# Finds the device that a malformed line is about.
_UUID = re.compile(r'uuid="((?:GPU|MIG)-[0-9A-Za-z-]{1,64})"', re.IGNORECASE)

_SHARE_MAX = 1.01  # of elapsed cycles: totals of one collection are read one after the other
# Hertz at which one SM may run. Cycles summed over the SMs of a GPU are far above: for those the
# shares are right, and the clock is left out.
_CLOCKS = (5e7, 3.5e9)


@dataclass(frozen=True, slots=True)
class DcgmDevice:
    """A GPU by its UUID, or one of its MIG instances by the GPU's UUID and the instance's id."""

    uuid: str
    gpu_instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One device in one scrape.

    `totals` are cycles and bytes since boot. `others` represents all its values that are not
    profiling fields: it differs when one of them does. `malformed` counts its lines that are not
    samples, `implausible` its values that cannot be true.
    """

    activities: Mapping[str, float] = field(default_factory=dict)
    bytes_per_second: Mapping[str, float] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    others: int = 0
    implausible: int = 0
    malformed: int = 0

    @property
    def profiling(self) -> tuple[Mapping[str, float], ...]:
        """The values of its profiling fields."""
        return self.activities, self.bytes_per_second, self.totals

    @property
    def idle(self) -> bool:
        """Whether it has no activity at all."""
        return not any(self.activities.values())

    @property
    def counts_cycles(self) -> bool:
        """Whether activities are available as exact shares of elapsed cycles."""
        return ELAPSED in self.totals and len(self.totals) > 1

    @property
    def known(self) -> frozenset[str]:
        """The activities that it has, as means or by cycles."""
        cycles = self.totals.keys() - _OF_LINKS if self.counts_cycles else ()
        return frozenset(self.activities).union(cycles)

    @property
    def tells_flops(self) -> bool:
        """Whether there is a pipe's activity, from which operations can be counted."""
        return not _PIPES.isdisjoint(self.known)

    @property
    def missing_fields(self) -> tuple[str, ...]:
        """DCGM's names of the wanted fields that are missing."""
        known = self.known
        return tuple(name for activity, name in WANTED_FIELDS.items() if activity not in known)


class DcgmExposition(dict[DcgmDevice, DeviceSample]):
    """All devices of an exposition. `malformed` counts invalid lines that name no device."""

    malformed: int = 0


def parse(text: str) -> DcgmExposition:
    """All devices of an exposition; empty for other text.

    Only lines of DCGM are parsed, one by one and up to a bound: memory and time do not grow with
    the rest of the answer.
    """
    values: dict[DcgmDevice, dict[str, float]] = {}
    others: dict[DcgmDevice, int] = {}
    malformed: dict[DcgmDevice | None, int] = {}
    for count, found in enumerate(_LINE.finditer(text)):
        if count >= _LINES_MAX:
            # The rest is not read, and counted as malformed.
            malformed[None] = malformed.get(None, 0) + 1
            break
        line = found[0]
        sample = _SAMPLE.fullmatch(line)
        labels = _labels(sample[2] or "") if sample else None
        if sample is None or labels is None or not _NUMBER.fullmatch(sample[3]):
            broken = _UUID.search(line)
            key = DcgmDevice(broken[1]) if broken else None
            if key in malformed or len(malformed) < _DEVICES_MAX:
                malformed[key] = malformed.get(key, 0) + 1
            continue
        if not labels.get("uuid"):
            continue
        key = DcgmDevice(labels["uuid"], labels.get("gpu_i_id") or None)
        if key not in values and len(values) >= _DEVICES_MAX:
            continue
        name = sample[1]
        of_device = values.setdefault(key, {})
        if name in _ACTIVITY_BY_FIELD or name in _RATE_BY_FIELD or name in _TOTAL_BY_FIELD:
            # A GPU shared by several pods has a row for each, with the same values.
            of_device.setdefault(name, float(sample[3]))
        else:
            others[key] = others.get(key, 0) ^ hash((name, sample[3]))
    exposition = DcgmExposition(
        (key, _device(key, found, others.get(key, 0), malformed.pop(key, 0)))
        for key, found in values.items()
    )
    exposition.malformed = sum(malformed.values())
    return exposition


def _labels(text: str) -> dict[str, str] | None:
    """Labels by name in lower case; None where they are malformed."""
    labels: dict[str, str] = {}
    position = 0
    while position < len(text):
        found = _LABEL.match(text, position)
        if found is None:
            return None if text[position:].strip() else labels
        labels[found[1].lower()] = found[2]
        position = found.end()
    return labels


def _device(
    key: DcgmDevice, values: Mapping[str, float], others: int, malformed: int
) -> DeviceSample:
    activities: dict[str, float] = {}
    rates: dict[str, float] = {}
    totals: dict[str, float] = {}
    implausible = 0
    for name, value in values.items():
        if not math.isfinite(value):
            continue
        total = _TOTAL_BY_FIELD.get(name)
        if total is not None:
            if not 0 <= value < _BLANK_TOTAL:
                implausible += 1
            elif key.gpu_instance_id is None or total not in _OF_LINKS:
                totals[total] = value
            continue
        if _is_blank(value):
            implausible += 1
        elif name in _ACTIVITY_BY_FIELD:
            if 0 <= value <= _RATIO_MAX:
                activities[_ACTIVITY_BY_FIELD[name]] = min(value, 1.0)
            else:
                implausible += 1
        elif key.gpu_instance_id is not None:
            continue  # links belong to the GPU: values in the instances' rows are not theirs
        elif 0 <= value <= _RATE_MAX:
            rates[_RATE_BY_FIELD[name]] = value
        else:
            implausible += 1
    return DeviceSample(activities, rates, totals, others, implausible, malformed)


# Cycles since boot pass the blanks of doubles (2^47) within days; those of 64 bit begin here.
_BLANK_TOTAL = 0x7FFFFFFFFFFFFFF0


def _is_blank(value: float) -> bool:
    """DCGM's blanks are at the top of 32 bit, of 64 bit, and from 2^47 on for doubles."""
    return 0x7FFFFFF0 <= value <= 0x7FFFFFFF or value >= 2**47


Shares = Mapping[str, InstanceShare]  # by GPU instance id


def whole_gpu_sample(
    uuid: str, devices: Mapping[DcgmDevice, DeviceSample], shares: Shares
) -> DeviceSample | None:
    """The GPU's sample: its own row, its activities from its instances' rows where it has none.

    `graphics` becomes the SMs' share of the time in which their instance's engine was active. An
    activity that one instance does not report is unknown for the GPU. None without a row, or with
    an instance without one.
    """
    own = devices.get(DcgmDevice(uuid))
    if own is not None and own.known:
        return own
    samples = {mig: devices.get(DcgmDevice(uuid, mig)) for mig in shares}
    known = {mig: sample for mig, sample in samples.items() if sample is not None}
    if not known or len(known) < len(shares):
        return own
    composed = DeviceSample(
        whole_gpu_activities([(sample.activities, shares[mig]) for mig, sample in known.items()]),
        others=hash(tuple((mig, sample.others) for mig, sample in known.items())),
        malformed=sum(sample.malformed for sample in known.values()),
    )
    # PCIe and NVLink belong to the GPU, so they are in its own row.
    return composed if own is None else replace(composed, bytes_per_second=own.bytes_per_second)


class DeviceWindows:
    """The windows of one device. Not thread-safe."""

    def __init__(self, *, tells_clock: bool = True) -> None:
        """`tells_clock`: the device has so many SMs that cycles of one and of all differ at any clock."""
        self.open_since: float | None = None
        self._tells_clock = tells_clock
        self._sample: DeviceSample | None = None
        self._alive_at: float | None = None

    def observe(
        self, sample: DeviceSample, at_seconds: float, interval_seconds: float
    ) -> tuple[bool, tuple[ActivityWindow, ...]]:
        """Take the device's sample of one scrape: whether it is new, and the windows it closed.

        Only profiling fields distinguish samples: others may be refreshed more often for another of
        DCGM's clients. An idle GPU's do not change: while its other fields do, its zeros count.
        """
        before, opened = self._sample, self.open_since
        if before is None or before.profiling != sample.profiling:
            self._sample = sample
            self._alive_at = at_seconds
            self.open_since = at_seconds
            closed = _closed(before, opened, sample, at_seconds, interval_seconds)
            if not self._tells_clock:
                closed = tuple(replace(window, sm_cycles=None) for window in closed)
            return before is not None, closed
        if before.others == sample.others:
            return False, ()
        self._sample = sample
        if not sample.idle:
            return False, ()
        self._alive_at = at_seconds
        if opened is None:
            self.open_since = at_seconds
        elif at_seconds - opened >= 2 * interval_seconds:
            # One interval stays open: the next sample is the mean over it.
            self.open_since = opened + interval_seconds
            return False, (_window(sample, opened, self.open_since),)
        return False, ()

    def expire(
        self, now: float, stale_seconds: float, utilization: float | None
    ) -> ActivityWindow | None:
        """Give up a window that nothing will close; its time is known only coarsely."""
        if self.open_since is None or self.fresh(now, stale_seconds):
            return None
        opened, self.open_since = self.open_since, None
        return ActivityWindow(COARSE_SOURCE, opened, now, graphics=utilization)

    def abandon(self, now: float) -> ActivityWindow | None:
        """Start over with the next sample; the time of the open window is unknown."""
        opened, self.open_since, self._sample = self.open_since, None, None
        return None if opened is None else ActivityWindow(COARSE_SOURCE, opened, now)

    def restart(self) -> None:
        """Drop the open window: some of its time was not watched."""
        self.open_since = None

    def fresh(self, now: float, stale_seconds: float) -> bool:
        """Whether a new sample was seen lately."""
        return self._alive_at is not None and now - self._alive_at <= stale_seconds


def _closed(
    before: DeviceSample | None,
    opened: float | None,
    sample: DeviceSample,
    at_seconds: float,
    interval_seconds: float,
) -> tuple[ActivityWindow, ...]:
    """The windows that end with a new sample."""
    if opened is None or not sample.known:
        return ()
    counted = {} if before is None else _counted(before, sample, at_seconds - opened)
    if counted:
        return (_window(sample, opened, at_seconds, counted),)
    if not sample.activities:
        return ()
    if before is not None and before.idle and at_seconds - opened > 1.5 * interval_seconds:
        middle = at_seconds - interval_seconds
        return _window(before, opened, middle), _window(sample, middle, at_seconds)
    return (_window(sample, opened, at_seconds),)


def _window(
    sample: DeviceSample, start: float, end: float, counted: Mapping[str, float] | None = None
) -> ActivityWindow:
    values = {name: rate * (end - start) for name, rate in sample.bytes_per_second.items()}
    values.update(sample.activities)
    values.update(counted or {})
    return ActivityWindow(DCGM_SOURCE, start, end, **values)


def _counted(before: DeviceSample, now: DeviceSample, seconds: float) -> dict[str, float]:
    """What the device counted between two samples, as values of a window; empty if nothing."""
    if not (before.counts_cycles and now.counts_cycles):
        return {}
    grown = {name: total - before.totals.get(name, total) for name, total in now.totals.items()}
    elapsed = grown.pop(ELAPSED)
    if elapsed <= 0 or min(grown.values(), default=0.0) < 0:
        return {}  # the device was reset in between
    counted: dict[str, float] = {}
    for name, value in grown.items():
        if name not in before.totals:
            continue
        if name.endswith("_bytes"):
            counted[name] = value
        elif value <= elapsed * _SHARE_MAX:
            counted[name] = min(value / elapsed, 1.0)
    if _CLOCKS[0] <= elapsed / seconds <= _CLOCKS[1]:
        counted["sm_cycles"] = elapsed
    return counted
