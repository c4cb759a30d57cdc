"""A GPU in MIG mode, assembled from a dcgm-exporter's rows of its instances.

DCGM gives each instance's activities as shares of the instance itself, and dcgm-exporter has by
default no row of the whole GPU then. SMs and memory slices of no instance are idle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from exporter.collect.dcgm.exposition import DcgmDevice, DeviceSample


# Shares of the memory's bandwidth; all other activities are shares of SMs or of their time.
_OF_MEMORY = "dram"


@dataclass(frozen=True, slots=True)
class InstanceShare:
    """An instance's share of its GPU's SMs and memory bandwidth; None: not known."""

    sm: float
    memory: float | None


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
    names = {name for sample in known.values() for name in sample.activities}
    activities = {
        name: value for name in names if (value := _weighted(name, known, shares)) is not None
    }
    composed = DeviceSample(
        activities,
        others=hash(tuple((mig, sample.others) for mig, sample in known.items())),
        malformed=sum(sample.malformed for sample in known.values()),
    )
    # PCIe and NVLink belong to the GPU, so they are in its own row.
    return composed if own is None else replace(composed, bytes_per_second=own.bytes_per_second)


def _weighted(name: str, samples: Mapping[str, DeviceSample], shares: Shares) -> float | None:
    total = 0.0
    for mig, sample in samples.items():
        share = shares[mig].memory if name == _OF_MEMORY else shares[mig].sm
        value = sample.activities.get(name)
        if value is None or share is None:
            return None
        total += value * share
    return min(total, 1.0)
