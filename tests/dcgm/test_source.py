"""The source runs beside the sampling threads: its faults must not affect them."""

import pytest

from exporter.collect import dcgm
from exporter.collect.dcgm import DcgmSource
from exporter.readings import FastReading
from flopwatch.threads import BoundedThread


def test_a_missing_scrape_thread_costs_no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU ticks on without activities; scraping begins 30 s later, if a thread can be started."""
    begun: list[bool] = []
    seconds = [1000.0]

    class NoThread(BoundedThread):
        def start(self) -> None:
            begun.append(len(begun) > 1)
            # During the attempt, which may take seconds, another device ticks and makes none.
            assert other.take(FastReading(seconds[0])) == (None, None)
            if not begun[-1]:
                raise RuntimeError("can't start new thread")

    monkeypatch.setattr(dcgm, "BoundedThread", NoThread)
    monkeypatch.setattr(dcgm.time, "monotonic", lambda: seconds[0])
    source = DcgmSource(lambda: "http://127.0.0.1:1/metrics", lambda: "auto")
    reader, other = source.reader("GPU-1"), source.reader("GPU-2")
    attempts = []
    for _tick in range(100):
        seconds[0] += 1.0
        before = len(begun)
        assert reader.take(FastReading(seconds[0])) == (None, None)
        attempts += [seconds[0]] * (len(begun) - before)

    # Two failed attempts, then one that succeeds; then it runs.
    assert begun == [False, False, True]
    assert attempts == [1001.0, 1031.0, 1061.0]
