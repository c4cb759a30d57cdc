"""The exporter's own process under the names of Prometheus' client libraries, compared with theirs."""

import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

from exporter.metrics.process import PROCESS_ROWS, ProcessReader
from exporter.metrics.rows import part_samples


def ours(reader: ProcessReader) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.family.name, sample.labels): sample.value
        for sample in part_samples([PROCESS_ROWS.of((), reader.read())])
    }


def theirs() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


def test_it_has_the_series_of_the_client_library() -> None:
    """Names, labels and help texts are the same; so are values that do not change meanwhile."""
    reference, found = theirs(), ours(ProcessReader())

    assert set(found) == set(reference)
    for name in ("process_max_fds", "process_start_time_seconds"):
        assert found[name, ()] == pytest.approx(reference[name, ()], abs=1e-2)
    memory = "process_resident_memory_bytes"
    assert found[memory, ()] == pytest.approx(reference[memory, ()], rel=0.1)


def test_an_open_file_counts_once(tmp_path: Path) -> None:
    """One more descriptor than before, without those of the reading itself."""
    reader = ProcessReader()
    before = reader.read().open_fds

    with (tmp_path / "file").open("w"):
        assert reader.read().open_fds == before + 1


def test_processor_time_grows_with_work() -> None:
    """It is that of the whole process, to the nanosecond."""
    reader = ProcessReader()
    before = reader.read().cpu_seconds
    until = time.process_time() + 0.01
    while time.process_time() < until:
        pass

    assert reader.read().cpu_seconds >= before + 0.01


def test_without_proc_its_values_are_absent(tmp_path: Path) -> None:
    """A container may hide it: memory, descriptors and start time are then absent, not 0."""
    found = ours(ProcessReader(tmp_path))

    assert ("process_cpu_seconds_total", ()) in found
    for name in ("resident_memory_bytes", "virtual_memory_bytes", "open_fds", "start_time_seconds"):
        assert (f"process_{name}", ()) not in found
