"""What the rules and series cost a Prometheus: `python benchmarks/rules_scaling.py [--gpus 1000] [--minutes 6] [--first]`.

Serves a simulated fleet and lets a real Prometheus scrape it and evaluate deploy/prometheus. What the rules read of more than the last
five minutes is written into Prometheus beforehand, so that every window is full. Then the simulator's clock stops, and two things are measured:

- live: the time that all rule groups took, as Prometheus itself measures it (prometheus_rule_group_last_duration_seconds), while scrapes continue;
  and what processor time the rules took meanwhile: of all of Prometheus, less that of as long a time with scrapes and no rules before;
- alone: every rule at one instant, without scrapes: samples touched, and the processor time and the wall clock of the best of fifteen.

On a busy machine all figures except the samples get worse, wall clocks most: the load is printed with them, and with `--first` Prometheus goes before
other programs (which takes root).
Also printed: series per GPU, bytes per scrape, and 10,000 GPUs, extrapolated linearly.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.programs import free_port  # noqa: E402
from benchmarks.rules_history import (  # noqa: E402
    DEFAULT_INTERVAL_SECONDS,
    SCRAPE_SECONDS,
    Read,
    long_reads,
    rule_groups,
    seconds_of,
    write_history,
)
from exporter.logging_setup import set_up_logging  # noqa: E402
from exporter.metrics.layout import Format  # noqa: E402
from exporter.simulate.host import (  # noqa: E402  # noqa: E402
    FleetPlan,
    SimulatedHost,
    Timing,
    build_fleet,
    find_scenarios,
    fleet_limits,
    fleet_router,
)
from exporter.web.server import Server  # noqa: E402


GPUS_A_HOST = 8
REPEATS = 15
# Two minutes: groups of every interval are evaluated a whole number of times.
LIVE_EVALUATIONS = 4
RULES = ROOT / "deploy" / "prometheus"


class StoppableClock:
    """The time, until it is stopped."""

    def __init__(self) -> None:
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return time.time() if self._stopped_at is None else self._stopped_at

    def stop(self) -> None:
        """Stop the clock at the present time."""
        self._stopped_at = time.time()


@dataclass(frozen=True, slots=True)
class RuleCost:
    """The cost of one evaluation of one rule alone."""

    group: str
    interval_seconds: int
    name: str
    processor_seconds: float
    wall_seconds: float
    samples: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument(
        "--minutes", type=float, default=6.0, help="6 or more, so that all windows are full"
    )
    parser.add_argument(
        "--first", action="store_true", help="let Prometheus go before other programs; needs root"
    )
    arguments = parser.parse_args()
    set_up_logging("error", "auto")
    clock = StoppableClock()
    hosts = build_fleet(
        FleetPlan(
            find_scenarios(["mixed-fleet"]), hosts=arguments.gpus // GPUS_A_HOST, gpus=GPUS_A_HOST
        ),
        Timing(time.time() - 120, tick_seconds=float(SCRAPE_SECONDS)),
        clock,
    )
    for host in hosts:
        host.advance(clock())
    reads = long_reads(rule_groups(RULES))
    with tempfile.TemporaryDirectory() as folder:
        write_history(Path(folder), hosts, reads)
        result = measure(Path(folder), hosts, clock, arguments.minutes, first=arguments.first)
    report(result)
    return 0


def measure(
    folder: Path,
    hosts: list[SimulatedHost],
    clock: StoppableClock,
    minutes: float,
    *,
    first: bool,
) -> dict[str, Any]:
    server = Server(["127.0.0.1:0"], fleet_router(hosts), limits=fleet_limits(hosts))
    server.start()
    for kind in ("rules", "alerts"):
        shutil.copytree(RULES / kind, folder / kind)
    configuration: dict[str, Any] = {
        "global": {
            "scrape_interval": f"{SCRAPE_SECONDS}s",
            "evaluation_interval": f"{DEFAULT_INTERVAL_SECONDS}s",
        },
        "scrape_configs": [
            {
                "job_name": "flopwatch",
                "http_sd_configs": [{"url": f"http://127.0.0.1:{server.addresses[0][1]}/sd"}],
            }
        ],
    }
    rule_files = [f"{folder}/rules/*.yml", f"{folder}/alerts/*.yml"]
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    port = free_port()
    with (folder / "log").open("w") as log:
        prometheus = subprocess.Popen(
            [
                *(["nice", "-n", "-20"] if first else []),
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                "--storage.tsdb.retention.time=30d",
                # No compaction of the past while we measure.
                "--storage.tsdb.min-block-duration=2h",
                "--storage.tsdb.max-block-duration=2h",
                "--web.enable-lifecycle",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            time.sleep(DEFAULT_INTERVAL_SECONDS)  # the first scrapes make all series
            scraping = cores_over(prometheus.pid, LIVE_EVALUATIONS)
            reload(url, folder, configuration | {"rule_files": rule_files})
            time.sleep(60 * minutes)
            clock.stop()
            live = observe_live(url, prometheus.pid) | {"scrape_cores": scraping}
            found = take_stock(url, hosts)
            reload(url, folder, {})
            costs = rule_costs(url, prometheus.pid, rule_groups(RULES), found["at"])
            return live | found | {"rules": costs}
        finally:
            prometheus.terminate()
            prometheus.wait(60)
            server.close(0.5)


def observe_live(url: str, pid: int) -> dict[str, Any]:
    """Regular evaluations, while scrapes continue and the simulator repeats the same values."""
    time.sleep(DEFAULT_INTERVAL_SECONDS)
    began, used = time.monotonic(), process_seconds(pid)
    totals = []
    for _ in range(LIVE_EVALUATIONS):
        time.sleep(DEFAULT_INTERVAL_SECONDS)
        totals.append(sum(group_durations(url).values()))
    return {
        "live_seconds": sorted(totals),
        "prometheus_cores": (process_seconds(pid) - used) / (time.monotonic() - began),
        "load": os.getloadavg()[0],
        "priority": ", Prometheus first" if os.getpriority(os.PRIO_PROCESS, pid) < 0 else "",
    }


def cores_over(pid: int, evaluations: int) -> float:
    """Processor seconds a second that the process takes while this many default intervals pass."""
    began, used = time.monotonic(), process_seconds(pid)
    time.sleep(evaluations * DEFAULT_INTERVAL_SECONDS)
    return (process_seconds(pid) - used) / (time.monotonic() - began)


def reload(url: str, folder: Path, configuration: dict[str, Any]) -> None:
    """Make Prometheus continue with another configuration."""
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    urllib.request.urlopen(
        urllib.request.Request(f"{url}/-/reload", method="POST"), timeout=60
    ).close()


def take_stock(url: str, hosts: list[SimulatedHost]) -> dict[str, Any]:
    """The contents of Prometheus, and the instant (Unix seconds) at which they are valid."""
    at = time.time() - SCRAPE_SECONDS
    plain = hosts[0].exposition.render(Format.TEXT, compressed=False)
    exported = sum(
        not line.startswith(b"#")
        for host in hosts
        for line in host.exposition.render(Format.TEXT, compressed=False).splitlines()
    )
    gpus = len(hosts) * GPUS_A_HOST
    return {
        "at": at,
        "gpus": gpus,
        "series_a_gpu": exported / gpus,
        "recorded_series_a_gpu": ask(url, 'count({__name__=~".+:.+:.+"})', at) / gpus,
        "bytes_a_scrape_and_gpu": len(plain) / GPUS_A_HOST,
        "gzip_bytes_a_scrape_and_gpu": len(gzip.compress(plain, 1)) / GPUS_A_HOST,
        "scraped_hosts": ask(url, "sum(up)", at),
        "head_series": own_metric(url, "prometheus_tsdb_head_series"),
        "prometheus_memory_bytes": own_metric(url, "process_resident_memory_bytes"),
        "rule_failures": own_metric(url, "prometheus_rule_evaluation_failures_total"),
        "strays": strays(url, long_reads(rule_groups(RULES)), at),
    }


def strays(url: str, reads: Sequence[Read], at: float) -> list[str]:
    """Metrics whose history does not match the present series: measuring them would be pointless."""
    return [
        name
        for name in dict.fromkeys(read.name for read in reads)
        if ask(url, f"count({name})", at) != ask(url, f"count(last_over_time({name}[8d]))", at)
    ]


def rule_costs(url: str, pid: int, groups: Sequence[dict[str, Any]], at: float) -> list[RuleCost]:
    """Each rule alone, at the instant `at`."""
    # The cost of an empty query, including HTTP and the idle process, is subtracted.
    empty = [evaluate(url, pid, "vector(0)", at) for _ in range(2 * REPEATS)]
    idle_processor, idle_wall = min(row[0] for row in empty), min(row[1] for row in empty)
    costs = []
    for group in groups:
        interval = seconds_of(group.get("interval", f"{DEFAULT_INTERVAL_SECONDS}s"))
        for rule in group["rules"]:
            runs = [evaluate(url, pid, rule["expr"], at) for _ in range(REPEATS)]
            costs.append(
                RuleCost(
                    group["name"],
                    interval,
                    rule.get("record") or rule["alert"],
                    max(0.0, min(run[0] for run in runs) - idle_processor),
                    max(0.0, min(run[1] for run in runs) - idle_wall),
                    runs[0][2],
                )
            )
    return costs


def evaluate(url: str, pid: int, query: str, at: float) -> tuple[float, float, float]:
    """Processor seconds, wall seconds and samples of a query, in count(): no JSON to render."""
    form = {"query": f"count({query})", "time": at, "stats": "all"}
    used, began = process_seconds(pid), time.monotonic()
    try:
        with urllib.request.urlopen(
            f"{url}/api/v1/query", data=urllib.parse.urlencode(form).encode(), timeout=120
        ) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{query}\n{error.read().decode()}") from None
    wall, processor = time.monotonic() - began, process_seconds(pid) - used
    return (
        processor,
        wall,
        float(json.loads(text)["data"]["stats"]["samples"]["totalQueryableSamples"]),
    )


def process_seconds(pid: int) -> float:
    """Processor time of all threads of a process, to the nanosecond (proc(5), schedstat)."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def group_durations(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = re.findall(
        r'prometheus_rule_group_last_duration_seconds\{rule_group="[^"]*;([^"]*)"\} (\S+)', text
    )
    return {group: float(seconds) for group, seconds in found}


