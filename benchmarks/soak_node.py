"""A node over months in one process, on a simulated clock: everything that can come and go does so.

A GPU instance under load whose power, clock and activity always change, and around it processes,
pods, an engine, XIDs, errors, hangs and reloads, each through the daemon's own code.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from exporter.accounting.device import DeviceAccounts
from exporter.accounting.peaks import find_peaks
from exporter.attribution.service import HolderService
from exporter.attribution.settings import HolderSettings
from exporter.attribution.snapshot import Allocation, DeviceKey
from exporter.device_state import DeviceState, SampledHost, SourceHealth, XidCounts
from exporter.errors import Reason, ScrapeError
from exporter.inference.account import Account, present
from exporter.inference.config import WorkloadConfig
from exporter.inference.engines import ENGINES
from exporter.inference.scraper import Scraper
from exporter.inference.service import Served
from exporter.inference.snapshot import GpuRef, WorkloadSnapshot, WorkloadsSnapshot
from exporter.metrics.catalogue import state_parts
from exporter.metrics.device import process_memory
from exporter.metrics.exporter import OWN
from exporter.metrics.flops import FLOP_TOTAL
from exporter.metrics.holders import HolderLabels, holder_labels
from exporter.metrics.rows import Part
from exporter.procfs import process_name
from exporter.readings import (
    ActivityWindow,
    ClockSample,
    DeviceIdentity,
    FastReading,
    ProcessUse,
    SlowReading,
)
from exporter.services import ProbeFacts
from exporter.state import Parts, ReloadStatus, State, build_state
from exporter.status.history import Histories


XIDS = (13, 31, 43, 45, 48, 63, 74, 79, 94, 119)
SLOW_TICKS = 15
# A recreated MIG instance has a new UUID. Hourly is more often than in practice.
_NEW_INSTANCE_TICKS = 3_600
# As often as the daemon scrapes an engine.
_ENGINE_TICKS = 15
# Pods and models have names that were never used before: every 20th look at the pods finds another
# one, and a new engine with another model comes about five times a day.
_NEW_NAME_CHANCE = 0.05
_NEW_MODEL_CHANCE = 1 / 1200
_FAILED_SCRAPE_CHANCE = 0.05
_TESTS = Path(__file__).parent.parent / "tests"
_VLLM = (_TESTS / "inference" / "engines" / "expositions" / "vllm-current.txt").read_text()
_MODEL = _TESTS / "inference" / "engines" / "tiny.json"


class Node:
    """One GPU instance as its sampler sees it, and its host. `tick` is a second."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.ticks = 0
        self.seconds = 1000.0
        self._joules = 0.0
        self._errors: dict[str, int] = {}
        self._xids: dict[int, int] = {}
        self._slow = SlowReading(at_seconds=0.0)
        self._reload = ReloadStatus(successful=True, last_success_unix_seconds=0.0)
        self._histories = Histories()
        self._process_memory = process_memory(process_name)
        self._begin()
        self._pods = _Pods(self)
        self.engine = _Engine(self)
        self._facts = ProbeFacts(self.state, clock=lambda: self.seconds)

    @property
    def uuid(self) -> str:
        """The present instance."""
        return self.identity.uuid

    def word(self) -> str:
        """A name that was never used before."""
        return f"{self.chance.getrandbits(64):016x}"

    def tick(self) -> None:
        """One second."""
        chance = self.chance
        start, self.seconds = self.seconds, self.seconds + 1.0
        self.ticks += 1
        if self.ticks % _NEW_INSTANCE_TICKS == 0:
            self._begin()
        if chance.random() < 1e-3:  # lost, hung, or suspended
            self._accounts.forget_open_spans()
            start, self.seconds = self.seconds + 9, self.seconds + 10
        busy = chance.random()
        self._joules += 100 + 600 * busy
        sample = ClockSample(self.seconds, 1.98e9 - 4e8 * busy, 4 if busy > 0.9 else 0)
        self._accounts.observe_clock(sample)
        self._fast = FastReading(
            at_seconds=self.seconds,
            sm_clock_hertz=sample.sm_clock_hertz,
            event_reasons=sample.event_reasons,
            power_watts=100 + 600 * busy,
            energy_joules=self._joules,
            gpu_utilization=busy,
            memory_used_bytes=8e10 * busy,
            recovery_action=0,
        )
        window = ActivityWindow(
            "gpm", start, self.seconds, graphics=busy, sm=busy * 0.9, tensor=busy * 0.5,
            hmma_tensor=busy * 0.5, dram=busy * 0.6, fp32=busy * 0.1,
        )  # fmt: skip
        self._last = self._accounts.observe(
            self._fast,
            window,
            precision=chance.choice(("bf16", "fp8")),
            max_window_seconds=4.0,
        )
        if self.ticks % SLOW_TICKS == 0:
            self._happen()
        self._histories.observe(self.device())

    def state(self) -> State:
        """The State as the daemon would build it."""
        return build_state(self.published(), self.seconds)

    def published(self) -> Parts:
        """What the parts have published."""
        return Parts(
            host=SampledHost((self.device(),)),
            workloads=self.engine.snapshot(),
            holders=self._pods.service.snapshot(),
            reload=self._reload,
        )

    def parts(self, state: State) -> Iterator[Part]:
        """What the daemon would expose."""
        yield OWN.of(state.reload)
        yield from state_parts(state)
        yield self._process_memory.of(state)

    def extra_labels(self, state: State) -> HolderLabels:
        """The labels that the daemon would add, with `kubernetes.labels` set."""
        return holder_labels(state, frozenset({FLOP_TOTAL.name}))

    def _begin(self) -> None:
        """Another device at the same place."""
        self.identity = DeviceIdentity(
            index="0",
            uuid=f"MIG-{self.word()}",
            name="NVIDIA H100 80GB HBM3",
            architecture="hopper",
            compute_capability=(9, 0),
            sm_count=132,
            sm_clock_max_hertz=1.98e9,
            memory_size_bytes=85_520_809_984,
        )
        self._peaks = find_peaks(self.identity)
        self._accounts = DeviceAccounts(self.identity, self._peaks)

    def _happen(self) -> None:
        """Processes come and go; now and then something fails."""
        chance = self.chance
        processes = tuple(
            ProcessUse(chance.randrange(1, 4_000_000), chance.randrange(1 << 36))
            for _ in range(chance.randrange(8))
        )
        self._slow = replace(self._slow, at_seconds=self.seconds, processes=processes)
        if chance.random() < 0.05:
            code = chance.choice(XIDS)
            self._xids[code] = self._xids.get(code, 0) + 1
        if chance.random() < 0.05:
            reason = chance.choice(("timeout", "unknown", "gpu_is_lost", "no_permission"))
            self._errors[reason] = self._errors.get(reason, 0) + 1
        if chance.random() < 0.01:
            self._reload = ReloadStatus(chance.random() < 0.5, self.seconds)
        self._pods.tick()
        if self.ticks % _ENGINE_TICKS == 0:
            self.engine.tick()
            self._facts()

    def device(self) -> DeviceState:
        """The instance as its sampler publishes it."""
        return DeviceState(
            identity=self.identity,
            at_seconds=self.seconds,
            up=True,
            max_age_seconds=4.0,
            peaks=self._peaks,
            precision="bf16",
            fast=self._fast,
            slow=self._slow,
            last=self._last,
            counters=self._accounts.counters(),
            sources={"nvml": SourceHealth(True, 1e9 + self.seconds, dict(self._errors))},
            xids=XidCounts(dict(self._xids), dict.fromkeys(self._xids, 1e9 + self.seconds)),
        )


