"""Copy rules, alerts and dashboards into the chart, and render the plain manifests from it.

`python deploy/helm/sync.py` writes deploy/helm/flopwatch/files/ and deploy/kubernetes/; both are
committed, and a test checks that they are up to date. Rendering needs helm-python-sdk.
"""
# ruff: noqa: INP001  a script, not a package

import sys
from pathlib import Path
from typing import Any

from helm_python import Chart


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mixin import build as rules  # noqa: E402


CHART = ROOT / "deploy" / "helm" / "flopwatch"
MANIFESTS = ROOT / "deploy" / "kubernetes"
SOURCES = (("grafana/dashboards", "*.json", "dashboards"),)
# Each file, and the values that it is rendered with.
PLAIN: dict[str, dict[str, Any]] = {
    "flopwatch.yaml": {
        "gpu": {"runtimeClassName": "nvidia"},
        "monitor": {"enabled": False},
        "prometheusRule": {"enabled": False},
        "dashboards": {"enabled": False},
    },
    "flopwatch-probes.yaml": {
        "gpu": {"runtimeClassName": "nvidia"},
        "probes": {"enabled": True},
        "monitor": {"enabled": False},
        "prometheusRule": {"enabled": False},
        "dashboards": {"enabled": False},
    },
    "prometheus-operator.yaml": {
        "gpu": {"runtimeClassName": "nvidia"},
        "monitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    },
}
# Of the last file only what the operator and Grafana read; the rest is in the others.
OPERATOR_KINDS = ("monitor.yaml", "prometheusrule.yaml", "dashboards.yaml")
HEADER = "# Rendered from deploy/helm/flopwatch by `python deploy/helm/sync.py`. Do not edit.\n"
NAMESPACE = "flopwatch"


def chart_files() -> dict[Path, str]:
    """The contents of the chart's files/, by path."""
    return {
        CHART / "files" / target / source.name: source.read_text()
        for folder, pattern, target in SOURCES
        for source in sorted((ROOT / folder).glob(pattern))
    } | {CHART / "files" / name: text for name, text in rules.chart_files().items()}


def manifests() -> dict[Path, str]:
    """The plain manifests by path, rendered from the present chart."""
    with Chart.load(CHART) as chart:
        return {
            MANIFESTS / name: _manifest(
                chart.render(values, name="flopwatch", namespace=NAMESPACE), name
            )
            for name, values in PLAIN.items()
        }


def _manifest(rendered: dict[str, str], name: str) -> str:
    documents = []
    if name == "flopwatch.yaml":
        documents.append(f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n")
    for path, text in sorted(rendered.items()):
        wanted = path.endswith(OPERATOR_KINDS) == (name == "prometheus-operator.yaml")
        if wanted and path.endswith(".yaml") and "/tests/" not in path and text.strip():
            documents.append(text.strip().removeprefix("---").strip() + "\n")
    plain = "---\n".join(documents).replace(
        "app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl"
    )
    lines = [line for line in plain.splitlines(keepends=True) if "helm.sh/chart:" not in line]
    return HEADER + "".join(lines)


def write(files: dict[Path, str], folder: Path, pattern: str) -> None:
    """Make a folder hold exactly these files."""
    for stale in set(folder.rglob(pattern)) - files.keys():
        stale.unlink()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main() -> int:
    """Write both."""
    write(chart_files(), CHART / "files", "*.*")
    write(manifests(), MANIFESTS, "*.yaml")
    return 0


if __name__ == "__main__":
    sys.exit(main())
