"""Simulated fleets under a real Prometheus and Alertmanager: the right alerts and no others, and panels with data."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.simulate.scenarios import SCENARIOS, Scenario
from tests.grafana.boards import Target, substituted, targets
from tests.prometheus.stack import ALERTMANAGER, PROMETHEUS, SPEED, Stack, running


pytestmark = [
    pytest.mark.skipif(
        PROMETHEUS is None or ALERTMANAGER is None,
        reason="Prometheus or Alertmanager is not installed",
    ),
    # Whichever test comes first waits for the stack.
    pytest.mark.timeout(3000),
]

# Three quarters of an hour of rule time: five minutes before the faults begin, the longest `for` with its window, and some.
SHORT_SECONDS = 2600.0
# Two and a half hours of rule time: the whole ebb of traffic-ebb, down and up again.
LONG_SECONDS = 9600.0
# How much longer a busy machine may take to evaluate what makes the scenarios' alerts fire, of our time.
PATIENCE_SECONDS = 300.0
# One run at each, until no scrape fails.
SPEEDS = (20, 10, 5)

# Panels that show nothing on a fleet without what they look for.
EMPTY_WHEN_HEALTHY = {
    "Who holds it",  # no scheduler is simulated; the workload query has data
    "Skipped runs",  # no gate holds a simulated probe
    "Probe workers",  # no worker is simulated
    "Source errors by reason",  # no source fails
    "Clock event reasons",  # nothing holds the clock of the chosen GPU
    "XIDs",  # the chosen GPU has none
    "Instances",  # no MIG instance is simulated
    "Delivered by instance",  # the same
    "What would help",  # no simulated engine has a description that levers need
}
# Parts of queries that need days of history, or a state that this hardware's counters never leave open.
EMPTY_HERE = (
    ":same_hour",
    "[1d:1h]",
    "[7d:1h]",
    "offset 7d",
    'state="unresolved"',
    "unless on ()",  # used where FLOP are not counted
    "unless on (name)",  # the same, by GPU model
    'holder="none"',  # every simulated GPU has a holder
)


@dataclass(frozen=True)
class Watched:
    """A stack that has run for long enough; `short_at` is when SHORT_SECONDS had passed (Unix time)."""

    stack: Stack
    short_at: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Every scenario as a cluster of its own, watched until all `for` have passed and each alert had its time.

    Time runs 20 times faster here, so a machine that is busy for seconds loses minutes of scrapes. Where
    a scrape failed, the run is repeated at half the speed. The last run has all its time even then.
    """
    for speed in SPEEDS:
        is_last = speed == SPEEDS[-1]
        folder = tmp_path_factory.mktemp(f"stack-{speed}")
        scenarios = tuple(SCENARIOS.values())
        with running(folder, scenarios, hosts=1, speed=speed) as running_stack:
            time.sleep(SHORT_SECONDS / speed)
            short_at, deadline = time.time(), time.monotonic() + PATIENCE_SECONDS
            while (
                time.monotonic() < deadline
                and (is_last or not was_starved(running_stack))
                and any(wanted(each) - ever_fired(running_stack, each) for each in scenarios)
            ):
                time.sleep(running_stack.interval_seconds)
            if not is_last and was_starved(running_stack):
                continue
            yield Watched(running_stack, short_at)
            return


def was_starved(stack: Stack) -> bool:
    """Whether a scrape has failed, or no sample came for the time after which a target counts as down."""
    failed = stack.ask("query", query="min_over_time(up[1h]) == 0")["result"]
    missed = stack.ask("query", query='max_over_time(ALERTS{alertname="FlopwatchDown"}[1h])')
    return bool(failed) or bool(missed["result"])


@pytest.fixture(scope="module")
def stack(watched: Watched) -> Stack:
    """Where to ask."""
    return watched.stack


