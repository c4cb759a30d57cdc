"""Writes the dashboards: `python -m grafana.build [--check | --share FOLDER]`.

The JSON under grafana/dashboards/ is the product and is committed; `--check` tells whether it is up
to date.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import exporter, fleet, gpu, host, models, probes, roofline, tenants


FOLDER = Path(__file__).parent / "dashboards"
BOARDS: dict[str, Callable[[], Dashboard]] = {
    "fleet": fleet.dashboard,
    "host": host.dashboard,
    "gpu": gpu.dashboard,
    "models": models.dashboard,
    "roofline": roofline.dashboard,
    "tenants": tenants.dashboard,
    "probes": probes.dashboard,
    "exporter": exporter.dashboard,
}


# Grafana's smallest step for rates: with it $__rate_interval is two minutes or more, so that a data
# source that is set to 15 s has rates for targets scraped every 60 s.
RATE_STEP = "30s"
# From here on the dashboards work, and the panels' options are in the form that this version writes: without a
# version Grafana takes them for its first form, migrates them, and the roofline is empty.
LEAST_GRAFANA = "11.1.0"
COLUMNS = 24  # of Grafana's grid
ALERTS = 'ALERTS{alertstate="firing", job=~"$job|", cluster=~"$cluster", instance=~"$instance|"}'


def render(name: str) -> str:
    """The JSON of one dashboard, with sorted keys and a trailing newline."""
    text = JSONEncoder(sort_keys=True, indent=2).encode(BOARDS[name]().build())
    board = json.loads(text)
    _finish(board)
    return _text(board)


def _text(board: dict[str, Any]) -> str:
    return json.dumps(board, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def shared(name: str) -> str:
    """The dashboard in the form of grafana.com: the importer is asked for the data source."""
    board = json.loads(render(name))
    source = "${DS_PROMETHEUS}"
    for variable in board["templating"]["list"]:
        if variable["type"] == "datasource":
            variable["current"] = {"selected": False, "text": source, "value": source}
    kinds = sorted({panel["type"] for panel in _panels(board["panels"])} - {"row"})
    board |= {
        "__elements": {},
        "__inputs": [
            {
                "name": "DS_PROMETHEUS",
                "label": "Prometheus",
                "description": "Scrapes the exporters and evaluates flopwatch's rules.",
                "type": "datasource",
                "pluginId": "prometheus",
                "pluginName": "Prometheus",
            }
        ],
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": LEAST_GRAFANA},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
            *({"type": "panel", "id": kind, "name": kind, "version": ""} for kind in kinds),
        ],
        "id": None,
    }
    return _text(board)


def _finish(board: dict[str, Any]) -> None:
    """Add what the builders omit: panel ids from titles, visible links, steps, alert annotations."""
    board["annotations"] = {"list": [_alert_annotation()]}
    _pack(board["panels"])
    for link in board["links"]:
        link.pop("placement", None)  # inControlsMenu, the builder's default, hides it in a menu
    for panel in _panels(board["panels"]):
        if panel["type"] != "row":
            panel["pluginVersion"] = LEAST_GRAFANA
        panel["id"] = zlib.crc32(f"{panel['type']}/{panel['title']}".encode()) % 2**31
        for link in panel.get("links", []):
            link.pop("placement", None)
        for target in panel.get("targets", []):
            if "$__rate_interval" in target["expr"]:
                target["interval"] = RATE_STEP


def _pack(panels: list[dict[str, Any]]) -> None:
    """Place each panel at the first free position, from the left, below its row."""
    taken: set[tuple[int, int]] = set()
    top = bottom = 0
    for panel in panels:
        place = panel["gridPos"]
        if panel["type"] == "row":
            top = bottom
        size = list(product(range(place["h"]), range(place["w"])))
        place["y"], place["x"] = next(
            (y, x)
            for y in count(top)
            for x in range(COLUMNS - place["w"] + 1)
            if not any((y + down, x + right) in taken for down, right in size)
        )
        taken |= {(place["y"] + down, place["x"] + right) for down, right in size}
        bottom = max(bottom, place["y"] + place["h"])
        if panel["type"] == "row":
            top = bottom
            for inner in panel.get("panels", []):
                inner["gridPos"]["y"] = bottom


def _panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All panels and rows, those inside rows too."""
    for panel in panels:
        yield panel
        yield from panel.get("panels", [])


def _alert_annotation() -> dict[str, Any]:
    return {
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "enable": True,
        "expr": f"max by (alertname, cluster, instance, gpu, severity) ({ALERTS})",
        "hide": False,
        "iconColor": "red",
        "name": "Firing alerts",
        "step": "60s",
        "tagKeys": "severity,cluster",
        "textFormat": "{{instance}} GPU {{gpu}}",
        "titleFormat": "{{alertname}}",
    }


def stale() -> list[str]:
    """Names of the dashboards whose committed JSON differs from the generated one, or has no code."""
    written = {path.stem: path.read_text() for path in FOLDER.glob("*.json")}
    wanted = {name: render(name) for name in BOARDS}
    return sorted(name for name in written | wanted if written.get(name) != wanted.get(name))


def main(arguments: list[str] | None = None) -> int:
    """Write all dashboards, or with --check write none and fail if one is stale."""
    parser = argparse.ArgumentParser(prog="python -m grafana.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the JSON is stale")
    parser.add_argument(
        "--share", metavar="FOLDER", type=Path, help="write them in the form of grafana.com"
    )
    asked = parser.parse_args(arguments)
    if asked.share:
        asked.share.mkdir(parents=True, exist_ok=True)
        for name in BOARDS:
            (asked.share / f"{name}.json").write_text(shared(name))
        return 0
    if asked.check:
        names = stale()
        for name in names:
            print(f"stale: grafana/dashboards/{name}.json: run `python -m grafana.build`")
        return 1 if names else 0
    FOLDER.mkdir(exist_ok=True)
    for name in BOARDS:
        (FOLDER / f"{name}.json").write_text(render(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
