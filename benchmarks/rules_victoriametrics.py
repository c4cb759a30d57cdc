"""What the rules above recorded series cost a VictoriaMetrics.

python benchmarks/rules_victoriametrics.py [--gpus 10000] [--minutes 4]

A real Prometheus scrapes simulated hosts and evaluates deploy/prometheus, until the rules have recorded what they record. That output is copied,
host by host, to the number of GPUs, and ingested into a real VictoriaMetrics as eleven minutes of samples, one every 30 s. Then each rule that
reads nothing but recorded series is evaluated there, three times, and the best is counted: what a vmalert or a global view has to do.

Rules that read exported series are evaluated where these are: benchmarks/rules_scaling.py measures them.
Needs Debian's packages prometheus and victoria-metrics.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.programs import free_port  # noqa: E402
from benchmarks.rules_history import rule_groups  # noqa: E402
from exporter.logging_setup import set_up_logging  # noqa: E402
from exporter.simulate.host import (  # noqa: E402
    FleetPlan,
    Timing,
    build_fleet,
    find_scenarios,
    fleet_limits,
    fleet_router,
)
from exporter.web.server import Server  # noqa: E402


RULES = ROOT / "deploy" / "prometheus"
GPUS_A_HOST = 8
HOSTS = 3  # H100, A100 and L4: recorded series are copied from these
STEP_SECONDS = 30
SPAN_SECONDS = 660
REPEATS = 3

Series = tuple[dict[str, str], str]  # labels, value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=4.0, help="of recording, before the copy")
    parser.add_argument(
        "--recorded", type=Path, help="file with what was recorded; written where it is not there"
    )
    arguments = parser.parse_args()
    for command in ("prometheus", "victoria-metrics"):
        if shutil.which(command) is None:
            raise SystemExit(f"{command} is not installed: apt-get install {command}")
    set_up_logging("error", "auto")
    with tempfile.TemporaryDirectory() as folder:
        kept: Path = arguments.recorded or Path(folder) / "recorded.json"
        if not kept.exists():
            kept.write_text(json.dumps(recorded(Path(folder), arguments.minutes)))
            if arguments.recorded:
                print(f"recorded in {kept}; run again to measure")
                return 0
        found = [(labels, value) for labels, value in json.loads(kept.read_text())]
        with victoria(Path(folder)) as url:
            report(url, found, arguments.gpus)
    return 0


def recorded(folder: Path, minutes: float) -> list[Series]:
    """What the rules record for a few simulated hosts."""
    hosts = build_fleet(
        FleetPlan(find_scenarios(["mixed-fleet"]), hosts=HOSTS, gpus=GPUS_A_HOST),
        Timing(time.time() - 120, tick_seconds=5.0),
    )
    server = Server(["127.0.0.1:0"], fleet_router(hosts), limits=fleet_limits(hosts))
    server.start()
    configuration = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": [f"{RULES}/rules/*.yml"],
        "scrape_configs": [
            {
                "job_name": "flopwatch",
                "http_sd_configs": [{"url": f"http://127.0.0.1:{server.addresses[0][1]}/sd"}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/data", "--log.level=error"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(command)
    try:
        time.sleep(60 * minutes)
        rows = ask(f"http://127.0.0.1:{port}", '{__name__=~".+:flopwatch_.+"}')
        return [(row["metric"], row["value"][1]) for row in rows]
    finally:
        process.terminate()
        process.wait(60)
        server.close(0.5)


@contextmanager
def victoria(folder: Path) -> Iterator[str]:
    """A VictoriaMetrics of its own."""
    port = free_port()
    command = ["victoria-metrics", f"-storageDataPath={folder}/vm", "-loggerLevel=ERROR"]
    command += [f"-httpListenAddr=127.0.0.1:{port}", "-search.maxUniqueTimeseries=5000000"]
    command += ["-search.maxQueryDuration=120s", "-search.latencyOffset=0s"]
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(60):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def ingest(url: str, found: list[Series], copies: int) -> tuple[int, float]:
    """Write the copies; returns the number of series and the seconds it took."""
    end = int(time.time()) // STEP_SECONDS * STEP_SECONDS
    times = range(end - SPAN_SECONDS, end + 1, STEP_SECONDS)
    began, series = time.monotonic(), 0
    for copy in range(copies):
        lines = []
        for labels, value in found:
            if copy and "instance" not in labels:
                continue  # per cluster or model: one, however many hosts
            named = {key: text for key, text in labels.items() if key != "__name__"}
            if "instance" in named:
                named["instance"] += f"-{copy}"
            if "uuid" in named:
                named["uuid"] += f"-{copy}"
            inside = ",".join(f"{key}={json.dumps(text)}" for key, text in named.items())
            lines += [f"{labels['__name__']}{{{inside}}} {value} {at * 1000}" for at in times]
            series += 1
        body = "\n".join(lines).encode()
        request = urllib.request.Request(f"{url}/api/v1/import/prometheus", data=body)
        urllib.request.urlopen(request, timeout=120).close()
    urllib.request.urlopen(f"{url}/internal/force_flush", timeout=60).close()
    return series, time.monotonic() - began


def own_rules() -> list[tuple[str, str]]:
    """Names and expressions of the rules that read recorded series and nothing else."""
    found = []
    for group in rule_groups(RULES):
        for rule in group["rules"]:
            without_strings = re.sub(r'"[^"]*"', '""', rule["expr"])
            names = re.findall(
                r"(?<![:\w])(?:flopwatch_\w+|up|ALERTS\w*)(?![:\w(])", without_strings
            )
            if not names and ":flopwatch_" in without_strings:
                found.append((rule.get("record") or rule["alert"], rule["expr"]))
    return found


def report(url: str, found: list[Series], gpus: int) -> None:
    copies = max(1, round(gpus / (HOSTS * GPUS_A_HOST)))
    series, seconds = ingest(url, found, copies)
    samples = series * (SPAN_SECONDS // STEP_SECONDS + 1)
    print(f"{copies * HOSTS * GPUS_A_HOST} GPUs, VictoriaMetrics with {series:,} recorded series")
    print(f"  {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"  ingested {samples:,} samples in {seconds:.0f} s")
    rows, failed = [], []
    for name, expr in own_rules():
        try:
            rows.append((min(evaluate(url, expr) for _ in range(REPEATS)), name))
        except urllib.error.HTTPError as error:
            failed.append(f"{name}: {error.read().decode()[:300]}")
    rows.sort(reverse=True)
    print(
        f"  {len(rows)} rules that read recorded series alone: {sum(row[0] for row in rows):.2f} s, one after another"
    )
    for seconds, name in rows[:8]:
        print(f"    {1000 * seconds:8.0f} ms  {name}")
    for line in failed:
        print(f"  failed: {line}")


def evaluate(url: str, expr: str) -> float:
    """Wall seconds of one evaluation, bypassing VictoriaMetrics' result cache."""
    form = urllib.parse.urlencode({"query": expr, "time": time.time() - 15, "nocache": 1})
    began = time.monotonic()
    with urllib.request.urlopen(f"{url}/api/v1/query", data=form.encode(), timeout=120) as answer:
        answer.read()
    return time.monotonic() - began


def ask(url: str, query: str) -> list[dict[str, Any]]:
    form = urllib.parse.urlencode({"query": query}).encode()
    with urllib.request.urlopen(f"{url}/api/v1/query", data=form, timeout=120) as answer:
        return list(json.load(answer)["data"]["result"])


if __name__ == "__main__":
    sys.exit(main())
