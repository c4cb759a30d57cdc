"""A simulated fleet behind one server: a metrics page for each host, and Prometheus's service discovery."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from exporter.advice.advise import ADVICE_PATH
from exporter.errors import FlopwatchError
from exporter.metrics.family import Sample
from exporter.simulate.host import Pull, SimulatedHost, Timing
from exporter.simulate.scenarios import SCENARIOS, Scenario
from exporter.status.document import STATUS_PATH
from exporter.web.connections import DEFAULT_LIMITS, Limits
from exporter.web.http import Request, Response, Router, plain
from exporter.web.routes import metrics_handler


_JOB = "flopwatch"


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The fleet's size, scenarios (each with its own hosts and cluster) and seed."""

    scenarios: Sequence[Scenario]
    hosts: int = 2
    gpus: int = 8
    seed: int = 1
    pulls: Sequence[Pull] = ()


def find_scenarios(names: Sequence[str]) -> tuple[Scenario, ...]:
    """Scenarios by name, `all` for all. Raises FlopwatchError for an unknown name."""
    found: list[Scenario] = []
    for name in names:
        if name == "all":
            found.extend(SCENARIOS.values())
        elif name in SCENARIOS:
            found.append(SCENARIOS[name])
        else:
            known = ", ".join(SCENARIOS)
            raise FlopwatchError(f"no scenario '{name}'; there are: {known}, all")
    return tuple(dict.fromkeys(found))


def build_fleet(
    plan: FleetPlan, timing: Timing, clock: Callable[[], float] = time.time
) -> list[SimulatedHost]:
    """All hosts of all scenarios."""
    return [
        SimulatedHost(
            f"{scenario.name}-{position:03d}",
            position,
            scenario,
            gpus=plan.gpus,
            seed=plan.seed,
            timing=timing,
            clock=clock,
            pulls=plan.pulls,
        )
        for scenario in plan.scenarios
        for position in range(plan.hosts)
    ]


def fleet_limits(hosts: Sequence[SimulatedHost]) -> Limits:
    """The server's limits, with a connection for each host: Prometheus keeps one per target."""
    return Limits(connections=DEFAULT_LIMITS.connections + len(hosts))


def fleet_router(hosts: Sequence[SimulatedHost]) -> Router:
    """Routes: each host below `/hosts/<name>`, `/sd` for Prometheus, health, and an index page."""
    router = Router()
    for host in hosts:
        base = f"/hosts/{host.name}"
        router.add(f"{base}/metrics", "GET", metrics_handler(host.exposition))
        router.add(base, "GET", host.page(host.status.page))
        router.add(f"{base}{STATUS_PATH}", "GET", host.page(host.status.document))
        router.add(f"{base}{ADVICE_PATH}", "GET", host.page(host.advice))
    router.add("/sd", "GET", lambda request: _discovery(request, hosts))
    for path in ("/-/healthy", "/-/ready"):
        router.add(path, "GET", lambda _request: plain(200, "simulated"))
    index = "\n".join(
        [
            "flopwatch simulate: all devices are simulated",
            "service discovery for Prometheus: /sd",
            "for each host its metrics, status page, status document and advice:",
            *(
                f"/hosts/{host.name}{path}"
                for host in hosts
                for path in ("/metrics", "", STATUS_PATH, ADVICE_PATH)
            ),
        ]
    )
    router.add("/", "GET", lambda _request: plain(200, index))
    return router


def _discovery(request: Request, hosts: Sequence[SimulatedHost]) -> Response:
    """Prometheus HTTP service discovery; targets use the address of the request."""
    target = request.headers.get("host", "localhost")
    groups = [
        {
            "targets": [target],
            "labels": {
                "__metrics_path__": f"/hosts/{host.name}/metrics",
                "instance": host.name,
                "cluster": host.cluster,
            },
        }
        for host in hosts
    ]
    return Response(200, json.dumps(groups).encode(), "application/json")


def history(
    hosts: Sequence[SimulatedHost], *, begins: float, ends: float, step_seconds: float
) -> Iterator[str]:
    """The history of a fleet as OpenMetrics with timestamps.

    All series of all hosts, as Prometheus would have scraped them, and the EOF marker, for
    `promtool tsdb create-blocks-from openmetrics`.
    """
    now = begins + step_seconds
    while now <= ends:
        for host in hosts:
            host.advance(now)
            target = f'cluster="{host.cluster}",instance="{host.name}",job="{_JOB}"'
            yield f"up{{{target}}} 1 {now:.3f}\n"
            for sample in host.samples():
                yield _line(sample, target, now)
        now += step_seconds
    yield "# EOF\n"


def _line(sample: Sample, target: str, now: float) -> str:
    labels = "".join(f',{name}="{_escape(value)}"' for name, value in sample.labels if value)
    value = "NaN" if math.isnan(sample.value) else repr(float(sample.value))
    return f"{sample.family.name}{sample.suffix}{{{target}{labels}}} {value} {now:.3f}\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
