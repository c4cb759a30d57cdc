"""What is exposed of a State: the parts of an exposition, in the order in which they count for the limit."""

from collections.abc import Iterable, Iterator

from exporter.metrics.device import reading_parts
from exporter.metrics.exporter import NO_DEVICE, health_parts
from exporter.metrics.family import Sample
from exporter.metrics.flops import CALIBRATION, flops_parts
from exporter.metrics.holders import HOLDERS, bill_parts
from exporter.metrics.models import WORKLOADS
from exporter.metrics.probes import PROBES
from exporter.metrics.rows import Part, part_samples
from exporter.metrics.samples import device_labels
from exporter.state import State


def device_parts(state: State) -> Iterator[Part]:
    """All devices. Of a device that is down, hung or stale, only its health."""
    for device in state.devices:
        labels = device_labels(device.identity)
        yield from health_parts(labels, device)
        if device.up:
            yield from flops_parts(labels, device)
            yield from reading_parts(labels, device)
    if state.pending or not state.devices:
        yield NO_DEVICE.of(state)


def state_parts(state: State) -> Iterator[Part]:
    """All that a State says of its devices, their probes, the models that they serve and their holders."""
    yield from device_parts(state)
    for results in state.probes.devices:
        yield PROBES.of(results)
    yield WORKLOADS.of(state.workloads)
    yield HOLDERS.of(state)
    yield from bill_parts(state)
    yield CALIBRATION.of(state)


def device_samples(state: State) -> Iterable[Sample]:
    """All samples of all devices, one by one."""
    return part_samples(device_parts(state))
