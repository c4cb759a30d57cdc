"""What the status page costs: `python -m benchmarks.status_page`.

Prints, on this machine: the time to render the page by number of devices (processor time and
wall-clock time, best and median of runs, without the cache), its size, the time to follow one
snapshot, and the memory of the rings as the allocator sees it.
"""

import gc
import statistics
import time
import tracemalloc
from dataclasses import replace

from exporter.status.build import build_status
from exporter.status.history import Histories, Ring
from exporter.status.page import render_page
from tests.status.examples import busy_hour, fleet, gpu, ticked


RUNS = 30
SNAPSHOTS = 20_000


def render_times(count: int) -> None:
    machine = fleet(count, busy_hour)
    processor: list[float] = []
    wall: list[float] = []
    size = 0
    for _ in range(RUNS):
        started, started_processor = time.perf_counter(), time.process_time()
        status = build_status(
            machine.service._sources,
            machine.service._histories,
            now_seconds=machine.now,
            uptime_seconds=3600.0,
        )
        size = len(render_page(status).encode())
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - started_processor)
    print(
        f"{count:>3} devices: processor {min(processor) * 1e3:6.1f} ms best,"
        f" {statistics.median(processor) * 1e3:6.1f} ms median; wall {min(wall) * 1e3:6.1f} ms best,"
        f" {statistics.median(wall) * 1e3:6.1f} ms median; {size / 1e3:6.1f} kB"
    )


def observe_time() -> None:
    histories = Histories()
    device = replace(gpu(0), at_seconds=1000.0)
    snapshots = []
    for step in range(SNAPSHOTS):
        device = ticked(device, busy_hour("0", step), 1001.0 + step, 1.0, 0.0)
        snapshots.append(device)
    started = time.process_time()
    for snapshot in snapshots:
        histories.observe(snapshot)
    seconds = time.process_time() - started
    print(f"following one snapshot: {seconds / SNAPSHOTS * 1e6:.1f} µs of processor time")


def ring_memory(count: int) -> None:
    snapshots = [replace(gpu(index), at_seconds=1000.0) for index in range(count)]
    gc.collect()
    tracemalloc.start()
    histories = Histories()
    for second in range(1, 4000, 20):
        for place, snapshot in enumerate(snapshots):
            snapshots[place] = ticked(
                snapshot, busy_hour(str(place), second), 1000.0 + second, 20.0, 0.0
            )
            histories.observe(snapshots[place])
    # The memory of the devices' own snapshots does not count for the page.
    snapshots.clear()
    gc.collect()
    taken, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f"rings of {count} devices: {taken / 1e6:.2f} MB"
        f" (cells {count * Ring().size_bytes / 1e6:.2f} MB)"
    )


if __name__ == "__main__":
    for devices in (0, 1, 8, 64):
        render_times(devices)
    observe_time()
    ring_memory(64)
