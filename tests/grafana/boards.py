"""The committed dashboards, prepared for the tests."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exporter.metrics.catalogue import CATALOGUE
from exporter.metrics.family import MetricType


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "grafana" / "dashboards"
RULES = ROOT / "deploy" / "prometheus"

# Stand-ins for the variables of Grafana, so that promtool can parse an expression.
VARIABLES = {
    "$__rate_interval": "1m",
    "$__interval": "1m",
    "$__range": "1h",
    "$job": "flopwatch",
    "$cluster": ".*",
    "$instance": ".+",
    "$gpu": ".+",
    "$name": ".+",
    "$model": ".+",
    "$namespace": ".*",
}


@dataclass(frozen=True, slots=True)
class Target:
    """One query of one panel of one dashboard."""

    board: str
    panel: str
    kind: str
    expr: str

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}: {self.expr}"


def boards() -> dict[str, dict[str, Any]]:
    """All dashboards by file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels but rows, those inside rows too."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def targets() -> list[Target]:
    """Every query of every dashboard."""
    return [
        Target(board["title"], panel["title"], panel["type"], target["expr"])
        for board in boards().values()
        for panel in panels(board)
        for target in panel.get("targets", [])
    ]


def substituted(expr: str) -> str:
    """The expression with a value for each variable."""
    # The longest name first: `$name` is the beginning of `$namespace`.
    for name, value in sorted(VARIABLES.items(), key=lambda item: -len(item[0])):
        expr = expr.replace(name, value)
    return expr


def metrics_of(expr: str) -> set[str]:
    """Names of all metrics in an expression: what is followed by `{`, `[`, or stands alone with a known prefix."""
    without_strings = re.sub(r'"[^"]*"', '""', expr)
    without_labels = re.sub(
        r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", without_strings
    )
    without_labels = re.sub(r"\{[^}]*\}", "{}", without_labels)
    without_labels = re.sub(r"\[[^\]]*\]", "[]", without_labels)
    names = set(re.findall(r"[a-zA-Z_][a-zA-Z0-9_]*(?::[a-zA-Z0-9_:]+)+", without_labels))
    for name in re.findall(r"(?<![:\w])[a-zA-Z_][a-zA-Z0-9_]*(?=\s*[\{\[])", without_labels):
        names.add(name)
    names.update(
        re.findall(r"(?<![:\w])(?:flopwatch|process|scrape)_[a-z0-9_]+(?![\w:])", without_labels)
    )
    return names


def recorded() -> set[str]:
    """Names that the recording rules write."""
    return {
        rule["record"]
        for path in RULES.glob("*/*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }


def exported() -> dict[str, MetricType]:
    """Names that a scrape carries, with histograms' parts, and what Prometheus adds."""
    names: dict[str, MetricType] = {}
    for family in CATALOGUE:
        if family.type is MetricType.HISTOGRAM:
            for suffix in ("_bucket", "_sum", "_count"):
                names[family.name + suffix] = MetricType.COUNTER
        else:
            names[family.name] = family.type
    for gauge in (
        "up",
        "ALERTS",
        "ALERTS_FOR_STATE",
        "scrape_duration_seconds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ):
        names[gauge] = MetricType.GAUGE
    names["process_cpu_seconds_total"] = MetricType.COUNTER
    # Only engines that report their requests have these; rules fall back on tokens.
    names["flopwatch_model_requests"] = MetricType.GAUGE
    # A user's own: deploy/prometheus/objectives.example.yml.
    names["flopwatch_objective"] = MetricType.GAUGE
    names["flopwatch_objective_budget_ratio"] = MetricType.GAUGE
    return names
