"""What the rules and series cost a Prometheus: `python benchmarks/rules_scaling.py [--gpus 1000] [--minutes 7] [--history-days 7]`.

Serves a simulated fleet and lets a real Prometheus scrape it and evaluate deploy/prometheus until all five-minute windows are full; the past
of the longest baselines is written into Prometheus beforehand. Then the simulator rests, and every rule is evaluated by itself at the
last instant. The time is the processor time of the Prometheus process, best of five: a wall clock would measure what else the machine
does. Printed with it: how long the rule groups took live, by the wall clock, beside the simulator; series a GPU; bytes a scrape. 10,000 GPUs are extrapolated, linearly.
"""

import argparse
import gzip
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from exporter.logging_setup import set_up_logging  # noqa: E402
from exporter.simulate.fleet import (  # noqa: E402
    FleetPlan,
    build_fleet,
    find_scenarios,
    fleet_limits,
    fleet_router,
)
from exporter.simulate.host import SimulatedHost, Timing  # noqa: E402
from exporter.web.negotiation import Format  # noqa: E402
from exporter.web.server import Server  # noqa: E402


GPUS_A_HOST = 8
SCRAPE_SECONDS = 15
EVALUATION_SECONDS = 30
WINDOW_SECONDS = 330  # a little more than the rules' five minutes
BASELINE_STEP_SECONDS = 120
BLOCK_SECONDS = 86400  # as a Prometheus has compacted them after some days
# What the rules with a window of days read; each has one series a GPU.
BASELINES = {
    f"gpu:flopwatch_{name}:{window}": value
    for name, value in (
        ("flops_utilization", 0.24),
        ("probe_baseline_ratio", 0.99),
    )
    for window in ("avg1h", "avg1d")
}
REPEATS = 5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument(
        "--minutes", type=float, default=7.0, help="more than 6, so that all windows are full"
    )
    parser.add_argument("--history-days", type=int, default=7)
    arguments = parser.parse_args()
    set_up_logging("error", "auto")
    hosts = build_fleet(
        FleetPlan(
            find_scenarios(["mixed-fleet"]), hosts=arguments.gpus // GPUS_A_HOST, gpus=GPUS_A_HOST
        ),
        Timing(time.time(), tick_seconds=5.0),
    )
    with tempfile.TemporaryDirectory() as folder:
        if arguments.history_days:
            write_history(Path(folder), hosts, arguments.history_days)
        result = measure(Path(folder), hosts, arguments.minutes)
    result["history_days"] = arguments.history_days
    report(result)
    return 0


