"""Objectives that a user sets for a workload page by their burn rate."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus.alert_cases import BASE, HOST, HOUR
from tests.prometheus.test_alerts import DEPLOY, rule_files, run_promtool


pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)
CHAT = f'{HOST}, workload="chat", model="m"'
RUNNING = f'flopwatch_model_requests{{{CHAT}, state="running"}}'
TOKENS = f'flopwatch_model_tokens_total{{{CHAT}, phase="decode"}}'
# 600 tokens a second, 400 for two hours, and 600 again.
TWO_SLOW_HOURS = f"0+36000x{10 * HOUR} 21600000+24000x{2 * HOUR} 24480000+36000x{8 * HOUR}"


def history(series: dict[str, str], windows: dict[int, dict[str, str]]) -> dict[str, Any]:
    """Which windows fire, and how, at which minute."""
    return {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": values} for name, values in (BASE | series).items()
        ],
        "promql_expr_test": [
            {
                "expr": 'max by (window, severity) (ALERTS{alertname="WorkloadObjectiveMissed", alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {"labels": f'{{window="{window}", severity="{severity}"}}', "value": 1}
                    for window, severity in firing.items()
                ],
            }
            for minute, firing in windows.items()
        ],
    }


def files(folder: Path) -> list[Path]:
    """All rules, and the example's objective: 500 tokens a second in 95 % of the minutes."""
    example = yaml.safe_load((DEPLOY / "objectives.example.yml").read_text())
    path = folder / "objectives.yml"
    path.write_text(yaml.safe_dump(example))
    return [*rule_files(), path]


def test_a_miss_of_an_hour_pages_and_ends(tmp_path: Path) -> None:
    """72 % of an hour missed is 14.4 times a budget of 5 %; the short window ends it minutes after the recovery."""
    done = run_promtool(
        tmp_path,
        files(tmp_path),
        history(
            {TOKENS: TWO_SLOW_HOURS, RUNNING: f"8x{20 * HOUR}"},
            {
                10 * HOUR: {},
                10 * HOUR + 30: {},
                11 * HOUR: {"1h": "critical"},
                12 * HOUR + 15: {"6h": "critical", "3d": "warning"},
                13 * HOUR: {"3d": "warning"},  # of the existing hours
            },
        ),
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_minutes_without_demand_do_not_count(tmp_path: Path) -> None:
    """No request in flight or queued: few tokens are no miss."""
    done = run_promtool(
        tmp_path,
        files(tmp_path),
        history(
            {TOKENS: TWO_SLOW_HOURS, RUNNING: f"8x{10 * HOUR} 0x{10 * HOUR}"},
            {11 * HOUR: {}, 12 * HOUR + 15: {}},
        ),
    )

    assert done.returncode == 0, done.stdout + done.stderr
