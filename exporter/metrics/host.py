"""What is exported of a State: the parts, in the order in which they count for the limit."""

from collections.abc import Iterable, Iterator

from exporter.device_state import DeviceState
from exporter.metrics.device import DEVICE_ROWS, FAST_ROWS, SLOW_ROWS
from exporter.metrics.exporter import NO_DEVICE, health_parts
from exporter.metrics.family import Sample
from exporter.metrics.flops import (
    ACTIVITY_ROWS,
    CALIBRATION,
    COUNTER_ROWS,
    LINK_ROWS,
    PEAK_ROWS,
    WINDOW_ROWS,
    last_activity,
)
from exporter.metrics.holders import HOLDERS, bill_parts
from exporter.metrics.models import WORKLOADS
from exporter.metrics.probes import PROBES
from exporter.metrics.rows import Joined, Part, part_samples
from exporter.metrics.samples import device_labels
from exporter.state import State


# Everything that changes with every tick.
TICK_ROWS = Joined[DeviceState](
    (lambda device: device, COUNTER_ROWS),
    (lambda device: device.last, WINDOW_ROWS),
    (last_activity, ACTIVITY_ROWS),
    (lambda device: device, DEVICE_ROWS),
    (lambda device: device.fast, FAST_ROWS),
)


def device_parts(state: State) -> Iterator[Part]:
    """All devices. Of a device that is down, hung or stale, only its health."""
    for device in state.devices:
        labels = device_labels(device.identity)
        yield from health_parts(labels, device)
        if device.up:
            if device.peaks is not None:
                yield PEAK_ROWS.of(labels, device.peaks)
            yield TICK_ROWS.of(labels, device)
            if device.slow is not None:
                yield LINK_ROWS.of(labels, device.slow)
                yield SLOW_ROWS.of(labels, device.slow)
    if state.pending or not state.devices:
        yield NO_DEVICE.of(state)


def state_parts(state: State) -> Iterator[Part]:
    """Everything in a State about devices, their probes, the models that they serve, their holders."""
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