def write_history(folder: Path, hosts: list[SimulatedHost], days: int) -> None:
    """The baselines' past, as blocks, up to two hours ago: what is newer belongs to Prometheus.

    One file a block: promtool reads all of a file for each block that it makes of it.
    """
    newest = int(time.time()) // 7200 * 7200 - 7200
    midnight = newest // BLOCK_SECONDS * BLOCK_SECONDS
    for start in range(midnight - days * BLOCK_SECONDS, newest, BLOCK_SECONDS):
        end = min(start + BLOCK_SECONDS, newest)
        text = folder / "history.om"
        with text.open("w") as out:
            out.writelines(history_lines(hosts, range(start, end, BASELINE_STEP_SECONDS)))
        command = [
            "promtool",
            "tsdb",
            "create-blocks-from",
            f"--max-block-duration={BLOCK_SECONDS // 3600}h",
            "openmetrics",
            "--quiet",
            str(text),
            str(folder / "data"),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        text.unlink()


def history_lines(hosts: list[SimulatedHost], times: range) -> Iterator[str]:
    for name, value in BASELINES.items():
        for host in hosts:
            for gpu in range(GPUS_A_HOST):
                labels = (
                    f'{{cluster="{host.cluster}",gpu="{gpu}",instance="{host.name}",job="flopwatch",'
                    f'uuid="GPU-SIMULATED-{host.name}-{gpu}"}}'
                )
                for step, at in enumerate(times):
                    yield f"{name}{labels} {value * (1 + 0.001 * (step % 97))} {at}\n"
    yield "# EOF\n"


def measure(folder: Path, hosts: list[SimulatedHost], minutes: float) -> dict[str, Any]:
    server = Server(["127.0.0.1:0"], fleet_router(hosts), limits=fleet_limits(hosts))
    server.start()
    for kind in ("rules", "alerts"):
        shutil.copytree(ROOT / "deploy" / "prometheus" / kind, folder / kind)
    (folder / "prometheus.yml").write_text(
        json.dumps(
            {
                "global": {
                    "scrape_interval": f"{SCRAPE_SECONDS}s",
                    "evaluation_interval": f"{EVALUATION_SECONDS}s",
                },
                "rule_files": [f"{folder}/rules/*.yml", f"{folder}/alerts/*.yml"],
                "scrape_configs": [
                    {
                        "job_name": "flopwatch",
                        "http_sd_configs": [
                            {"url": f"http://127.0.0.1:{server.addresses[0][1]}/sd"}
                        ],
                    }
                ],
            }
        )
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with (folder / "log").open("w") as log:
        prometheus = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                "--storage.tsdb.retention.time=30d",
                "--web.enable-lifecycle",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            return observe(f"http://127.0.0.1:{port}", prometheus.pid, folder, hosts, minutes)
        finally:
            prometheus.terminate()
            prometheus.wait(60)
            server.close(0.5)


def observe(
    url: str, pid: int, folder: Path, hosts: list[SimulatedHost], minutes: float
) -> dict[str, Any]:
    ends = time.monotonic() + 60 * minutes
    live: list[float] = []
    while time.monotonic() < ends:
        time.sleep(EVALUATION_SECONDS)
        if time.monotonic() > ends - 60 * minutes + WINDOW_SECONDS:
            live.append(sum(group_durations(url).values()))
    at = time.time() - SCRAPE_SECONDS
    plain = hosts[0].exposition.render(Format.TEXT, compressed=False)
    series = sum(not line.startswith(b"#") for line in plain.splitlines())
    gpus = len(hosts) * GPUS_A_HOST
    result = {
        "gpus": gpus,
        "live_seconds": statistics.median(live),
        "series_a_gpu": series / GPUS_A_HOST,
        "recorded_series_a_gpu": ask(url, 'count({__name__=~".+:.+:.+"})', at) / gpus,
        "bytes_a_scrape_and_gpu": len(plain) / GPUS_A_HOST,
        "gzip_bytes_a_scrape_and_gpu": len(gzip.compress(plain, 1)) / GPUS_A_HOST,
        "scraped_hosts": ask(url, "sum(up)", at),
        "head_series": own_metric(url, "prometheus_tsdb_head_series"),
        "prometheus_memory_bytes": own_metric(url, "process_resident_memory_bytes"),
        "rule_failures": own_metric(url, "prometheus_rule_evaluation_failures_total"),
    }
    (folder / "prometheus.yml").write_text("{}")
    urllib.request.urlopen(
        urllib.request.Request(f"{url}/-/reload", method="POST"), timeout=60
    ).close()
    return result | {"rules": rule_times(url, pid, at)}


def rule_times(url: str, pid: int, at: float) -> list[dict[str, Any]]:
    """Processor time of each rule alone, at the instant `at`."""
    # What an empty query costs, HTTP and the idle process included, is not the rule's.
    empty = min(processor_seconds(url, pid, "vector(0)", at) for _ in range(4 * REPEATS))
    return [
        {
            "group": group["name"],
            "rule": rule.get("record") or rule["alert"],
            "seconds": max(0.0, best(url, pid, rule["expr"], at) - empty),
        }
        for path in sorted((ROOT / "deploy" / "prometheus").glob("*/*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def best(url: str, pid: int, query: str, at: float) -> float:
    return min(processor_seconds(url, pid, query, at) for _ in range(REPEATS))


def processor_seconds(url: str, pid: int, query: str, at: float) -> float:
    """What one query takes of the processor. Counted, so that rendering the result as JSON does not weigh in."""
    parameters = urllib.parse.urlencode({"query": f"count({query})", "time": at}).encode()
    before = process_seconds(pid)
    with urllib.request.urlopen(f"{url}/api/v1/query", data=parameters, timeout=120) as answer:
        answer.read()
    return process_seconds(pid) - before


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
        return float(json.load(answer)["data"]["result"][0]["value"][1])


def report(result: dict[str, Any]) -> None:
    groups: dict[str, float] = {}
    for rule in result["rules"]:
        groups[rule["group"]] = groups.get(rule["group"], 0.0) + rule["seconds"]
    total = sum(groups.values())
    gpus = result["gpus"]
    print(f"{gpus} GPUs, {result['history_days']} days of baselines, {len(result['rules'])} rules")
    for group, seconds in groups.items():
        print(f"  {group:24} {1000 * seconds:8.1f} ms")
    print("slowest rules")
    for rule in sorted(result["rules"], key=lambda rule: -rule["seconds"])[:12]:
        print(f"  {rule['rule']:60} {1000 * rule['seconds']:8.1f} ms")
    print(f"all rules, processor time   {1000 * total:8.1f} ms")
    print(
        f"live, beside the simulator  {1000 * result['live_seconds']:8.1f} ms (sum of the groups' wall clock)"
    )
    print(
        f"series a GPU                {result['series_a_gpu']:8.0f} exported, {result['recorded_series_a_gpu']:.0f} recorded"
    )
    print(
        f"bytes a scrape and GPU      {result['bytes_a_scrape_and_gpu']:8.0f} plain, "
        f"{result['gzip_bytes_a_scrape_and_gpu']:.0f} gzip"
    )
    print(
        f"Prometheus                  {result['head_series']:8.0f} series, {result['prometheus_memory_bytes'] / 2**20:.0f} MiB"
    )
    print(
        f"hosts scraped               {result['scraped_hosts']:8.0f}, failed evaluations {result['rule_failures']:.0f}"
    )
    series = (result["series_a_gpu"] + result["recorded_series_a_gpu"]) * 10_000
    print("10,000 GPUs, extrapolated linearly:")
    print(
        f"  all rules                 {10_000 / gpus * total:8.2f} s of every {EVALUATION_SECONDS} s"
    )
    print(
        f"  series                    {series / 1e6:8.2f} million, {series / SCRAPE_SECONDS / 1e3:.0f} thousand samples a second"
    )
    print(
        f"  gzip a second             {result['gzip_bytes_a_scrape_and_gpu'] * 10_000 / SCRAPE_SECONDS / 2**20:8.2f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
