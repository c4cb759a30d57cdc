"""Samples of the processes on the devices: off by default, one series each."""

from collections.abc import Callable, Iterator

from exporter.exposition.samples import device_labels
from exporter.metrics.device import PROCESS_MEMORY_BYTES
from exporter.metrics.family import Sample
from exporter.state import State


def process_samples(state: State, name_of: Callable[[int], str]) -> Iterator[Sample]:
    """Memory by process, of devices that answer."""
    for device in state.devices:
        if device.slow is None:
            continue
        labels = device_labels(device.identity)
        # A process may hold several contexts on one device.
        used: dict[int, int] = {}
        for process in device.slow.processes or ():
            if process.used_bytes is not None:
                used[process.pid] = used.get(process.pid, 0) + process.used_bytes
        for pid, used_bytes in used.items():
            yield Sample(
                PROCESS_MEMORY_BYTES,
                (*labels, ("pid", str(pid)), ("process", name_of(pid))),
                float(used_bytes),
            )
