"""The catalogue: every metric family, from the subjects that declare them, and what is exported of a State."""

from collections.abc import Iterator

from exporter.device_state import DeviceState
from exporter.metrics import (
    device,
    exporter,
    findings,
    flops,
    holders,
    levers,
    models,
    probes,
    process,
)
from exporter.metrics.device import DEVICE_ROWS, FAST_ROWS, SLOW_ROWS
from exporter.metrics.exporter import HEALTH_ROWS, NO_DEVICE
from exporter.metrics.family import Family, Subject, device_labels
from exporter.metrics.flops import (
    ACTIVITY_ROWS,
    CALIBRATION,
    COUNTER_ROWS,
    IDENTITY_ROWS,
    LINK_ROWS,
    PEAK_ROWS,
    WINDOW_ROWS,
    last_activity,
)
from exporter.metrics.holders import HOLDERS, bill_parts
from exporter.metrics.models import WORKLOADS
from exporter.metrics.probes import PROBES
from exporter.metrics.rows import Joined, Part
from exporter.state import State


# In the order in which they are documented and exposed. A new subject is added here.
SUBJECTS: tuple[Subject, ...] = (
    flops.SUBJECT,
    device.SUBJECT,
    probes.SUBJECT,
    models.SUBJECT,
    holders.SUBJECT,
    levers.SUBJECT,
    findings.SUBJECT,
    exporter.SUBJECT,
    process.SUBJECT,
)
CATALOGUE: tuple[Family, ...] = tuple(family for subject in SUBJECTS for family in subject.families)
BY_NAME: dict[str, Family] = {family.name: family for family in CATALOGUE}

# Everything that changes with every tick.
TICK_ROWS = Joined[DeviceState](
    (lambda device: device, HEALTH_ROWS),
    (lambda device: device, COUNTER_ROWS),
    (lambda device: device.last, WINDOW_ROWS),
    (last_activity, ACTIVITY_ROWS),
    (lambda device: device, DEVICE_ROWS),
    (lambda device: device.fast, FAST_ROWS),
)


def state_parts(state: State) -> Iterator[Part]:
    """What is exported of a State, in the order in which it counts towards the series limit."""
    for each in state.devices:
        yield from _device_parts(each)
    if state.pending or not state.devices:
        yield NO_DEVICE.of(state)
    for results in state.probes.devices:
        yield PROBES.of(results)
    yield WORKLOADS.of(state.workloads)
    yield HOLDERS.of(state)
    yield from bill_parts(state)
    yield CALIBRATION.of(state)


def _device_parts(device: DeviceState) -> Iterator[Part]:
    """A device. If it is down, hung or stale, only its health."""
    labels = device_labels(device.identity)
    yield IDENTITY_ROWS.of(labels, device.identity)
    if not device.up:
        yield HEALTH_ROWS.of(labels, device)
        return
    if device.peaks is not None:
        yield PEAK_ROWS.of(labels, device.peaks)
    yield TICK_ROWS.of(labels, device)
    if device.slow is not None:
        yield LINK_ROWS.of(labels, device.slow)
        yield SLOW_ROWS.of(labels, device.slow)
