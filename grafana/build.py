"""Writes the dashboards: `python -m grafana.build [--check]`.

The JSON under grafana/dashboards/ is the product and is committed; `--check` says whether it is fresh.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import exporter, fleet, gpu, models, probes, roofline, tenants


FOLDER = Path(__file__).parent / "dashboards"
BOARDS: dict[str, Callable[[], Dashboard]] = {
    "fleet": fleet.dashboard,
    "gpu": gpu.dashboard,
    "models": models.dashboard,
    "roofline": roofline.dashboard,
    "tenants": tenants.dashboard,
    "probes": probes.dashboard,
    "exporter": exporter.dashboard,
}


def render(name: str) -> str:
    """The JSON of one dashboard, with sorted keys and a trailing newline."""
    text = JSONEncoder(sort_keys=True, indent=2).encode(BOARDS[name]().build())
    return json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def stale() -> list[str]:
    """Names of the dashboards whose committed JSON is not what the code writes, or that no code writes."""
    written = {path.stem: path.read_text() for path in FOLDER.glob("*.json")}
    wanted = {name: render(name) for name in BOARDS}
    return sorted(name for name in written | wanted if written.get(name) != wanted.get(name))


def main(arguments: list[str] | None = None) -> int:
    """Write all dashboards, or with --check write none and fail if one is stale."""
    parser = argparse.ArgumentParser(prog="python -m grafana.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the JSON is stale")
    if parser.parse_args(arguments).check:
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
