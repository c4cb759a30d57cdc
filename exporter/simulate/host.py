"""Simulated hosts, and the fleet of them behind one server.

A host has GPUs with probes, an engine, and an exposition. The server has a metrics page for each
host, and Prometheus's service discovery.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from exporter.advice import AdviceSettings
from exporter.advice.advise import ADVICE_PATH
from exporter.advisor import Advisor
from exporter.attribution.bill import HostLedger
from exporter.attribution.settings import PriceRule
from exporter.attribution.snapshot import Allocation, DeviceKey, HoldersSnapshot
from exporter.device_state import SampledHost
from exporter.errors import FlopwatchError
from exporter.inference.service import Served
from exporter.inference.snapshot import GpuRef, WorkloadSnapshot, WorkloadsSnapshot
from exporter.metrics.catalogue import state_parts
from exporter.metrics.exporter import SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS, own_samples
from exporter.metrics.family import Sample
from exporter.metrics.findings import finding_samples, host_fact_samples
from exporter.metrics.holders import price_samples
from exporter.metrics.levers import lever_samples
from exporter.metrics.render import Exposition
from exporter.metrics.rows import Part, Samples, part_samples
from exporter.readings import DeviceIdentity, HostFacts
from exporter.simulate.engine import GPU_LEVERS, SimulatedEngine, TokenCounts
from exporter.simulate.forward_pass import Member
from exporter.simulate.gpu import SimulatedGpu, SimulatedProbes
from exporter.simulate.scenarios import NO_FAULT, SCENARIOS, Fault, Load, Product, Scenario
from exporter.state import Parts, ReloadStatus, State, build_state
from exporter.status.build import StatusSources
from exporter.status.document import STATUS_PATH
from exporter.status.history import Memory
from exporter.status.service import StatusService
from exporter.web.connections import DEFAULT_LIMITS, Limits
from exporter.web.http import Request, Response, Router, plain
from exporter.web.routes import metrics_handler
from probes.records import ProbesSnapshot


_JOB = "flopwatch"
# A host that was not scraped for a long time catches up in this many steps, however long they are.
_CATCH_UP_TICKS = 300
_SERIES_LIMIT = 20_000
_PRICES = (PriceRule(per_gpu_hour=2.5, currency="USD"),)
# The hosts have been up for a week when a scenario begins.
_UPTIME_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Timing:
    """The fleet's start (Unix seconds), the tick length, and the speed of the scenario's clock."""

    began: float
    tick_seconds: float = 1.0
    pace: float = 1.0


@dataclass(frozen=True, slots=True)
class Pull:
    """A lever that is pulled a number of seconds after the start of the scenario."""

    lever: str
    at_seconds: float


class SimulatedHost:
    """One simulated host, advanced on demand. Thread-safe."""

    def __init__(
        self,
        name: str,
        position: int,
        scenario: Scenario,
        *,
        gpus: int,
        seed: int,
        timing: Timing,
        clock: Callable[[], float],
        pulls: Sequence[Pull] = (),
    ) -> None:
        self.name = name
        self.cluster = f"sim-{scenario.name}"
        self._scenario = scenario
        self._position = position
        self._timing = timing
        self._clock = clock
        self._lock = threading.Lock()
        self._ledger = HostLedger()
        self._now = timing.began
        product = scenario.products[position % len(scenario.products)]
        self._product = product
        self._gpus = [
            SimulatedGpu(product, self._identity(product, index), f"{seed}/{name}/{index}")
            for index in range(gpus)
        ]
        self._probes = [SimulatedProbes(gpu) for gpu in self._gpus]
        self._tokens = TokenCounts(product)
        self._all_samples = Samples(self._live_samples)
        self._engine_up = True
        self._fault_of_host = NO_FAULT
        self._pulls = sorted(pulls, key=lambda pull: pull.at_seconds)
        self._pulled: set[str] = set()
        self._engine = self._serving_engine(f"{seed}/{name}/engine")
        self._advice = AdviceSettings(
            AdviceSettings().window_seconds / timing.pace,
            AdviceSettings().stable_seconds / timing.pace,
        )
        self._advisor = Advisor(
            self._state_now, self._served, prices=_PRICES, settings=self._advice
        )
        self._observed = timing.began
        self.exposition = Exposition(
            self._live_parts, series_limit=lambda: _SERIES_LIMIT, state=self._live_state
        )
        self.status = StatusService(
            StatusSources(
                state=self._state_now,
                configuration=dict,
                interval_seconds=lambda: timing.tick_seconds,
                host_name=name,
                telemetry_path=f"/hosts/{name}/metrics",
                wall_clock=lambda: self._now,
                facts=self._facts,
                advice=self._advisor.snapshot,
            ),
            clock=lambda: self._now,
            memory=Memory(wall_clock=lambda: self._now),
        )

    def advance(self, now: float) -> None:
        """Simulate up to `now` (Unix seconds); time does not go back."""
        with self._lock:
            self._advance(now)

    def page(self, handler: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """A handler of the status service that first advances the host to now."""

        def handle(request: Request) -> Response:
            self.advance(self._clock())
            return handler(request)

        return handle

    def advice(self, _request: Request) -> Response:
        """The document that `flopwatch advise` reads."""
        return Response(200, self._advisor.document(), "application/json")

    def samples(self) -> Iterator[Sample]:
        """Everything that this host exports, as of the last advance."""
        state = self._state_now()
        state = replace(state, bill=self._ledger.charge(state))
        skew = self._fault_of_host.clock_skew
        yield from own_samples(ReloadStatus(True, self._timing.began))
        yield from price_samples(state, _PRICES)
        yield from host_fact_samples((self._facts(), self._now + skew))
        yield from finding_samples(self.status.findings())
        yield from lever_samples(self._advisor.snapshot())
        for sample in part_samples(state_parts(state)):
            if skew and sample.family is SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS:
                yield sample._replace(value=sample.value + skew)
            else:
                yield sample

    def _facts(self) -> HostFacts:
        return HostFacts(len(self._gpus), self._timing.began - _UPTIME_SECONDS)

    def _state_now(self) -> State:
        gone = self._fault_of_host.driver_gone
        devices = () if gone else tuple(gpu.state(self._now) for gpu in self._gpus)
        results = () if gone else tuple(probes.results() for probes in self._probes)
        parts = Parts(
            host=SampledHost(devices, driver_error="driver_not_loaded" if gone else None),
            probes=ProbesSnapshot(True, False, results),
            workloads=WorkloadsSnapshot() if gone else self._workloads(),
            holders=self._holders(),
            reload=ReloadStatus(True, self._timing.began),
        )
        return build_state(parts, self._now)

    def _holders(self) -> HoldersSnapshot:
        """One pod serves on most GPUs; another team's notebook holds the last one."""
        allocations = [
            Allocation(DeviceKey(uuid=gpu.identity.uuid), namespace, pod, "main")
            for position, gpu in enumerate(self._gpus)
            for namespace, pod in (
                ("research", "notebook-0")
                if position and position == len(self._gpus) - 1
                else ("serving", f"chat-{self.name}"),
            )
        ]
        return HoldersSnapshot(tuple(allocations))

    def _live_samples(self, _now: float) -> list[Sample]:
        with self._lock:
            return list(self.samples())

    def _live_parts(self, now: float) -> tuple[Part]:
        return (self._all_samples.of(now),)

    def _live_state(self) -> float:
        self.advance(self._clock())
        return self._now

    def _advance(self, now: float) -> None:
        tick = max(self._timing.tick_seconds, (now - self._now) / _CATCH_UP_TICKS)
        while self._now + tick <= now:
            start, self._now = self._now, self._now + tick
            self._tick(start, self._now)

    def _tick(self, start: float, end: float) -> None:
        elapsed = (end - self._timing.began) * self._timing.pace
        self._pull(elapsed)
        load = self._load(end - start, elapsed)
        self._fault_of_host = self._fault(None, elapsed)
        self._engine_up = self._answers(elapsed)
        for index, (gpu, probes) in enumerate(zip(self._gpus, self._probes, strict=True)):
            fault = self._fault(index, elapsed)
            seen = fault if self._engine is None else replace(fault, speed=1.0, memory_speed=1.0)
            gpu.tick(start, end, load, seen, pace=self._timing.pace)
            probes.advance(end, elapsed, fault)
            self.status.observe(gpu.state(end))
        self._tokens.serve(end - start, self._gpus, load, self._fault_of_host)
        if self._engine is not None and end - self._observed >= self._advice.observation_seconds:
            self._observed = end
            self._advisor.observe()
        self.status.findings()
        self.status.tend()  # judged on its own schedule, regardless of the scrape interval

    def _serving_engine(self, seed: str) -> SimulatedEngine | None:
        plan = self._scenario.serving
        if plan is None:
            for pull in self._pulls:
                raise FlopwatchError(
                    f"no lever can be pulled in scenario '{self._scenario.name}': use serving-queue "
                    f"or serving-capped for {pull.lever}"
                )
            return None
        engine = SimulatedEngine(
            plan, self._gpus[0].peaks, self._product.memory_bytes, len(self._gpus), seed
        )
        for pull in self._pulls:
            if reason := engine.can_pull(pull.lever):
                raise FlopwatchError(f"{pull.lever} cannot be pulled on {self.name}: {reason}")
        for gpu in self._gpus:
            gpu.product = replace(gpu.product, precision=engine.arithmetic)
        return engine

    def _pull(self, elapsed: float) -> None:
        """Pull the levers that are due."""
        while self._engine is not None and self._pulls and elapsed >= self._pulls[0].at_seconds:
            lever = self._pulls.pop(0).lever
            self._pulled.add(lever)
            if lever not in GPU_LEVERS:
                self._engine.pull(lever)
            for gpu in self._gpus:
                gpu.product = replace(gpu.product, precision=self._engine.arithmetic)

    def _load(self, seconds: float, elapsed: float) -> Load:
        if self._engine is None:
            return self._scenario.load(elapsed, self._position)
        hardware = []
        for index, gpu in enumerate(self._gpus):
            fault = self._fault(index, elapsed)
            # An idle GPU leaves its idle clock as soon as there is work.
            idle = gpu.clock_hertz <= gpu.product.sm_clock_idle_hertz
            clock = 1.0 if idle else gpu.clock_hertz / gpu.product.sm_clock_max_hertz
            hardware.append(Member(clock, min(fault.memory_speed, fault.speed), fault.speed))
        return self._engine.advance(seconds, hardware)

    def _served(self, _state: State) -> tuple[Served, ...]:
        if self._engine is None or not self._engine_up:
            return ()
        return (self._engine.served(self._references()),)

    def _references(self) -> list[GpuRef]:
        return [GpuRef(gpu.identity.index, gpu.identity.uuid) for gpu in self._gpus]

    def _answers(self, elapsed: float) -> bool:
        """Whether the engine answers: not in the first two fifths of the period after a crash."""
        fault = self._fault_of_host
        if fault.engine_period is None:
            return not fault.engine_down
        return (elapsed - fault.begins) % fault.engine_period > 0.4 * fault.engine_period

    def _fault(self, gpu: int | None, elapsed: float) -> Fault:
        """The present fault of a GPU, or of the whole host; NO_FAULT if there is none."""
        for fault in self._scenario.faults:
            if (
                fault.host == self._position
                and (fault.gpu is None or fault.gpu == gpu)
                and elapsed >= fault.begins
            ):
                return self._repaired(fault)
        return NO_FAULT

    def _repaired(self, fault: Fault) -> Fault:
        """The fault, without the parts that a pulled lever has removed."""
        if "full_clocks" in self._pulled:
            fault = replace(fault, power_limit=1.0, heat_celsius=0.0)
        if "replace_slow_gpu" in self._pulled:
            fault = replace(fault, speed=1.0, memory_speed=1.0)
        return fault

    def _workloads(self) -> WorkloadsSnapshot:
        model, count = self._tokens.snapshot(self._gpus), len(self._gpus)
        if self._engine is not None:
            model, count = self._engine.snapshot(), self._engine.group
        workload = WorkloadSnapshot(
            name="chat",
            engine="simulated",
            up=self._engine_up,
            gpus=tuple(self._references()[:count]),
            models=(model,) if self._engine_up else (),
            last_success_timestamp_seconds=self._now,
        )
        return WorkloadsSnapshot((workload,))

    def _identity(self, product: Product, index: int) -> DeviceIdentity:
        return DeviceIdentity(
            index=str(index),
            uuid=f"GPU-SIMULATED-{self.name}-{index}",
            name=f"{product.name} (simulated)",
            architecture=product.architecture,
            compute_capability=product.compute_capability,
            pci_bus_id=f"00000000:{0x10 + index:02X}:00.0",
            driver_version="simulated",
            serial=None,
            sm_count=product.sm_count,
            sm_clock_max_hertz=product.sm_clock_max_hertz,
            memory_size_bytes=product.memory_bytes,
        )


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
            raise FlopwatchError(f"no scenario '{name}'; known: {known}, all")
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
