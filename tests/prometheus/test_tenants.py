"""The rules of the FLOP bill, with figures worked by hand."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml


RULES = Path(__file__).parents[2] / "deploy/prometheus/rules"
GPU = 'job="flopwatch", instance="n1", gpu="0", uuid="GPU-0"'
TARGET = 'job="flopwatch", instance="n1"'
RED = f'{GPU}, holder="pod", namespace="red", pod="a", container="c", hpc_job="", workload=""'
BLUE = f'{GPU}, holder="pod", namespace="blue", pod="b", container="c", hpc_job="", workload=""'
INSTANCE = RED.replace("GPU-0", "MIG-0") + ', mig="1"'
HOLDER = '{holder="pod", instance="n1", job="flopwatch", namespace="red", pod="a"'


def rate(per_second: float) -> str:
    """A counter that is scraped every 15 s for ten minutes."""
    return f"0+{per_second * 15:g}x40"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_the_bill_of_one_gpu(tmp_path: Path) -> None:
    """A GPU at 3.60 an hour is 0.001 a second. Red has it for 0.6, of which it rests for 0.2.

    Its engine computes 600 prompt and 200 generated tokens a second from 40 TFLOP, at 300 W: 300 / 800
    J a token, and 1e6 × 0.001 / 800 money for a million tokens, four times that for generated ones.
    The work of a MIG instance is its GPU's already, and counts once.
    """
    series = {
        f'flopwatch_price_per_gpu_hour{{{GPU}, currency="EUR"}}': "3.6x40",
        f'flopwatch_holder_gpu_seconds_total{{{RED}, state="tensor"}}': rate(0.4),
        f'flopwatch_holder_gpu_seconds_total{{{RED}, state="idle"}}': rate(0.2),
        f'flopwatch_holder_gpu_seconds_total{{{BLUE}, state="tensor"}}': rate(0.4),
        f'flopwatch_holder_gpu_seconds_total{{{INSTANCE}, state="tensor"}}': rate(0.4),
        f"flopwatch_holder_flop_total{{{RED}}}": rate(4e13),
        f"flopwatch_holder_energy_joules_total{{{RED}}}": rate(180),
        f"flopwatch_energy_joules_total{{{GPU}}}": rate(300),
        f'flopwatch_workload_gpu_info{{{GPU}, workload="chat"}}': "1x40",
        f'flopwatch_model_info{{{TARGET}, workload="chat", model="llama", engine="vllm"}}': "1x40",
        f'flopwatch_model_tokens_total{{{TARGET}, workload="chat", model="llama", phase="prefill"}}': rate(600),
        f'flopwatch_model_tokens_total{{{TARGET}, workload="chat", model="llama", phase="decode"}}': rate(200),
        f'flopwatch_model_flop_total{{{TARGET}, workload="chat", model="llama", phase="decode"}}': rate(4e13),
    }  # fmt: skip
    workload = '{instance="n1", job="flopwatch", workload="chat"'
    expected = {
        f'holder_state:flopwatch_holder_gpu_seconds:rate5m{HOLDER}, state="idle"}}': 0.2,
        f"holder:flopwatch_holder_gpu_seconds:rate5m{HOLDER}}}": 0.6,
        f"holder:flopwatch_holder_flop:rate5m{HOLDER}}}": 4e13,
        f"holder:flopwatch_holder_energy_joules:rate5m{HOLDER}}}": 180,
        f'holder:flopwatch_cost:rate5m{HOLDER}, currency="EUR"}}': 0.6e-3,
        f'holder:flopwatch_idle_cost:rate5m{HOLDER}, currency="EUR"}}': 0.2e-3,
        f'workload:flopwatch_cost:rate5m{workload}, currency="EUR"}}': 1e-3,
        f"workload:flopwatch_joules_per_token:ratio_rate5m{workload}}}": 0.375,
        f'workload:flopwatch_cost_per_million_tokens:ratio_rate5m{workload}, currency="EUR"}}': 1.25,
        f'workload:flopwatch_cost_per_million_output_tokens:ratio_rate5m{workload}, currency="EUR"}}': 5,
        f'workload:flopwatch_cost_per_useful_pflop:ratio_rate5m{workload}, currency="EUR"}}': 0.025,
        'model:flopwatch_cost_per_million_tokens:ratio_rate5m{job="flopwatch", model="llama", currency="EUR"}': 1.25,
        'model:flopwatch_joules_per_token:ratio_rate5m{job="flopwatch", model="llama"}': 0.375,
    }  # fmt: skip
    tests = [
        {
            # promtool compares to the last bit.
            "expr": f"abs({selector} / {value!r} - 1) < bool 1e-9",
            "eval_time": "10m",
            "exp_samples": [
                {"labels": "{" + selector.partition("{")[2], "value": 1},
            ],
        }
        for selector, value in expected.items()
    ]
    file = tmp_path / "test.yml"
    file.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(path) for path in sorted(RULES.glob("*.yml"))],
                "evaluation_interval": "15s",
                "tests": [
                    {
                        "interval": "15s",
                        "input_series": [
                            {"series": name, "values": values} for name, values in series.items()
                        ],
                        "promql_expr_test": tests,
                    }
                ],
            }
        )
    )

    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
