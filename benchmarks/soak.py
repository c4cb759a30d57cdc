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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.meter import descriptors, memory, threads
from benchmarks.programs import Program, running
from benchmarks.scraping import scrape
from exporter.accounting.device import DeviceAccounts
from exporter.accounting.peaks import find_peaks
from exporter.exposition.devices import host_points
from exporter.exposition.render import Exposition
from exporter.metrics.family import Point
from exporter.readings import (
    ActivityWindow,
    ClockSample,
    DeviceIdentity,
    FastReading,
    ProcessUse,
    SlowReading,
)
from exporter.snapshot import DeviceSnapshot, HostSnapshot, SourceHealth, XidCounts
from exporter.web.negotiation import Format
from tests.fake_nvml import H100, FakeNvml, Load


DAY_TICKS = 86_400
GROWTH_MAX_BYTES = 2_000_000
_SCRAPE_TICKS = 15
_WARM_UP_SHARE = 0.2
# A MIG instance made anew has a new UUID; nobody reconfigures more often than this.
_NEW_INSTANCE_TICKS = 20_000
_XIDS = (13, 31, 43, 45, 48, 63, 74, 79, 94, 119)


@dataclass(frozen=True, slots=True)
class Growth:
    """What a run used after its warm-up and at its end."""

    bytes_before: int
    bytes_after: int
    descriptors_before: int
    descriptors_after: int
    threads_before: int
    threads_after: int

    @property
    def bytes(self) -> int:
        """Growth of resident memory."""
        return self.bytes_after - self.bytes_before

    def __str__(self) -> str:
        return (
            f"resident {self.bytes_before / 1e6:.1f} -> {self.bytes_after / 1e6:.1f} MB, "
            f"descriptors {self.descriptors_before} -> {self.descriptors_after}, "
            f"threads {self.threads_before} -> {self.threads_after}"
        )


def soak_accounts(ticks: int, seed: int = 1) -> Growth:
    """Account and render so many ticks of one GPU on a simulated clock."""
    node = _Node(random.Random(seed))
    exposition = Exposition(
        node.points,
        series_limit=lambda: 20_000,
        state=lambda: node.ticks,
        clock=lambda: node.seconds,
    )
    warm = int(_WARM_UP_SHARE * ticks)
    before = None
    for tick in range(ticks):
        node.tick()
        if tick % _SCRAPE_TICKS == 0:
            exposition.render(Format.OPENMETRICS, compressed=True)
        if tick == warm:
            before = _usage()
    assert before is not None
    after = _usage()
    return Growth(before[0], after[0], before[1], after[1], before[2], after[2])


def _usage() -> tuple[int, int, int]:
    gc.collect()
    pid = os.getpid()
    return memory(pid, "fake-nvml-control").own, descriptors(pid), threads(pid)


