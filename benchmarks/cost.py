"""What the daemon costs, compared with nvitop-exporter on the same simulated GPUs and machine.

    python -m benchmarks.cost [--gpus 1,8,64] [--seconds 15] [--json]

Both run on the fake driver library of the tests, one after the other, so that the ratios hold where
the numbers do not: they are this machine's. The fake's own time is in both; it is printed below.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.driver_time import driver_share
from benchmarks.programs import (
    Program,
    Running,
    cpu_seconds,
    descriptors,
    flopwatch,
    memory,
    nvitop_exporter,
    running,
)
from benchmarks.programs import threads as thread_count
from benchmarks.scraping import Outcome, scrape, scrape_crowded, scrape_paced
from tests.fake_nvml import H100, H100_1G_10GB, FakeNvml, Load


_SETTLE_SECONDS = 3.0
_LOAD_SECONDS = 2.0
_BURST = 200
_SCRAPERS = 50
_MILLI = 1e3
# The wait of a real driver for events sleeps until there is one. The fake driver's wakes ten times a
# second otherwise, and its time would be the exporter's. For both programs.
_DRIVER_SLEEPS = {"FAKE_NVML_EVENT_POLL_MS": "1000"}
_MIG = tuple(replace(H100_1G_10GB, gpu_instance_id=number) for number in (7, 8, 9, 10))
_MIG_GPUS = 16


@dataclass(frozen=True, slots=True)
class Cost:
    """One program on one number of GPUs. CPU shares are of one core; milliseconds are of CPU time."""

    program: str
    gpus: int
    mig_instances: int
    full_scrape_seconds: float
    rest_cpu_percent: float
    rest_driver_cpu_percent: float
    nvml_calls_per_second: float
    resident_megabytes: float
    resident_after_load_megabytes: float
    threads: int
    descriptors: int
    bytes: int
    series: int
    series_per_gpu: float
    scrape_cpu_ms: float
    scrape_gzip_cpu_ms: float
    fresh_scrape_cpu_ms: float
    fresh_scrape_gzip_cpu_ms: float
    scraped_cpu_percent: float
    latency_p50_ms: float
    latency_p99_ms: float
    crowd_p50_ms: float
    crowd_p99_ms: float
    crowd_scrapes: int
    crowd_failed: int


def measure(
    program: Program, gpus: int, seconds: float, directory: Path, *, mig: bool = False
) -> Cost:
    """Run one program on this many H100s under load, and measure it idle and under scrapes.

    `mig`: each GPU is split into four instances.
    """
    with (
        FakeNvml([H100] * gpus, directory) as fake,
        _split(fake) if mig else nullcontext(),
        _serving(fake),
        running(program, {**fake.env, **_DRIVER_SLEEPS}, gpus) as exporter,
    ):
        time.sleep(_SETTLE_SECONDS)
        called = fake.functions_called()
        rest = _cpu_per_second(exporter, seconds)
        calls = {
            name: (count - called.get(name, 0)) / seconds
            for name, count in fake.functions_called().items()
        }
        control = str(directory / "fake-nvml-control")
        at_rest = memory(exporter.pid, control)
        body = scrape(exporter.port)
        series = [line for line in body.splitlines() if line and not line.startswith(b"#")]
        label = f'{program.gpu_label}="'.encode()
        burst, burst_cpu = _scrapes(exporter, rest, compressed=False)
        _zipped, zipped_cpu = _scrapes(exporter, rest, compressed=True)
        fresh_cpu = _fresh_scrapes(exporter, seconds, compressed=False)
        fresh_zipped_cpu = _fresh_scrapes(exporter, seconds, compressed=True)
        scraped = _cpu_per_second_scraped(exporter, seconds)
        number_of_threads = thread_count(exporter.pid)
        crowd = scrape_crowded([exporter.port], _SCRAPERS, seconds)
        time.sleep(1)
        return Cost(
            program=program.name,
            gpus=gpus,
            mig_instances=len(_MIG) * gpus if mig else 0,
            full_scrape_seconds=exporter.full_scrape_seconds,
            rest_cpu_percent=100 * rest,
            rest_driver_cpu_percent=100 * driver_share(fake.env, calls),
            nvml_calls_per_second=sum(calls.values()),
            resident_megabytes=at_rest.own / 1e6,
            resident_after_load_megabytes=memory(exporter.pid, control).own / 1e6,
            threads=number_of_threads,
            descriptors=descriptors(exporter.pid),
            bytes=len(body),
            series=len(series),
            series_per_gpu=sum(label in line for line in series) / gpus,
            scrape_cpu_ms=burst_cpu,
            scrape_gzip_cpu_ms=zipped_cpu,
            fresh_scrape_cpu_ms=fresh_cpu,
            fresh_scrape_gzip_cpu_ms=fresh_zipped_cpu,
            scraped_cpu_percent=100 * scraped,
            latency_p50_ms=_MILLI * burst.percentile(0.5),
            latency_p99_ms=_MILLI * burst.percentile(0.99),
            crowd_p50_ms=_MILLI * crowd.percentile(0.5),
            crowd_p99_ms=_MILLI * crowd.percentile(0.99),
            crowd_scrapes=len(crowd.seconds),
            crowd_failed=crowd.failed,
        )


@contextmanager
def _split(fake: FakeNvml) -> Iterator[None]:
    """Split every GPU into four instances of one slice."""
    for gpu in fake.gpus:
        gpu.set_mig(_MIG)
    yield


@contextmanager
def _serving(fake: FakeNvml) -> Iterator[None]:
    """Give every GPU another load every two seconds, each out of step with the others."""
    loads = (Load.prefill(), Load.decode(), Load.idle(72 << 30))
    ended = threading.Event()

    def change() -> None:
        step = 0
        while not ended.is_set():
            for gpu in fake.gpus:
                gpu.set_load(loads[(step + gpu.slot) % len(loads)])
            step += 1
            ended.wait(_LOAD_SECONDS)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _cpu_per_second(exporter: Running, seconds: float) -> float:
    before, began = cpu_seconds(exporter.pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(exporter.pid) - before) / (time.monotonic() - began)


def _cpu_per_second_scraped(exporter: Running, seconds: float) -> float:
    """Share of a core while one Prometheus scrapes every second, as it does: gzipped."""
    before, began = cpu_seconds(exporter.pid), time.monotonic()
    scrape_paced(exporter.port, round(seconds), 1.0, compressed=True)
    time.sleep(max(0.0, began + round(seconds) - time.monotonic()))
    return (cpu_seconds(exporter.pid) - before) / (time.monotonic() - began)


def _scrapes(exporter: Running, rest: float, *, compressed: bool) -> tuple[Outcome, float]:
    """Scrape without pause; the CPU time of a scrape in milliseconds beyond the idle usage."""
    before, began = cpu_seconds(exporter.pid), time.monotonic()
    outcome = scrape_paced(exporter.port, _BURST, 0.0, compressed=compressed)
    used = cpu_seconds(exporter.pid) - before - rest * (time.monotonic() - began)
    return outcome, _MILLI * used / _BURST


def _fresh_scrapes(exporter: Running, seconds: float, *, compressed: bool) -> float:
    """CPU milliseconds of a scrape that is the only one of its tick.

    Seconds with and without a scrape alternate, so the effect of other processes on the machine,
    and on the exporter's own pace, is in both.
    """
    pairs = max(5, round(seconds))
    difference = 0.0
    for _pair in range(pairs):
        for sign in (1, -1):
            before, began = cpu_seconds(exporter.pid), time.monotonic()
            if sign > 0:
                scrape(exporter.port, compressed=compressed)
            time.sleep(max(0.0, began + 1.0 - time.monotonic()))
            difference += sign * (cpu_seconds(exporter.pid) - before)
    return _MILLI * difference / pairs


# Title, member of Cost, format, and whether a ratio of the two columns is meaningful.
_ROWS = (
    ("CPU at rest, % of a core", "rest_cpu_percent", ".2f", True),
    ("  of it inside the fake driver, %", "rest_driver_cpu_percent", ".2f", False),
    ("CPU per scrape, many a tick, ms", "scrape_cpu_ms", ".2f", True),
    ("  gzip", "scrape_gzip_cpu_ms", ".2f", True),
    ("CPU per scrape, one a tick, ms", "fresh_scrape_cpu_ms", ".2f", True),
    ("  gzip", "fresh_scrape_gzip_cpu_ms", ".2f", True),
    ("CPU at one gzipped scrape a second, % of a core", "scraped_cpu_percent", ".2f", True),
    ("scrape p50, ms", "latency_p50_ms", ".1f", True),
    ("scrape p99, ms", "latency_p99_ms", ".1f", True),
    ("50 scrapers: p50, ms", "crowd_p50_ms", ".0f", True),
    ("50 scrapers: p99, ms", "crowd_p99_ms", ".0f", True),
    ("50 scrapers: scrapes served", "crowd_scrapes", "d", False),
    ("50 scrapers: scrapes failed", "crowd_failed", "d", False),
    ("resident, MB", "resident_megabytes", ".1f", True),
    ("resident after the load, MB", "resident_after_load_megabytes", ".1f", True),
    ("threads", "threads", "d", False),
    ("start to first full scrape, s", "full_scrape_seconds", ".2f", True),
    ("bytes of a scrape", "bytes", "d", False),
    ("series", "series", "d", False),
    ("series per GPU", "series_per_gpu", ".0f", False),
    ("NVML calls a second", "nvml_calls_per_second", ".0f", False),
)


def table(costs: list[Cost]) -> str:
    """The costs as a Markdown table: both programs side by side, and the ratio of the two."""
    columns: list[tuple[str, list[Cost]]] = []
    for machine in dict.fromkeys((cost.gpus, cost.mig_instances) for cost in costs):
        together = [cost for cost in costs if (cost.gpus, cost.mig_instances) == machine]
        name = f"{machine[1]} MIG" if machine[1] else f"{machine[0]} GPU"
        columns += [(f"{name}: {cost.program}", [cost]) for cost in together]
        if len(together) == 2:
            columns.append(("ratio", together))
    lines = [
        "| | " + " | ".join(title for title, _costs in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for title, member, form, comparable in _ROWS:
        cells = []
        for _title, shown in columns:
            values = [getattr(cost, member) for cost in shown]
            if len(values) == 1:
                cells.append(format(values[0], form))
            else:
                ours, theirs = values
                cells.append(f"{theirs / ours:.1f}×" if comparable and ours > 0 else "")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Aim:
    """A promise of the project at eight GPUs: at most `limit`, as a ratio to the peer or absolute."""

    what: str
    member: str
    limit: float
    of_peer: bool = False


_AIMS_GPUS = 8
_MIB = 1024 * 1024 / 1e6
_AIMS = (
    Aim("CPU of a fresh scrape, of nvitop-exporter's", "fresh_scrape_cpu_ms", 1 / 5, of_peer=True),
    Aim("CPU at one scrape a second, of its", "scraped_cpu_percent", 1.0, of_peer=True),
    Aim("CPU at rest, of its", "rest_cpu_percent", 0.6, of_peer=True),
    Aim("resident after the load, MB (40 MiB)", "resident_after_load_megabytes", 40 * _MIB),
    Aim("start to first full scrape, s", "full_scrape_seconds", 0.5),
)
_MIG_AIM = Aim("64 MIG instances at rest, % of a core", "rest_cpu_percent", 3.0)


def aims_table(costs: list[Cost]) -> str:
    """Each aim, its limit, and what this run has reached."""
    ours = {(cost.gpus, cost.mig_instances): cost for cost in costs if cost.program == "flopwatch"}
    peer = next(
        (cost for cost in costs if cost.program != "flopwatch" and cost.gpus == _AIMS_GPUS), None
    )
    rows = [(aim, ours.get((_AIMS_GPUS, 0))) for aim in _AIMS]
    rows.append((_MIG_AIM, next((cost for cost in ours.values() if cost.mig_instances), None)))
    lines = ["| aim, at eight GPUs | at most | reached | |", "| --- | ---: | ---: | --- |"]
    for aim, cost in rows:
        if cost is None or (aim.of_peer and peer is None):
            continue
        value = getattr(cost, aim.member)
        if aim.of_peer:
            value /= getattr(peer, aim.member)
        met = "met" if value <= aim.limit else "missed"
        lines.append(f"| {aim.what} | {aim.limit:.2f} | {value:.2f} | {met} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument("--gpus", default="1,8,64", help="numbers of GPUs, comma-separated")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each measurement")
    parser.add_argument("--only", choices=("flopwatch", "nvitop-exporter"))
    parser.add_argument("--no-mig", action="store_true", help="leave out 64 MIG instances")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    costs: list[Cost] = []
    for gpus in map(int, options.gpus.split(",")):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            for program in (flopwatch(directory), nvitop_exporter()):
                if options.only not in (None, program.name):
                    continue
                print(f"measuring {program.name} on {gpus} GPUs …", file=sys.stderr)
                costs.append(measure(program, gpus, options.seconds, directory))
                print(json.dumps(asdict(costs[-1])), file=sys.stderr)  # a run is long
    if not options.no_mig and options.only != "nvitop-exporter":
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            print("measuring flopwatch on 64 MIG instances …", file=sys.stderr)
            program = flopwatch(directory)
            costs.append(measure(program, _MIG_GPUS, options.seconds, directory, mig=True))
    if options.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=2))
    else:
        print(table(costs), aims_table(costs), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
