"""Short forms of `python -m benchmarks.soak`, and what keeps its long form flat."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import soak_node
from benchmarks.soak import soak_accounts, soak_daemon
from benchmarks.soak_node import Node
from exporter.metrics.layout import Format
from exporter.metrics.render import Exposition


@pytest.fixture
def traced() -> Iterator[None]:
    """Memory that Python allocates is counted."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_removed_devices_are_released(traced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """MIG instances one after the other: memory does not grow with their number."""
    monkeypatch.setattr(soak_node, "_NEW_INSTANCE_TICKS", 60)
    node = Node(random.Random(1))
    exposition = Exposition(
        node.parts,
        series_limit=lambda: 20_000,
        state=node.state,
        extra_labels=node.extra_labels,
        clock=lambda: node.seconds,
    )

    def peak_bytes(instances: int) -> int:
        tracemalloc.reset_peak()
        for _ in range(instances):
            for _second in range(60):
                node.tick()
            exposition.render(Format.OPENMETRICS, compressed=True)
        return tracemalloc.get_traced_memory()[1]

    peak_bytes(260)  # as many as the state file remembers at most
    before = peak_bytes(60)
    assert peak_bytes(120) < before + 300_000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_grows_in_half_a_day_of_ticks(tmp_path: Path) -> None:
    """All memory that the daemon keeps, while everything that it watches comes and goes."""
    grown, played = soak_accounts(43_200, tmp_path)

    assert not grown.is_leak, grown
    assert played.scrapes >= 43_200 // 15
    assert played.engine_scrapes == 43_200 // 15
    assert played.probe_runs > 1_000
    assert played.devices == played.reloads == 12


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_daemon_stays_correct_under_churn(tmp_path: Path) -> None:
    """Ten ticks a second, scrapes, reloads, XIDs, processes, lost GPUs: every scrape is right.

    Descriptors and threads stay. Memory is still growing to its bounds here: `make soak` waits for
    that.
    """
    grown = soak_daemon(40, tmp_path)

    assert grown.descriptors_after <= grown.descriptors_before, grown
    assert grown.threads_after <= grown.threads_before + grown.threads_to_spare, grown
    assert grown.bytes < 10_000_000, grown