class _Node:
    """One GPU as its sampler sees it, with everything that changes over a month."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.ticks = 0
        self.seconds = 1000.0
        self._joules = 0.0
        self._errors: dict[str, int] = {}
        self._xids: dict[int, int] = {}
        self._slow = SlowReading(at_seconds=0.0)
        self._begin()

    def _begin(self) -> None:
        """Another device in the same place."""
        self._identity = DeviceIdentity(
            index="0",
            uuid=f"MIG-{self._chance.getrandbits(64):016x}",
            name="NVIDIA H100 80GB HBM3",
            architecture="hopper",
            compute_capability=(9, 0),
            sm_count=132,
            sm_clock_max_hertz=1.98e9,
            memory_size_bytes=85_520_809_984,
        )
        self._peaks = find_peaks(self._identity)
        self._accounts = DeviceAccounts(self._identity, self._peaks)

    def tick(self) -> None:
        """One second."""
        chance = self._chance
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
            "gpm", start, self.seconds, graphics=busy, sm=busy * 0.9, any_tensor=busy * 0.5,
            hmma_tensor=busy * 0.5, dram=busy * 0.6, fp32=busy * 0.1,
        )  # fmt: skip
        self._last = self._accounts.observe(
            self._fast,
            window,
            precision=chance.choice(("bf16", "fp8")),
            max_window_seconds=4.0,
        )
        if self.ticks % _SCRAPE_TICKS == 0:
            self._happen()

    def _happen(self) -> None:
        """Processes come and go; now and then something fails."""
        chance = self._chance
        processes = tuple(
            ProcessUse(chance.randrange(1, 4_000_000), chance.randrange(1 << 36))
            for _ in range(chance.randrange(8))
        )
        self._slow = replace(self._slow, at_seconds=self.seconds, processes=processes)
        if chance.random() < 0.05:
            code = chance.choice(_XIDS)
            self._xids[code] = self._xids.get(code, 0) + 1
        if chance.random() < 0.05:
            reason = chance.choice(("timeout", "unknown", "gpu_is_lost", "no_permission"))
            self._errors[reason] = self._errors.get(reason, 0) + 1

    def points(self) -> Iterator[Point]:
        """What the daemon would expose."""
        snapshot = DeviceSnapshot(
            identity=self._identity,
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
        yield from host_points(
            HostSnapshot((snapshot,), frozenset(), pending=False, now_seconds=self.seconds)
        )


def soak_daemon(seconds: float, directory: Path, gpus: int = 4) -> Growth:
    """Run the real daemon at ten ticks a second, and let everything around it churn."""
    config = directory / "soak.yaml"
    config.write_text(
        "probes: {enabled: false}\nsampling: {interval: 100ms, slow_interval: 1s, deadline: 2s}\n"
    )
    command = (
        *(sys.executable, "-m", "exporter", "serve", "--config.file", str(config)),
        *("--log.level", "error", "--web.listen-address", "127.0.0.1:{port}"),
    )
    program = Program("flopwatch", command, "gpu", "flopwatch_sm_active_ratio")
    chance = random.Random(1)
    with (
        FakeNvml([H100] * gpus, directory) as fake,
        running(program, fake.env, gpus) as daemon,
    ):

        def usage() -> tuple[int, int, int]:
            _churn(fake, daemon.pid, daemon.port, random.Random(0), lose=False)
            time.sleep(3)  # connections have ended, GPUs are back
            pid = daemon.pid
            return memory(pid, "fake-nvml-control").own, descriptors(pid), threads(pid)

        began = time.monotonic()
        before = None
        while (passed := time.monotonic() - began) < seconds:
            _churn(fake, daemon.pid, daemon.port, chance, lose=True)
            time.sleep(0.1)
            if before is None and passed > _WARM_UP_SHARE * seconds:
                before = usage()
        time.sleep(3)
        after = usage()
    assert before is not None
    return Growth(before[0], after[0], before[1], after[1], before[2], after[2])


def _churn(fake: FakeNvml, pid: int, port: int, chance: random.Random, *, lose: bool) -> None:
    for gpu in fake.gpus:
        gpu.set_load(chance.choice((Load.prefill(), Load.decode(), Load.idle())))
        fake.set_processes(
            gpu.slot,
            [
                (chance.randrange(1, 4_000_000), chance.randrange(1 << 34), "compute")
                for _ in range(chance.randrange(8))
            ],
        )
    victim = chance.randrange(len(fake.gpus))
    if lose and chance.random() < 0.05:
        fake.lose(victim)
    elif chance.random() < 0.3:
        for gpu in fake.gpus:
            fake.restore(gpu.slot)
    if chance.random() < 0.1:
        fake.xid(victim, chance.choice(_XIDS))
    if chance.random() < 0.05:
        os.kill(pid, signal.SIGHUP)
    scrape(port, compressed=chance.random() < 0.5)


def main() -> int:
    """Soak and say what grew; 1 when it was too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--days", type=float, default=30.0, help="simulated days of ticks")
    parser.add_argument("--daemon-minutes", type=float, default=0.0)
    options = parser.parse_args()
    grown = soak_accounts(int(options.days * DAY_TICKS))
    print(f"{options.days:g} days of ticks: {grown}")
    failed = grown.bytes > GROWTH_MAX_BYTES
    if options.daemon_minutes:
        with tempfile.TemporaryDirectory() as directory:
            grown = soak_daemon(60 * options.daemon_minutes, Path(directory))
        print(f"{options.daemon_minutes:g} minutes of the daemon: {grown}")
        failed |= grown.bytes > GROWTH_MAX_BYTES or grown.threads_after > grown.threads_before
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
