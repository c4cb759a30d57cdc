"""The source beside the sampling threads: what becomes of it must not become of them."""

import pytest

from exporter.readings import FastReading
from exporter.sources import dcgm
from exporter.sources.dcgm import DcgmSource
from probes.threads import BoundedThread


def test_no_thread_to_scrape_with_costs_no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU ticks on without activities, and scraping begins with the tick that finds a thread."""
    begun: list[bool] = []

    class NoThread(BoundedThread):
        def start(self) -> None:
            begun.append(len(begun) > 1)
            if not begun[-1]:
                raise RuntimeError("can't start new thread")

    monkeypatch.setattr(dcgm, "BoundedThread", NoThread)
    source = DcgmSource(lambda: "http://127.0.0.1:1/metrics", lambda: "auto")
    reader = source.reader("GPU-1")
    for second in range(5):
        assert reader.take(FastReading(float(second))) == (None, None)

    # Two attempts in vain, one that held; then it runs.
    assert begun == [False, False, True]