class _Pods:
    """Pods that take the GPU and leave it, as the kubelet would answer."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pod = node.word()
        self.service = HolderService(
            HolderSettings(pod_resources="on", job_mapping_dir=None, job_processes=False),
            node.state,
            clock=lambda: node.seconds,
            wall_clock=lambda: node.seconds,
        )
        (source,) = self.service._sources
        source._read = self._answer  # the kubelet itself is in `soak_daemon`

    def tick(self) -> None:
        if self._node.chance.random() < _NEW_NAME_CHANCE:
            self._pod = self._node.word()
        self.service.poll()

    def _answer(self) -> tuple[Allocation, ...]:
        return (Allocation(DeviceKey(uuid=self._node.uuid), "serving", self._pod, "engine"),)


class _Engine:
    """An engine that serves, restarts, and loads other models."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._model = node.word()
        self._scale = 1
        self._started = 0.0
        self.scrapes = 0
        self._account = Account(WorkloadConfig("chat", model=_MODEL))
        self._config = WorkloadConfig("chat", "vllm", "http://127.0.0.1:8000/metrics", gpus=(0,))
        self._scraper = Scraper(
            "chat",
            ENGINES["vllm"],
            self._config.url,
            lambda reading: self._account.add(reading, 1),
            fetch=lambda _url, _timeout: self._answer(),
            clock=lambda: node.seconds,
            wall_clock=lambda: node.seconds,
        )

    def tick(self) -> None:
        """One scrape of the engine."""
        self._scale += 1
        self.scrapes += 1
        if self._node.chance.random() < _NEW_MODEL_CHANCE:
            self._model, self._scale, self._started = self._node.word(), 1, self._node.seconds
        self._scraper.scrape()

    def served(self, state: State) -> tuple[Served, ...]:
        """What advice needs of the models."""
        gpus = (GpuRef("0", self._node.uuid),)
        return tuple(
            Served(
                workload="chat",
                engine="vllm",
                shown=present(self._config, totals, gpus, state),
                gpus=gpus,
                gpu_count=1,
                tensor_parallel=1,
                description=totals.description,
                passes=totals.passes,
                passes_missed=totals.passes_missed,
                prompts=totals.prompts,
            )
            for totals in self._account.models()
        )

    def snapshot(self) -> WorkloadsSnapshot:
        """What the engine's scraper publishes."""
        state = self._scraper.state()
        gpus = (GpuRef("0", self._node.uuid),)
        models = tuple(
            present(self._config, totals, gpus, State(at_seconds=0.0))
            for totals in self._account.models()
        )
        return WorkloadsSnapshot(
            (
                WorkloadSnapshot(
                    "chat", "vllm", state.up, gpus=gpus, models=models, errors=state.errors
                ),
            )
        )

    def _answer(self) -> str:
        if self._node.chance.random() < _FAILED_SCRAPE_CHANCE:
            raise ScrapeError(Reason.CONNECTION, "no answer")
        tokens = 'vllm:prompt_tokens_total{engine="0",model_name="acme/tiny"} '
        text = _VLLM.replace(tokens + "1000.0", f"{tokens}{1000.0 * self._scale}")
        text = text.replace("seconds 1.7608e+09", f"seconds {self._started}")
        return text.replace("acme/tiny", self._model)
