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
    """A GPU at 3.60 an hour is 0.001 a second. Red has it for 0.6, of which it idles for 0.2.

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
    evaluate(tmp_path, series, expected)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_the_exporters_own_pod_holds_no_gpu(tmp_path: Path) -> None:
    """Without honor_labels a holder's labels are renamed and the target's own stand in their place.

    Red's pod is charged its 0.6 GPUs, the 0.4 that nobody holds belong to no pod, and the engine on the GPU is red's.
    """
    target = f'{GPU}, namespace="monitoring", pod="flopwatch-x", state="idle"'
    held = f'{target}, holder="pod", exported_namespace="red", exported_pod="a"'
    series = {
        f"flopwatch_holder_gpu_seconds_total{{{held}}}": rate(0.6),
        f'flopwatch_holder_gpu_seconds_total{{{target}, holder="none"}}': rate(0.4),
        f'flopwatch_gpu_allocation_info{{{GPU}, namespace="monitoring", exported_namespace="red"}}': "1x40",
        f'flopwatch_workload_gpu_info{{{GPU}, workload="chat"}}': "1x40",
    }
    engine = '{instance="n1", job="flopwatch", namespace="red", workload="chat"}'
    name = "holder:flopwatch_holder_gpu_seconds:rate5m"
    expected = {
        f"{name}{HOLDER}}}": 0.6,
        f'{name}{{holder="none", instance="n1", job="flopwatch"}}': 0.4,
        f"namespace_workload:flopwatch_workload:info{engine}": 1,
    }

    evaluate(tmp_path, series, expected, {f'count({name}{{pod="flopwatch-x"}}) or vector(0)': 0.0})


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prompt_and_output_tokens_cost_by_their_time(tmp_path: Path) -> None:
    """A GPU of 1 PFLOP/s and 4 TB/s. Prompts need 0.3 s of a second for their FLOP and 0.1 s for their bytes.

    Answers need 0.04 s for FLOP and 0.6 s for bytes: a third and two thirds of the time. At 0.001 a
    second that is 1e6 × 0.001 / 3 / 600 for a million prompt tokens, and 1e6 × 0.002 / 3 / 200 for
    generated ones. A second engine's GPUs are held by two namespaces, and one GPU by both: it has
    none. The peaks of its GPUs are not known, so its time is not known either.
    """
    second = GPU.replace('"0"', '"1"').replace("GPU-0", "GPU-1")
    third = GPU.replace('"0"', '"2"').replace("GPU-0", "GPU-2")
    chat = f'{TARGET}, workload="chat", model="llama"'
    mixed = chat.replace("chat", "mixed")
    series = {
        f"flopwatch_headline_peak_flops{{{GPU}}}": "1e15x40",
        f"flopwatch_peak_dram_bandwidth_bytes_per_second{{{GPU}}}": "4e12x40",
        f'flopwatch_price_per_gpu_hour{{{GPU}, currency="EUR"}}': "3.6x40",
        f'flopwatch_workload_gpu_info{{{GPU}, workload="chat"}}': "1x40",
        f'flopwatch_workload_gpu_info{{{second}, workload="mixed"}}': "1x40",
        f'flopwatch_workload_gpu_info{{{third}, workload="mixed"}}': "1x40",
        f'flopwatch_gpu_allocation_info{{{GPU}, namespace="red", pod="a", container="c"}}': "1x40",
        f'flopwatch_gpu_allocation_info{{{second}, namespace="red", pod="b", container="c"}}': "1x40",
        f'flopwatch_gpu_allocation_info{{{third}, namespace="red", pod="c", container="c"}}': "1x40",
        f'flopwatch_gpu_allocation_info{{{third}, namespace="blue", pod="d", container="c"}}': "1x40",
        f'flopwatch_model_flop_total{{{mixed}, phase="prefill"}}': rate(3e14),
        f'flopwatch_model_phase_dram_bytes_total{{{mixed}, phase="prefill"}}': rate(4e11),
        f'flopwatch_model_info{{{chat}, engine="vllm"}}': "1x40",
        f'flopwatch_model_tokens_total{{{chat}, phase="prefill"}}': rate(600),
        f'flopwatch_model_tokens_total{{{chat}, phase="decode"}}': rate(200),
        f'flopwatch_model_flop_total{{{chat}, phase="prefill"}}': rate(3e14),
        f'flopwatch_model_flop_total{{{chat}, phase="decode"}}': rate(4e13),
        f'flopwatch_model_phase_dram_bytes_total{{{chat}, phase="prefill"}}': rate(4e11),
        f'flopwatch_model_phase_dram_bytes_total{{{chat}, phase="decode"}}': rate(2.4e12),
    }  # fmt: skip
    expected = {}
    for labels, level in (
        ('instance="n1", job="flopwatch", workload="chat"', "workload"),
        ('job="flopwatch", model="llama"', "model"),
        ('job="flopwatch", namespace="red"', "namespace"),
        ('job="flopwatch"', "cluster"),
    ):
        name = f"{level}_phase:flopwatch_cost_per_million_tokens:ratio_rate5m"
        for phase, cost in (("prefill", 1e3 / 3 / 600), ("decode", 2e3 / 3 / 200)):
            expected[f'{name}{{{labels}, phase="{phase}", currency="EUR"}}'] = cost
    chat = '{instance="n1", job="flopwatch", workload="chat"'
    expected[f'workload_phase:flopwatch_time_share:ratio_rate5m{chat}, phase="prefill"}}'] = 1 / 3
    expected[f'workload_phase:flopwatch_time_share:ratio_rate5m{chat}, phase="decode"}}'] = 2 / 3
    evaluate(
        tmp_path,
        series,
        expected,
        {
            "count(namespace_workload:flopwatch_workload:info)": 1,
            "count(workload_phase:flopwatch_least_seconds:rate5m)": 2,
        },
    )


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_an_engine_with_two_models_is_charged_to_neither(tmp_path: Path) -> None:
    """Its GPU's cost and peak are `(several)`'s; those of the other engine's model are unaffected.

    Each engine has a GPU of 1 PFLOP/s at 3.60 an hour. Each model does 100 TFLOP/s: an MFU of 0.1 for
    the model that has a GPU to itself, and none for the two that share one.
    """
    other = GPU.replace('"0"', '"1"').replace("GPU-0", "GPU-1")
    series = {}
    for gpu, workload, models in ((GPU, "chat", ["llama"]), (other, "both", ["one", "two"])):
        engine = f'{TARGET}, workload="{workload}"'
        series |= {
            f'flopwatch_price_per_gpu_hour{{{gpu}, currency="EUR"}}': "3.6x40",
            f"flopwatch_headline_peak_flops{{{gpu}}}": "1e15x40",
            f'flopwatch_workload_gpu_info{{{gpu}, workload="{workload}"}}': "1x40",
        }
        for model in models:
            named = f'{engine}, model="{model}"'
            series[f'flopwatch_model_info{{{named}, engine="vllm"}}'] = "1x40"
            series[f'flopwatch_model_flop_total{{{named}, phase="decode"}}'] = rate(1e14)
    cost, peak = "model:flopwatch_cost:rate5m", "model:flopwatch_peak_flops:headline"
    mfu = "model:flopwatch_model_flops_utilization:ratio_rate5m"
    expected = {f'{mfu}{{job="flopwatch", model="llama"}}': 0.1}
    for model in ("llama", "(several)"):
        expected[f'{cost}{{job="flopwatch", model="{model}", currency="EUR"}}'] = 1e-3
        expected[f'{peak}{{job="flopwatch", model="{model}"}}'] = 1e15

    evaluate(tmp_path, series, expected, {f"count({mfu})": 1, f"count({cost})": 2})


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_flop_that_became_no_token(tmp_path: Path) -> None:
    """100 TFLOP/s were executed for the engine, and its models wasted 3 and 4 of them on rejected drafts."""
    wasted = (
        f'flopwatch_model_wasted_flop_total{{{TARGET}, workload="chat", cause="rejected_drafts"'
    )
    series = {
        f'flopwatch_workload_executed_flop_total{{{TARGET}, workload="chat"}}': rate(1e14),
        f'{wasted}, model="llama"}}': rate(3e12),
        f'{wasted}, model="adapter"}}': rate(4e12),
    }  # fmt: skip
    chat = '{instance="n1", job="flopwatch", workload="chat"'
    evaluate(
        tmp_path,
        series,
        {
            f"workload:flopwatch_executed_flop:rate5m{chat}}}": 1e14,
            f'workload_cause:flopwatch_wasted_flop:rate5m{chat}, cause="rejected_drafts"}}': 7e12,
        },
    )


def evaluate(
    tmp_path: Path,
    series: dict[str, str],
    expected: dict[str, float],
    totals: dict[str, float] | None = None,
) -> None:
    """Feed the series to promtool for ten minutes, and compare; `totals` have no labels."""
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
    tests += [
        {"expr": expr, "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": value}]}
        for expr, value in (totals or {}).items()
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
