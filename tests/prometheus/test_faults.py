"""Every fault raises its alert and no other, whatever labels targets have, through failed scrapes, until it is repaired."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus.faults import FAULTS, Fault, Phases, host_series
from tests.prometheus.test_alerts import rule_files


pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)

WEEK = 7 * 24 * 60
# Labels that a Prometheus operator puts on targets, and that people add.
KUBERNETES = 'namespace="monitoring", pod="flopwatch-{0}", container="exporter", endpoint="metrics", service="flopwatch", node="{0}"'
LABELS = {
    "plain": "",
    "rack": 'rack="r-{0}", zone="z-{0}"',
    "kubernetes": KUBERNETES,
}


def severities() -> dict[str, str]:
    return {
        rule["alert"]: rule["labels"]["severity"]
        for path in rule_files()
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }


def expected(faults: list[Fault]) -> list[dict[str, Any]]:
    found = severities()
    samples = []
    for fault in faults:
        for alert, own in [(fault.alert, fault.labels), *([fault.also] if fault.also else [])]:
            labels = {
                "alertname": alert,
                "cluster": "c",
                "instance": fault.instance,
                "job": "flopwatch",
                "severity": found[alert],
                **own,
            }
            text = ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
            samples.append({"labels": f"{{{text}}}", "value": 1})
    return samples


def difference(output: str) -> str:
    """Where promtool's output differs from the expectation, alert by alert."""
    lines = []
    for minute, wanted, got in re.findall(r"time: (\S+),\s+exp: ?(.*)\n\s+got: ?(.*)", output):
        missing, surplus = (
            set(re.findall(r"\{[^}]*\}", one)) - set(re.findall(r"\{[^}]*\}", other))
            for one, other in ((wanted, got), (got, wanted))
        )
        lines += [f"{minute} missing {alert}" for alert in sorted(missing)]
        lines += [f"{minute} surplus {alert}" for alert in sorted(surplus)]
    return "\n".join(lines) or output


def check(
    folder: Path,
    faults: list[Fault],
    phases: Phases,
    minutes: dict[int, bool],
    labels: str = "",
    *,
    gap: bool = False,
    evaluate: str = "1m",
) -> None:
    """promtool finds all alerts firing in the minutes that say so, none in the others, and never another one."""
    test = {
        "interval": f"{phases.interval_seconds}s",
        "input_series": [
            {"series": selector, "values": values}
            for fault in faults
            for selector, values in host_series(
                fault, phases, labels.format(fault.instance), goes_down=gap
            )
        ],
        "promql_expr_test": [
            {
                "expr": 'count without (alertstate) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": expected(faults) if fires else [],
            }
            for minute, fires in sorted(minutes.items())
        ],
    }
    path = folder / "tests.yml"
    path.write_text(
        yaml.safe_dump(
            {
                "rule_files": [*map(str, rule_files())],
                "evaluation_interval": evaluate,
                "tests": [test],
            },
            width=2**30,
        )
    )
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, difference(done.stdout + done.stderr)


def quick() -> list[Fault]:
    return [fault for fault in FAULTS if not fault.needs_a_day]


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("interval", [15, 30, 60])
def test_each_fault_raises_its_alert_and_no_other(tmp_path: Path, name: str, interval: int) -> None:
    """With any labels on the targets and any usual scrape interval; repaired, all are quiet again."""
    phases = Phases(before=60, fault=75, after=130, gap=0, interval_seconds=interval)

    check(tmp_path, quick(), phases, {58: False, 134: True, 260: False}, LABELS[name])


def test_one_failed_scrape_changes_nothing(tmp_path: Path) -> None:
    """In the minute of a failed scrape of every host, and after it, all alerts fire on."""
    phases = Phases(before=60, fault=90, after=10, gap=140)

    check(
        tmp_path, quick(), phases, {139: True, 140: True, 141: True, 142: True, 147: True}, gap=True
    )


@pytest.mark.timeout(900)
def test_no_alert_ends_in_a_week_without_repair(tmp_path: Path) -> None:
    """After a day and after a week all unrepaired faults still page; repaired, they do not."""
    begin = 25 * 60
    phases = Phases(before=begin, fault=WEEK, after=240, gap=0)

    check(
        tmp_path,
        list(FAULTS),
        phases,
        {
            begin - 4: False,
            begin + 80: True,
            begin + 1500: True,
            begin + WEEK - 4: True,
            begin + WEEK + 236: False,
        },
        evaluate="4m",  # promtool evaluates every rule as often as this, and a week is long
    )
