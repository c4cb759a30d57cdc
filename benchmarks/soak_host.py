"""The rest of the daemon around a soaked node: probes, bill, status page, advice, reloads.

Everything here is the daemon's own code on the node's simulated clock. Only parts that need a
device, a process or a network are scripted.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.soak_node import Node
from exporter.advice import AdviceSettings
from exporter.advisor import Advisor
from exporter.attribution.bill import HostLedger
from exporter.config.load import ConfigOrigin, load_config
from exporter.metrics.findings import FINDINGS
from exporter.metrics.levers import LEVER_SAMPLES
from exporter.metrics.rows import Part
from exporter.state import Parts, State
from exporter.status.build import StatusSources
from exporter.status.history import Memory
from exporter.status.service import StatusService
from exporter.web.http import Request
from flopwatch.state_file import StateFile
from tests.probes.simulation import COPY, GEMM, LAUNCH, Ending, Host, gpu


PROBE_SECONDS = 60
PAGE_SECONDS = 60
RELOAD_SECONDS = 3_600
_UNIX_SECONDS = 1.7e9
_BAD_ENDINGS = ("hang", "crash", "allowance", "out_of_memory")


@dataclass(slots=True)
class Played:
    """How often each thing happened."""

    seconds: int = 0
    scrapes: int = 0
    engine_scrapes: int = 0
    probe_runs: int = 0
    pages: int = 0
    advice: int = 0
    reloads: int = 0
    devices: int = 0

    def __str__(self) -> str:
        names = (name.replace("_", " ") for name in self.__slots__)
        values = (getattr(self, name) for name in self.__slots__)
        return ", ".join(f"{value:,} {name}" for name, value in zip(names, values, strict=True))


class SoakedHost(Node):
    """A node with all the daemon's services; `directory` takes the state file and the configuration."""

    def __init__(self, chance: random.Random, directory: Path) -> None:
        self.played = Played()
        self._directory = directory
        self._ledger = HostLedger()
        self._probes = Host(directory, kernels=None, mig="run")
        self._probes.kernels = (GEMM, COPY, LAUNCH)
        super().__init__(chance)
        state_path = directory / "state.json"
        self._advisor = Advisor(
            self.state,
            self.engine.served,
            state_path=state_path,
            wall_clock=self._wall_clock,
        )
        self._status = StatusService(
            StatusSources(
                state=self.state,
                configuration=dict,
                interval_seconds=lambda: 1.0,
                host_name="soaked",
                wall_clock=self._wall_clock,
                advice=self._advisor.snapshot,
            ),
            clock=lambda: self.seconds,
            memory=Memory(StateFile(state_path), "boot", self._wall_clock),
        )

    def tick(self) -> None:
        """One second of everything."""
        before = self.uuid
        super().tick()
        self.played.seconds = self.ticks
        self.played.devices += before != self.uuid
        self._status.observe(self.device())
        if self.ticks % PROBE_SECONDS == 0:
            self._probe()
        if self.ticks % int(AdviceSettings().observation_seconds) == 0:
            self._advisor.observe()
            self.played.advice += 1
        if self.ticks % PAGE_SECONDS == 0:
            self._status.tend()
            self._status.page(Request("GET", "/", "", {}, "127.0.0.1"))
            self.played.pages += 1
        if self.ticks % RELOAD_SECONDS == 0:
            self._reload_configuration()
        self.played.engine_scrapes = self.engine.scrapes

    def state(self) -> State:
        """The State with the bill, as the daemon keeps it."""
        state = super().state()
        return replace(state, bill=self._ledger.charge(state))

    def published(self) -> Parts:
        """What all parts have published."""
        return replace(super().published(), probes=self._probes.scheduler.snapshot(running=True))

    def parts(self, state: State) -> Iterator[Part]:
        """What the daemon would expose."""
        yield FINDINGS.of(self._status.findings())
        yield LEVER_SAMPLES.of(self._advisor.snapshot())
        yield from super().parts(state)
        self.played.scrapes += 1

    def _wall_clock(self) -> float:
        return _UNIX_SECONDS + self.seconds

    def _probe(self) -> None:
        """A cycle over a whole GPU and the present MIG instance; some runs fail."""
        host, chance = self._probes, self.chance
        host.devices = [
            gpu(0),
            gpu(1, mig=True),
            gpu(1, uuid=self.uuid, instance="1", gpu_uuid="GPU-1"),
        ]
        host.clock.now = max(host.clock.now, self.seconds)
        if chance.random() < 0.05:
            host.script.append(Ending(chance.choice(_BAD_ENDINGS)))
        host.scheduler.cycle()
        self.played.probe_runs += len(host.requests)
        # The script's own records would be the only thing here that grows.
        for notes in (host.requests, host.used, host.started, host.closed, host.workers):
            notes.clear()

    def _reload_configuration(self) -> None:
        """Read a changed configuration, and let the probes continue with it."""
        path = self._directory / "soak.yaml"
        budget = self.chance.choice(("15ms", "20ms"))
        path.write_text(f"probes: {{budget: {budget}, mig: run, pause_file: null}}\n")
        config = load_config(ConfigOrigin(file=path, environment={}))
        self._probes.scheduler.reconfigure(config.probes)
        self._advisor.configure(config.prices)
        self.played.reloads += 1
