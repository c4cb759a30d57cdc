"""Advice for a fleet from a real Prometheus: the command, its sums and money, and the panels."""

import json
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from exporter.simulate.host import Pull
from exporter.simulate.scenarios import SCENARIOS
from tests.grafana.boards import Target, substituted, targets
from tests.prometheus.stack import ALERTMANAGER, PROMETHEUS, Stack, running


pytestmark = pytest.mark.skipif(
    PROMETHEUS is None or ALERTMANAGER is None, reason="Prometheus or Alertmanager is not installed"
)

_TITLE = "What would help"
_SCENARIOS = ("serving-queue", "serving-capped")
# Half a minute after the start: ten minutes of the scenarios' time.
_PULL = Pull("larger_batch", 600.0)
_DEADLINE_SECONDS = 300.0
_GPUS, _PRICE = 8, 2.5


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two hosts, each with an engine that is simulated pass by pass on eight H100 at 2.50 an hour."""
    scenarios = tuple(SCENARIOS[name] for name in _SCENARIOS)
    with running(tmp_path_factory.mktemp("stack"), scenarios, 1, (_PULL,)) as running_stack:
        wait_for(lambda: ready(running_stack))
        yield running_stack


def ready(stack: Stack) -> bool:
    """Whether Prometheus answers."""
    try:
        return bool(stack.ask("query", query="1", time=str(time.time())))
    except urllib.error.URLError:
        return False


def wait_for(found: Callable[[], Any]) -> Any:
    """What is found, once there is any."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not (value := found()):
        assert time.monotonic() < deadline, "nothing was found in time"
        time.sleep(1.0)
    return value


def values(stack: Stack, query: str, at: float) -> list[float]:
    """The values of the query's series; none where a busy Prometheus gives up on the query."""
    answer = stack.ask("query", query=query, time=str(at))
    if isinstance(answer, str):
        return []
    return [float(series["value"][1]) for series in answer["result"]]


def advise(stack: Stack, *arguments: str) -> str:
    command = [sys.executable, "-m", "exporter", "advise", "--prometheus", stack.prometheus]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout


@pytest.mark.timeout(400)
def test_levers_are_summed_over_the_fleet_in_flops_and_money(stack: Stack) -> None:
    """Money is what the eight GPUs of each engine cost a day, times what a token saves."""
    gain = 'flopwatch_lever_gain_ratio{lever="weights_fp8", bound="low"}'
    wait_for(lambda: len(values(stack, gain, time.time())) == 2)
    wait_for(lambda: values(stack, "sum(rate(flopwatch_model_flop_total[10m])) > 0", time.time()))
    rows = {row["lever"]: row for row in json.loads(advise(stack, "--json"))}
    row, now = rows["weights_fp8"], time.time()

    cost = values(stack, 'flopwatch_lever_cost_ratio{lever="weights_fp8"}', now)
    saved = sum(24 * _PRICE * _GPUS * (1 - each) / 2 for each in cost)
    assert row["workloads"] == 2
    assert row["saved_per_day"]["USD"] == pytest.approx(saved, rel=0.1)
    useful = sum(values(stack, "sum(rate(flopwatch_model_flop_total[10m]))", now))
    low = sum(values(stack, f"avg({gain}) - 1", now))
    assert row["flops_low"] == pytest.approx(low * useful, rel=0.5)
    assert 0 < row["flops_low"] < row["flops_high"]
    assert "weights_fp8" in advise(stack)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("target", [t for t in targets() if t.panel == _TITLE], ids=str)
def test_the_panels_have_data(stack: Stack, target: Target) -> None:
    """Every query of the panels on Models and Fleet returns a row for each lever."""
    query = substituted(target.expr)
    found = wait_for(lambda: stack.ask("query", query=query, time=str(time.time()))["result"])

    assert "weights_fp8" in {series["metric"].get("lever") for series in found}


@pytest.mark.timeout(400)
def test_pulling_a_lever_is_recorded(stack: Stack) -> None:
    """Both engines get twice the batch; ten stable minutes later the fleet has two comparisons.

    With shortened time a window is 15 s, so one of them may miss its interval.
    """
    counted = 'sum(flopwatch_lever_backtests_total{lever="larger_batch"}) >= 2'
    wait_for(lambda: values(stack, counted, time.time()))
    rows = {row["lever"]: row for row in json.loads(advise(stack, "--json"))}

    assert rows["larger_batch"]["compared"] == 2
    assert f"{rows['larger_batch']['held']:.0f} of 2 held" in advise(stack)