def ever_fired(
    stack: Stack, scenario: Scenario, until: float | None = None
) -> set[tuple[str, str]]:
    """Names and GPUs of the alerts that fired at any time, or until then (Unix time)."""
    fired = stack.ask(
        "query",
        query=f'max_over_time(ALERTS{{alertstate="firing", cluster="sim-{scenario.name}"}}[1h])',
        time=str(time.time() if until is None else until),
    )["result"]
    return {(series["metric"]["alertname"], series["metric"].get("gpu", "")) for series in fired}


def wanted(scenario: Scenario) -> set[tuple[str, str]]:
    """Names and GPUs of the alerts that the scenario's faults must raise."""
    gpus = {
        str(gpu)
        for fault in scenario.faults
        for gpu in (range(8) if fault.gpu is None else [fault.gpu])
    }
    return {(alert, gpu) for alert in scenario.alerts for gpu in gpus} | {
        (alert, "") for alert in scenario.host_alerts
    }


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_scenario_raises_its_alerts_and_no_others(watched: Watched, scenario: Scenario) -> None:
    """The alerts that the scenario names fired, on exactly the GPUs with a fault, and no others.

    On a busy machine its own may come late. Others are looked for in the usual time only: in a longer
    one, alerts fire that compare with the hours before.
    """
    assert wanted(scenario) <= ever_fired(watched.stack, scenario)
    assert ever_fired(watched.stack, scenario, watched.short_at) <= wanted(scenario)


def test_no_rule_fails(stack: Stack) -> None:
    """No rule group had an evaluation error, such as many-to-many matching."""
    groups = stack.ask("rules")["groups"]
    failed = [
        (rule["name"], rule["lastError"])
        for group in groups
        for rule in group["rules"]
        if rule["health"] != "ok"
    ]

    assert len(groups) >= 12
    assert failed == []


def test_alertmanager_has_the_alerts_and_inhibits_doubles(stack: Stack) -> None:
    """A lost GPU reaches Alertmanager active; a straggler is explained by one alert, not by two."""
    held = {
        (alert["labels"]["alertname"], alert["labels"]["cluster"]): alert["status"]["state"]
        for alert in stack.alerts()
    }

    assert held.get(("GPULost", "sim-lost-gpu")) == "active", held
    assert held["GPUSlowerThanPeers", "sim-straggler"] == "active"
    assert ("GPUSlowerThanOwnBaseline", "sim-straggler") not in held


def with_selection(target: Target, stack: Stack) -> str:
    """The query with everything selected, except for the GPU dashboard, which shows one GPU."""
    expr = target.expr
    if target.board.endswith("/ GPU"):
        expr = expr.replace("$instance", "straggler-000").replace("$gpu", "3")
    return substituted(expr).replace("[1m]", f"[{10 * stack.interval_seconds:g}s]")


@pytest.mark.parametrize("target", targets(), ids=str)
def test_panel_query_returns_data(stack: Stack, target: Target) -> None:
    """Every query of every panel has data over the last minute, or is of a panel that is rightly empty."""
    now = time.time()
    answer = stack.ask(
        "query_range",
        query=with_selection(target, stack),
        start=str(now - 10 * stack.interval_seconds),
        end=str(now - 2),
        step=str(stack.interval_seconds),
    )

    assert not isinstance(answer, str), answer
    if target.panel not in EMPTY_WHEN_HEALTHY and not any(
        part in target.expr for part in EMPTY_HERE
    ):
        assert answer["result"]


@pytest.mark.slow
def test_nothing_fires_through_a_whole_ebb(tmp_path: Path) -> None:
    """Healthy fleets raise nothing while traffic falls to a twentieth and comes back."""
    healthy = tuple(scenario for scenario in SCENARIOS.values() if not scenario.faults)
    with running(tmp_path, healthy, hosts=2) as busy:
        time.sleep(LONG_SECONDS / SPEED)
        fired = {scenario.name: ever_fired(busy, scenario) for scenario in healthy}

    assert fired == {scenario.name: set() for scenario in healthy}
