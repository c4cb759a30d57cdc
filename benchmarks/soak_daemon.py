"""The real daemon at ten ticks a second, while everything around it comes and goes."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.programs import SERVICE_ENVIRONMENT, Program, descriptors, memory, running, threads
from benchmarks.scraping import scrape
from benchmarks.soak_node import XIDS
from benchmarks.soak_watch import Growth, Watch
from tests.attribution.kubelet import Held, Kubelet
from tests.fake_nvml import H100, H100_1G_10GB, FakeNvml, Load
from tests.inference.engines.server import EngineServer, exposition, serving, text


# In a run of 20 minutes everything that is kept for a while reaches its bound by half time:
# departed holders, removed devices, memory pools.
_WARM_UP_SHARE = 0.5
_LEAST_OF = 120
_STEP_SECONDS = 0.2
_CONTROL = "fake-nvml-control"


def soak_daemon(
    seconds: float,
    directory: Path,
    gpus: int = 4,
    *,
    report: Callable[[str], None] = lambda _line: None,
    report_seconds: float = 60.0,
) -> Growth:
    """Run it for this long. `report` occasionally gets a line on memory, descriptors and threads.

    Raises BrokenPromiseError when a scrape breaks an invariant.
    """
    program = Program(
        "flopwatch",
        (
            *(sys.executable, "-m", "exporter", "serve"),
            *("--config.file", str(directory / "soak.yaml")),
            *("--log.level", "error", "--web.listen-address", "127.0.0.1:{port}"),
        ),
        "gpu",
        "flopwatch_sm_active_ratio",
        SERVICE_ENVIRONMENT,
    )
    with (
        _surroundings(directory, gpus) as around,
        running(program, around.fake.env, gpus) as daemon,
    ):
        pid = daemon.pid

        def usage() -> tuple[int, int, int]:
            around.settle(pid)
            # Connections end, and so do the threads of scrapers and watchers that were replaced:
            # the lasting value is the minimum over some seconds.
            open_files, tasks = descriptors(pid), threads(pid)
            for _ in range(_LEAST_OF):
                time.sleep(0.05)
                open_files, tasks = min(open_files, descriptors(pid)), min(tasks, threads(pid))
            return memory(pid, _CONTROL).own, open_files, tasks

        began = time.monotonic()
        before, reported = None, -report_seconds
        while (passed := time.monotonic() - began) < seconds:
            around.churn(pid)
            around.scrape(daemon.port)
            if passed - reported >= report_seconds:
                reported = passed
                report(_line(passed, pid, around.watch))
            time.sleep(_STEP_SECONDS)
            if before is None and passed > _WARM_UP_SHARE * seconds:
                before = usage()
        after = usage()
        report(_line(time.monotonic() - began, pid, around.watch))
    assert before is not None
    return Growth(before[0], after[0], before[1], after[1], before[2], after[2], gpus - 1)


def _line(seconds: float, pid: int, watch: Watch) -> str:
    resident = memory(pid, _CONTROL).own / 1e6
    return (
        f"{seconds:6.0f} s: {resident:.1f} MB, {descriptors(pid)} descriptors, {threads(pid)} threads, "
        f"{watch.series} series, {watch.scrapes} scrapes without a fault"
    )


@contextmanager
def _surroundings(directory: Path, gpus: int) -> Iterator["_Surroundings"]:
    kubelet = Kubelet(directory / "kubelet.sock")
    kubelet.start()
    try:
        with FakeNvml([H100] * gpus, directory) as fake, serving(text("")) as engine:
            yield _Surroundings(directory, fake, engine, kubelet)
    finally:
        kubelet.stop()


class _Surroundings:
    """GPUs, a kubelet, an engine, an operator and a scraper, all constantly active."""

    def __init__(
        self, directory: Path, fake: FakeNvml, engine: EngineServer, kubelet: Kubelet
    ) -> None:
        self.fake = fake
        self.watch = Watch()
        self._engine = engine
        self._kubelet = kubelet
        self._chance = random.Random(1)
        self._config = directory / "soak.yaml"
        self._lost: set[int] = set()
        self._configurations = 0
        self._configure()

    def churn(self, pid: int) -> None:
        """One random step of everything."""
        chance = self._chance
        self._work()
        victim = chance.randrange(len(self.fake.gpus))
        if chance.random() < 0.01:
            self._lose(victim)
        elif chance.random() < 0.3:
            self._restore()
        if chance.random() < 0.1:
            self.fake.xid(victim, chance.choice(XIDS))
        if chance.random() < 0.004:  # each is remembered for an hour: not more than a few dozen
            name = f"MIG-{chance.getrandbits(64):016x}"
            self._set_mig(victim, name if chance.random() < 0.5 else None)
        if chance.random() < 0.05:
            self._configure()
            os.kill(pid, signal.SIGHUP)

    def scrape(self, port: int) -> None:
        """One scrape, compared with those before."""
        before = time.monotonic()
        body = scrape(port, compressed=self._chance.random() < 0.5)
        self.watch.check(body.decode(), before, time.monotonic())

    def settle(self, pid: int) -> None:
        """Everything is healthy and as at the beginning, and connections have ended."""
        self._restore()
        for gpu in self.fake.gpus:
            self._set_mig(gpu.slot, None)
        self._configure()
        os.kill(pid, signal.SIGHUP)
        time.sleep(5)

    def _lose(self, slot: int) -> None:
        self.watch.lost(self.fake.gpus[slot].uuid)
        self._lost.add(slot)
        self.fake.lose(slot)

    def _restore(self) -> None:
        for slot in self._lost:
            self.fake.restore(slot)
            self.watch.found(self.fake.gpus[slot].uuid)
        self._lost.clear()

    def _set_mig(self, slot: int, instance: str | None) -> None:
        """A change of the mode resets the GPU."""
        self.watch.lost(self.fake.gpus[slot].uuid)
        made = None if instance is None else [replace(H100_1G_10GB, uuid=instance)]
        self.fake.set_mig(slot, made)
        if slot not in self._lost:
            self.watch.found(self.fake.gpus[slot].uuid)

    def _work(self) -> None:
        chance = self._chance
        for gpu in self.fake.gpus:
            gpu.set_load(chance.choice((Load.prefill(), Load.decode(), Load.idle())))
            self.fake.set_processes(
                gpu.slot,
                [
                    (chance.randrange(1, 4_000_000), chance.randrange(1 << 34), "compute")
                    for _ in range(chance.randrange(8))
                ],
            )
        if chance.random() < 0.2:
            pods = [f"pod-{chance.getrandbits(40)}" for _ in self.fake.gpus]
            self._kubelet.holds(*(Held((gpu.uuid,), pod=pods[gpu.slot]) for gpu in self.fake.gpus))
            body = exposition("vllm-current").replace("acme/tiny", pods[0])
            self._engine.answer = text(body, status=chance.choice(("200 OK", "500 No")))

    def _configure(self) -> None:
        """Rename the engine's workload, which starts another scraper for it."""
        self._configurations += 1
        self._config.write_text(
            "probes: {enabled: false}\n"
            "sampling: {interval: 100ms, slow_interval: 1s, deadline: 2s}\n"
            f"kubernetes: {{socket: '{self._kubelet.path}'}}\n"
            "workloads:\n"
            f"  - {{name: chat-{self._configurations}, engine: vllm, url: '{self._engine.url}',"
            " interval: 1s, gpus: [0]}\n"
        )
