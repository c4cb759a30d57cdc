"""The budget on a simulated host: what was spent stays spent, and no hour exceeds its share."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from hypothesis import example, given, settings
from hypothesis import strategies as st

from probes.config import ProbeConfig
from probes.facts import ProcessFacts
from tests.probes.simulation import COPY, GEMM, LAUNCH, Ending, Host, gpu


SERVER = ProcessFacts(pid=100, age_seconds=1e6)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


class TestReconfiguration:
    def test_another_budget_counts_at_once(self, host):
        """What was spent stays spent."""
        host.cycle()
        host.scheduler.reconfigure(ProbeConfig(pause_file=None, budget_seconds=0.001))
        seen = host.cycle(after=1.0)

        assert seen.skips == {"budget": 1}

    def test_restarts_of_the_daemon_do_not_renew_the_budget(self, host):
        """Started again within the minute, it finds the interval's budget spent."""
        host.script.append(Ending(share=1.0))
        host.cycle()
        host.boot()
        host.cycle(after=5.0)

        assert len(host.requests) == 1
        assert host.snapshot().skips == {"budget": 1}


ENDINGS = st.builds(
    Ending,
    how=st.sampled_from(
        ["ok", "ok", "ok", "hang", "crash", "crash_late", "out_of_memory", "allowance"]
    ),
    share=st.floats(0.0, 1.0),
)
EVENTS = st.sampled_from(["cycle"] * 12 + ["restart", "server_comes", "server_goes", "pause"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ENDINGS, max_size=200),
    st.lists(st.tuples(EVENTS, st.floats(0.0, 200.0)), min_size=1, max_size=150),
    st.sampled_from([(60.0, 0.020), (5.0, 0.020), (900.0, 0.050)]),
)
@example([Ending("hang")] * 100, [("cycle", 100.0)] * 100, (900.0, 0.050))
def test_over_any_hour_the_budget_is_never_exceeded(endings, events, setting):
    """Whatever the outcomes, at whatever times, over restarts of worker and daemon alike.

    Counted is what the simulated device really worked, hung chunks until their kill included,
    over every window of an hour that begins with a piece of work.
    """
    interval, budget = setting
    with tempfile.TemporaryDirectory() as folder, structlog.testing.capture_logs():
        host = Host(
            Path(folder),
            [gpu(0), gpu(1)],
            interval_seconds=interval,
            budget_seconds=budget,
        )
        host.kernels = (GEMM, COPY, LAUNCH)
        host.script.extend(endings)
        for event, pause in events:
            host.clock.now += pause
            if event == "restart":
                host.scheduler.close()
                host.boot()
            elif event == "server_comes":
                host.devices = [replace(each, processes=(SERVER,)) for each in host.devices]
            elif event == "server_goes":
                host.devices = [replace(each, processes=()) for each in host.devices]
            elif event == "pause":
                host.scheduler.paused_by_operator = not host.scheduler.paused_by_operator
            host.scheduler.cycle()

    hour_budget = int(3600 / interval) * budget
    for uuid in ("GPU-0", "GPU-1"):
        spans = [(start, seconds) for each, start, seconds in host.used if each == uuid]
        for start, _ in spans:
            spent = sum(s for begin, s in spans if start <= begin and begin + s <= start + 3600)
            assert spent <= hour_budget + 1e-9
