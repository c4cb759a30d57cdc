"""All devices of a host: which of their samples are shown, by how each of them fares."""

from collections.abc import Iterable
from itertools import chain

from exporter.metrics.device import reading_samples
from exporter.metrics.exporter import health_samples, no_device_samples
from exporter.metrics.family import Sample
from exporter.metrics.flops import flops_samples
from exporter.metrics.samples import device_labels
from exporter.state import State


def device_samples(state: State) -> Iterable[Sample]:
    """All samples of all devices. Of a device that is down, hung or stale, only its health."""
    parts: list[Iterable[Sample]] = []
    for device in state.devices:
        parts.append(health_samples(device))
        if device.up:
            labels = device_labels(device.identity)
            parts += flops_samples(labels, device)
            parts += reading_samples(labels, device)
    if state.pending or not state.devices:
        parts.append(no_device_samples(state))
    return chain.from_iterable(parts)  # a loop in C for each of thousands of samples
