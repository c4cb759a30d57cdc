"""Whether memory, descriptors and threads stay where they are, however long the daemon runs.

    python -m benchmarks.soak                      # 30 days of ticks in one process, on a simulated clock
    python -m benchmarks.soak --daemon-minutes 10  # and the real daemon at ten ticks a second

Everything that churns on a node churns here, faster: processes, MIG instances, XIDs, lost GPUs,
reloads, scrapers.
"""

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from benchmarks.meter import descriptors, memory, threads
from benchmarks.programs import SERVICE_ENVIRONMENT, Program, running
from benchmarks.scraping import scrape
from benchmarks.soak_host import Played, SoakedHost
from benchmarks.soak_node import SLOW_TICKS, XIDS
from exporter.metrics.render import Exposition
from exporter.metrics.text import Format
from tests.attribution.kubelet import Held, Kubelet
from tests.fake_nvml import H100, H100_1G_10GB, FakeNvml, Load
from tests.inference.engines.server import EngineServer, exposition, serving, text


DAY_TICKS = 86_400
GROWTH_MAX_BYTES = 2_000_000
# Caches are full and pools are made after the first day, or the first fifth of a shorter run.
_WARM_UP_SHARE = 0.2
_LEAST_OF = 120


@dataclass(frozen=True, slots=True)
class Growth:
    """What a run used after its warm-up and at its end."""

    bytes_before: int
    bytes_after: int
    descriptors_before: int
    descriptors_after: int
    threads_before: int
    threads_after: int
    # GPUs that were lost are watched for XIDs on a thread of their own afterwards.
    threads_to_spare: int = 0

    @property
    def bytes(self) -> int:
        """Growth of resident memory."""
        return self.bytes_after - self.bytes_before

    @property
    def is_leak(self) -> bool:
        """Whether anything is more than it was, memory beyond what it breathes by."""
        return (
            self.bytes > GROWTH_MAX_BYTES
            or self.descriptors_after > self.descriptors_before
            or self.threads_after > self.threads_before + self.threads_to_spare
        )

    def __str__(self) -> str:
        return (
            f"resident {self.bytes_before / 1e6:.1f} -> {self.bytes_after / 1e6:.1f} MB, "
            f"descriptors {self.descriptors_before} -> {self.descriptors_after}, "
            f"threads {self.threads_before} -> {self.threads_after}"
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What the process uses at one moment of the simulated clock."""

    day: float
    bytes: int
    descriptors: int
    threads: int
    state_file_bytes: int
    series: int

    def __str__(self) -> str:
        return (
            f"day {self.day:5.2f}  resident {self.bytes / 1e6:6.2f} MB  descriptors "
            f"{self.descriptors}  threads {self.threads}  state file {self.state_file_bytes / 1e3:5.1f} kB  "
            f"series {self.series}"
        )


def soak_accounts(
    ticks: int,
    directory: Path,
    seed: int = 1,
    each_day: Callable[[Usage], None] = lambda _usage: None,
) -> tuple[Growth, Played]:
    """All of the daemon but its sampling of devices, so many ticks of one GPU, on a simulated clock.

    `each_day` is given what is used after each day.
    """
    node = SoakedHost(random.Random(seed), directory)
    exposition = Exposition(
        node.parts,
        series_limit=lambda: 20_000,
        state=node.state,
        extra_labels=node.extra_labels,
        clock=lambda: node.seconds,
    )
    warm = min(DAY_TICKS, int(_WARM_UP_SHARE * ticks))
    before = None
    for tick in range(ticks):
        node.tick()
        if tick % SLOW_TICKS == 0:
            exposition.render(Format.OPENMETRICS, compressed=True)
        if tick == warm:
            before = _usage()
        if (tick + 1) % DAY_TICKS == 0:
            each_day(_used(node, exposition, directory))
    assert before is not None
    after = _usage()
    grown = Growth(before[0], after[0], before[1], after[1], before[2], after[2])
    return grown, node.played


def _used(node: SoakedHost, exposition: Exposition, directory: Path) -> Usage:
    text = exposition.render(Format.OPENMETRICS, compressed=False)
    series = sum(1 for line in text.splitlines() if not line.startswith(b"#"))
    return Usage(
        node.ticks / DAY_TICKS, *_usage(), (directory / "state.json").stat().st_size, series
    )


def _usage() -> tuple[int, int, int]:
    gc.collect()
    pid = os.getpid()
    return memory(pid, "fake-nvml-control").own, descriptors(pid), threads(pid)


def soak_daemon(seconds: float, directory: Path, gpus: int = 4) -> Growth:
    """Run the real daemon at ten ticks a second, and let everything around it churn."""
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

        def usage() -> tuple[int, int, int]:
            around.settle(daemon.pid)
            pid = daemon.pid
            # Connections end, and so do the threads of scrapers and watchers that were replaced: what
            # stays is the least of some seconds.
            open_files, tasks = descriptors(pid), threads(pid)
            for _ in range(_LEAST_OF):
                time.sleep(0.05)
                open_files, tasks = min(open_files, descriptors(pid)), min(tasks, threads(pid))
            return memory(pid, "fake-nvml-control").own, open_files, tasks

        began = time.monotonic()
        before = None
        while (passed := time.monotonic() - began) < seconds:
            around.churn(daemon.pid, daemon.port)
            time.sleep(0.1)
            if before is None and passed > _WARM_UP_SHARE * seconds:
                before = usage()
        after = usage()
    assert before is not None
    return Growth(before[0], after[0], before[1], after[1], before[2], after[2], gpus - 1)


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
    """GPUs, a kubelet, an engine and an operator, none of whom ever rests."""

    def __init__(
        self, directory: Path, fake: FakeNvml, engine: EngineServer, kubelet: Kubelet
    ) -> None:
        self.fake = fake
        self._engine = engine
        self._kubelet = kubelet
        self._chance = random.Random(1)
        self._config = directory / "soak.yaml"
        self._configure(0)

    def churn(self, pid: int, port: int) -> None:
        """One step of everything, by chance."""
        chance = self._chance
        self._work()
        victim = chance.randrange(len(self.fake.gpus))
        if chance.random() < 0.05:
            self.fake.lose(victim)
        elif chance.random() < 0.3:
            for gpu in self.fake.gpus:
                self.fake.restore(gpu.slot)
        if chance.random() < 0.1:
            self.fake.xid(victim, chance.choice(XIDS))
        if chance.random() < 0.002:  # each is remembered for an hour: not more than a few dozen
            name = f"MIG-{chance.getrandbits(64):016x}"
            self.fake.set_mig(victim, chance.choice((None, [replace(H100_1G_10GB, uuid=name)])))
        if chance.random() < 0.05:
            self._configure(chance.randrange(1 << 30))
            os.kill(pid, signal.SIGHUP)
        scrape(port, compressed=chance.random() < 0.5)

    def settle(self, pid: int) -> None:
        """Everything is well and as at the beginning, and connections have ended."""
        for gpu in self.fake.gpus:
            self.fake.restore(gpu.slot)
            self.fake.set_mig(gpu.slot, None)
        self._configure(0)
        os.kill(pid, signal.SIGHUP)
        time.sleep(5)

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

    def _configure(self, number: int) -> None:
        """Another name for the engine's workload, and so another scraper for it."""
        self._config.write_text(
            "probes: {enabled: false}\n"
            "sampling: {interval: 100ms, slow_interval: 1s, deadline: 2s}\n"
            f"kubernetes: {{socket: '{self._kubelet.path}'}}\n"
            "workloads:\n"
            f"  - {{name: chat-{number}, engine: vllm, url: '{self._engine.url}',"
            " interval: 1s, gpus: [0]}\n"
        )


def main() -> int:
    """Soak and say what grew; 1 when it was too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--days", type=float, default=30.0, help="simulated days of ticks")
    parser.add_argument("--daemon-minutes", type=float, default=0.0)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory() as directory:
        grown, played = soak_accounts(
            int(options.days * DAY_TICKS),
            Path(directory),
            each_day=lambda used: print(used, flush=True),
        )
    print(f"played: {played}")
    print(f"{options.days:g} days of ticks: {grown}")
    failed = grown.is_leak
    if options.daemon_minutes:
        with tempfile.TemporaryDirectory() as directory:
            grown = soak_daemon(60 * options.daemon_minutes, Path(directory))
        print(f"{options.daemon_minutes:g} minutes of the daemon: {grown}")
        failed |= grown.is_leak
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