def own_metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(\{{| )", line))


def ask(url: str, query: str, at: float) -> float:
    query_url = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query, 'time': at})}"
    with urllib.request.urlopen(query_url, timeout=60) as answer:
        result = json.load(answer)["data"]["result"]
    return float(result[0]["value"][1]) if result else 0.0


def report(result: dict[str, Any]) -> None:
    rules: list[RuleCost] = result["rules"]
    gpus = result["gpus"]
    processor = sum(rule.processor_seconds for rule in rules)
    # Each group at its own interval.
    cores = sum(rule.processor_seconds / rule.interval_seconds for rule in rules)
    live = result["live_seconds"]
    print(
        f"{gpus} GPUs, {len(rules)} rules, {os.cpu_count()} cores, load {result['load']:.1f}{result['priority']}"
    )
    print(f"  {'group':28} {'every':>6} {'processor':>12} {'wall clock':>12} {'samples':>12}")
    for group in dict.fromkeys(rule.group for rule in rules):
        own = [rule for rule in rules if rule.group == group]
        print(_line(group, f"{own[0].interval_seconds} s", own))
    print(_line("all rules, alone", "", rules))
    print("most expensive rules")
    for rule in sorted(rules, key=lambda rule: -rule.processor_seconds)[:12]:
        print(_line(rule.name, "", [rule], width=62))
    print(
        f"all rules, live             {1000 * statistics.median(live):8.0f} ms, sum of the groups' wall clock "
        f"(median of {len(live)}, {1000 * live[0]:.0f} to {1000 * live[-1]:.0f})"
    )
    print(
        f"all rules, live             {1000 * (result['prometheus_cores'] - result['scrape_cores']):8.1f} ms of processor time a second, "
        f"each group at its own interval ({1000 * cores:.1f} alone)"
    )
    print(
        f"series a GPU                {result['series_a_gpu']:8.0f} exported, {result['recorded_series_a_gpu']:.0f} recorded"
    )
    print(
        f"bytes a scrape and GPU      {result['bytes_a_scrape_and_gpu']:8.0f} plain, "
        f"{result['gzip_bytes_a_scrape_and_gpu']:.0f} gzip"
    )
    print(
        f"Prometheus                  {result['head_series']:8.0f} series, {result['prometheus_memory_bytes'] / 2**20:.0f} MiB, "
        f"{result['prometheus_cores']:.2f} cores with scrapes every {SCRAPE_SECONDS} s and rules"
    )
    print(
        f"hosts scraped               {result['scraped_hosts']:8.0f}, failed evaluations {result['rule_failures']:.0f}"
    )
    for name in result["strays"]:
        print(f"not measured with a full window: {name}")
    exported, recorded = 1e4 * result["series_a_gpu"], 1e4 * result["recorded_series_a_gpu"]
    pace = exported / SCRAPE_SECONDS + recorded / DEFAULT_INTERVAL_SECONDS
    times = 10_000 / gpus
    print("10,000 GPUs, extrapolated linearly:")
    print(
        f"  all rules                 {times * processor:8.2f} s of processor time an evaluation, {times * cores:.2f} cores"
    )
    print(
        f"  series                    {(exported + recorded) / 1e6:8.2f} million, {pace / 1e3:.0f} thousand samples a second"
    )
    print(
        f"  gzip a second             {result['gzip_bytes_a_scrape_and_gpu'] * 10_000 / SCRAPE_SECONDS / 2**20:8.2f} MiB"
    )


def _line(name: str, interval: str, rules: Sequence[RuleCost], width: int = 28) -> str:
    processor = 1000 * sum(rule.processor_seconds for rule in rules)
    wall = 1000 * sum(rule.wall_seconds for rule in rules)
    every = f" {interval:>6}" if width == 28 else ""
    return f"  {name:{width}}{every} {processor:9.1f} ms {wall:9.1f} ms {sum(rule.samples for rule in rules):12,.0f}"


if __name__ == "__main__":
    sys.exit(main())
