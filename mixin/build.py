"""Writes the rules: `python -m mixin.build [--check]`.

deploy/prometheus/{rules,alerts}/*.yml are for plain Prometheus; mixin/*.libsonnet is the same for
users of Jsonnet; `chart_files` is the same for the Helm chart, with its settings still to be filled
in.
"""

import argparse
import json
import sys
from pathlib import Path

from mixin.alerts import alert_files
from mixin.config import SETTINGS, substituted
from mixin.recording import recording_files
from mixin.source import RuleFile, as_groups, as_jsonnet, as_yaml


ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "prometheus"
MIXIN = ROOT / "mixin"
_HEADER = "// Written by `python -m mixin.build`. Do not edit.\n"


def rule_files() -> list[RuleFile]:
    """All files, recording rules first."""
    return [*recording_files(), *alert_files()]


def chart_files() -> dict[str, str]:
    """The rule files by path below the chart's files/, with `%{name}` where a value of the chart belongs."""
    settings = "".join(
        f"# {setting.help}\n{name}: {json.dumps(setting.default)}\n"
        for name, setting in SETTINGS.items()
    )
    return {f"{file.folder}/{file.name}.yml": as_yaml(file) for file in rule_files()} | {
        "settings.yaml": f"# Written by `python deploy/helm/sync.py`. Do not edit.\n{settings}"
    }


def _libsonnet(field: str, files: list[RuleFile]) -> str:
    groups = [group for file in files for group in as_groups(file)]
    return (
        f"{_HEADER}local text(value) = if std.isNumber(value) then '%g' % value else value;\n"
        f"{{\n  {field}+:: {{\n    groups+: {as_jsonnet(groups, '    ')},\n  }},\n}}\n"
    )


def _config() -> str:
    lines = [f"{_HEADER}{{", "  _config+:: {"]
    for name, setting in SETTINGS.items():
        lines += [f"    // {setting.help}", f"    {name}: {json.dumps(setting.default)},"]
    return "\n".join([*lines, "  },", "}", ""])


def _dashboards() -> str:
    lines = "".join(
        f"    '{path.name}': import '../grafana/dashboards/{path.name}',\n"
        for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
    )
    return f"{_HEADER}{{\n  grafanaDashboards+:: {{\n{lines}  }},\n}}\n"


def outputs() -> dict[Path, str]:
    """Everything that this program writes, by path."""
    files = rule_files()
    return {
        RULES / file.folder / f"{file.name}.yml": substituted(as_yaml(file)) for file in files
    } | {
        MIXIN / "config.libsonnet": _config(),
        MIXIN / "dashboards.libsonnet": _dashboards(),
        MIXIN / "rules.libsonnet": _libsonnet(
            "prometheusRules", [file for file in files if file.folder == "rules"]
        ),
        MIXIN / "alerts.libsonnet": _libsonnet(
            "prometheusAlerts", [file for file in files if file.folder == "alerts"]
        ),
    }


def stale() -> list[str]:
    """Paths whose committed text differs from the generated text, or that no code writes."""
    wanted = outputs()
    there = {path for pattern in ("rules/*.yml", "alerts/*.yml") for path in RULES.glob(pattern)}
    return sorted(
        str(path.relative_to(ROOT))
        for path in there | wanted.keys()
        if not path.is_file() or path.read_text() != wanted.get(path)
    )


def main(arguments: list[str] | None = None) -> int:
    """Write all files, or with --check write none and fail if one is stale."""
    parser = argparse.ArgumentParser(prog="python -m mixin.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a file is stale")
    if parser.parse_args(arguments).check:
        names = stale()
        for name in names:
            print(f"stale: {name}: run `python -m mixin.build`")
        return 1 if names else 0
    for path, content in outputs().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
