"""A real Prometheus and Alertmanager beside a simulated fleet, with shortened time.

Durations of the rules are divided by a speed and the scenarios' clock runs as many times faster, so that at
a speed of 20 fifteen minutes of rule time take three quarters of one. Bounds in seconds inside expressions stay as they are.
"""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exporter.simulate.host import FleetPlan, Pull, Timing, build_fleet, fleet_limits, fleet_router
from exporter.simulate.scenarios import Scenario
from exporter.web.server import Server


DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
SPEED = 20
# Of rule time, between two scrapes and two evaluations.
INTERVAL_SECONDS = 60
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
PROMETHEUS = shutil.which("prometheus")


def shorter(duration: str, speed: int) -> str:
    """A duration of the rules over the speed, one second at least."""
    seconds = sum(
        int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", duration)
    )
    return f"{max(1, round(seconds / speed))}s"


def shorten_rules(source: Path, target: Path, speed: int) -> None:
    """Copy rule files with all their durations shortened."""
    target.mkdir()
    for path in source.glob("*.yml"):
        content = yaml.safe_load(path.read_text())
        for group in content["groups"]:
            if "interval" in group:
                group["interval"] = shorter(group["interval"], speed)
            for rule in group["rules"]:
                expr = re.sub(
                    r"\[([\w:]+)\]",
                    lambda m: f"[{':'.join(shorter(part, speed) for part in m[1].split(':'))}]",
                    rule["expr"],
                )
                rule["expr"] = re.sub(
                    r"offset (\w+)", lambda m: f"offset {shorter(m[1], speed)}", expr
                )
                if "for" in rule:
                    rule["for"] = shorter(rule["for"], speed)
        (target / path.name).write_text(yaml.safe_dump(content))


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Stack:
    """The base URLs, and how many times faster than ours the clock of the rules runs."""

    prometheus: str
    alertmanager: str
    speed: int = SPEED

    @property
    def interval_seconds(self) -> float:
        """Between two scrapes."""
        return INTERVAL_SECONDS / self.speed

    def ask(self, path: str, **parameters: str) -> Any:
        """Prometheus's HTTP API; the `data` of its answer, or the error as text."""
        body = urllib.parse.urlencode(parameters).encode()
        url = f"{self.prometheus}/api/v1/{path}"
        try:
            with urllib.request.urlopen(
                url, data=body if parameters else None, timeout=30
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def alerts(self) -> list[dict[str, Any]]:
        """What Alertmanager holds."""
        with urllib.request.urlopen(f"{self.alertmanager}/api/v2/alerts", timeout=30) as answer:
            return list(json.load(answer))


@contextmanager
def running(
    folder: Path,
    scenarios: tuple[Scenario, ...],
    hosts: int,
    pulls: tuple[Pull, ...] = (),
    *,
    speed: int = SPEED,
) -> Iterator[Stack]:
    """The whole stack, until the block ends."""
    fleet = build_fleet(
        FleetPlan(scenarios, hosts=hosts, pulls=pulls),
        Timing(time.time(), tick_seconds=1.0, pace=speed),
    )
    server = Server(["127.0.0.1:0"], fleet_router(fleet), limits=fleet_limits(fleet))
    server.start()
    prometheus, alertmanager = free_port(), free_port()
    shorten_rules(DEPLOY / "rules", folder / "rules", speed)
    shorten_rules(DEPLOY / "alerts", folder / "alerts", speed)
    interval = shorter(f"{INTERVAL_SECONDS}s", speed)
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {
                    "scrape_interval": interval,
                    "evaluation_interval": interval,
                },
                "rule_files": [f"{folder}/rules/*.yml", f"{folder}/alerts/*.yml"],
                "alerting": {
                    "alertmanagers": [
                        {"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}
                    ]
                },
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
    assert PROMETHEUS is not None
    assert ALERTMANAGER is not None
    commands = (
        [
            PROMETHEUS,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{prometheus}",
        ],
        [
            ALERTMANAGER,
            f"--config.file={DEPLOY}/alertmanager.yml",
            f"--storage.path={folder}/alertmanager",
            f"--web.listen-address=127.0.0.1:{alertmanager}",
            "--cluster.listen-address=",
        ],
    )
    with (folder / "log").open("w") as log:
        processes = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
        try:
            yield Stack(f"http://127.0.0.1:{prometheus}", f"http://127.0.0.1:{alertmanager}", speed)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(20)
            server.close(0.5)
