"""Every alert fires and resolves when it should and is quiet otherwise, as promtool evaluates it."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .alert_cases import BASE, HOST, PERFORMANCE, Case
from .alert_cases_coverage import COVERAGE
from .alert_cases_health import EXPORTER, HEALTH, LINKS, PROBES
from .alert_cases_models import MODELS
from .faults import FAULTS


DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
CASES = (*PERFORMANCE, *HEALTH, *LINKS, *PROBES, *MODELS, *COVERAGE, *EXPORTER)

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


def rule_files() -> list[Path]:
    return sorted([*(DEPLOY / "rules").glob("*.yml"), *(DEPLOY / "alerts").glob("*.yml")])


def rule_files_for(case: Case) -> list[Path]:
    """All of them; for cases of days those that the alert needs, for promtool evaluates every rule every minute."""
    if not case.lasts_a_day:
        return rule_files()
    own = [
        path
        for path in (DEPLOY / "alerts").glob("*.yml")
        if f"alert: {case.alert}\n" in path.read_text()
    ]
    recorded = (
        ("gpu", "memory", "baselines", "models")
        if case.alert == "GPUUtilizationDropped"
        else ("gpu", "memory", "fleet", "stragglers")
    )
    return [*(DEPLOY / "rules" / f"{name}.yml" for name in recorded), *own]


def alerts() -> list[dict[str, Any]]:
    rules = [
        rule
        for path in rule_files()
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    return [rule for rule in rules if "alert" in rule]


def severity(case: Case) -> str:
    return next(rule["labels"]["severity"] for rule in alerts() if rule["alert"] == case.alert)


def firing(case: Case) -> str:
    labels = {
        "alertname": case.alert,
        "cluster": "c",
        "instance": "node1",
        "job": "flopwatch",
        "severity": severity(case),
        **case.labels,
    }
    listed = ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items()) if value)
    return f"{{{listed}}}"


def expectation(minute: int, samples: list[str]) -> dict[str, Any]:
    return {
        "expr": 'count without (alertstate) (ALERTS{alertstate="firing"})',
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": labels, "value": 1} for labels in samples],
    }


def promtool_test(case: Case) -> dict[str, Any]:
    return {
        "interval": "1m",
        "name": f"{case.alert}: {case.story}",
        "input_series": [
            {"series": series, "values": values} for series, values in (BASE | case.series).items()
        ],
        "promql_expr_test": [
            *(expectation(minute, []) for minute in case.quiet_at),
            *(expectation(minute, [firing(case)]) for minute in case.fires_at),
        ],
    }


def run_promtool(
    folder: Path, files: list[Path], test: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    path = folder / "tests.yml"
    path.write_text(
        yaml.safe_dump(
            {"rule_files": [*map(str, files)], "evaluation_interval": "1m", "tests": [test]}
        )
    )
    return subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False
    )


@needs_promtool
def test_rule_files_are_valid() -> None:
    """promtool finds nothing to complain of in any rule file."""
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint=all", "--lint-fatal", *map(str, rule_files())],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.story[:40]}")
def test_alert_fires_and_resolves(case: Case, tmp_path: Path) -> None:
    """At each named minute exactly the named alert fires, with exactly these labels, or none does."""
    done = run_promtool(tmp_path, rule_files_for(case), promtool_test(case))

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_that_fires_and_one_that_ends() -> None:
    """Every alert is proven to fire, and to be quiet before or after."""
    held = {fault.alert for fault in FAULTS}
    fire = held | {case.alert for case in CASES if case.fires_at}
    end = held | {
        case.alert
        for case in CASES
        if case.fires_at and max(case.quiet_at, default=0) > max(case.fires_at)
    }
    known = {rule["alert"] for rule in alerts()} - {"WorkloadObjectiveMissed"}  # test_objectives.py

    assert known == fire
    assert known - end == set()


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_is_documented(rule: dict[str, Any]) -> None:
    """Every alert has a severity, a summary, a description with its value and likely cause, a runbook and a dashboard."""
    annotations = rule["annotations"]

    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert annotations["summary"]
    assert "Likely" in annotations["description"] or rule["alert"] in NO_CAUSE
    assert annotations["runbook_url"].endswith(f"/docs/runbooks/{rule['alert']}.md")
    assert (RUNBOOKS / f"{rule['alert']}.md").is_file()
    assert annotations["dashboard"].startswith("{{ $externalLabels.grafana }}/d/flopwatch-")


@pytest.mark.parametrize(
    "page", sorted(RUNBOOKS.glob("[A-Z]*[a-z].md")), ids=lambda page: page.stem
)
def test_a_runbook_names_its_rule(page: Path) -> None:
    """Severity, duration and file in the page's first line are those of the alert."""
    found = re.search(
        r"Severity: (.+)\. Fires (?:after: (\w+)|at once)\. Rule: \[`(.+)`\]\((.+)\)",
        page.read_text(),
    )
    assert found is not None
    file = page.parent / found[4]
    rules = [
        (rule["labels"]["severity"], rule.get("for"))
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if rule.get("alert") == page.stem
    ]

    assert file.as_posix().endswith(f"/deploy/prometheus/{found[3]}")
    assert rules
    assert (found[1].partition(" ")[0], found[2]) in rules


def test_no_runbook_reloads_over_http() -> None:
    """The lifecycle API is off by default: the request would answer 403."""
    pages = {page.stem for page in RUNBOOKS.glob("*.md") if "/-/reload" in page.read_text()}

    assert pages == set()


NO_CAUSE = {"FlopwatchConfigReloadFailed"}  # the log names the line


def test_recorded_names_follow_the_convention() -> None:
    """Recorded series are called level:metric:operations."""
    for path in rule_files():
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    assert re.fullmatch(r"[a-z_]+:[a-z0-9_]+:[a-z0-9_]+", rule["record"]), rule[
                        "record"
                    ]


GPU_0 = "?var-cluster=c&var-instance=node1&var-gpu=0"
RENDERED = {
    "GPUSlowerThanOwnBaseline": (
        50,
        {
            "summary": "GPU 0 on node1 is slower than it used to be",
            "description": "Its slowest probe (gemm_bf16) reaches 85% of this GPU's own baseline for the same software. "
            "As far as it can be compared, it is not slower than its peers. Likely: a lowered clock or power limit, worse cooling, or aging "
            "silicon or memory. Compare it with its siblings first, to tell a change of the whole fleet from a fault of one GPU.",
            "dashboard": f"/d/flopwatch-probes{GPU_0}",
        },
    ),
    "ProbesFailing": (
        90,
        {
            "summary": "Probes of GPU 0 on node1 fail",
            "description": "1 of its kernels (gemm_fp8) failed repeatedly for twenty minutes because of errors, timeouts or a lack of memory. "
            "Likely: incompatible versions of torch and the driver, a full GPU, or a GPU that hangs.",
            "dashboard": f"/d/flopwatch-probes{GPU_0}",
        },
    ),
    "GPULost": (
        15,
        {
            "summary": "GPU 0 on node1 is lost",
            "description": "The driver no longer answers for it (UUID GPU-0). Likely: it fell off the bus (XID 79), its firmware died "
            "(XID 119, 120), or it waits for a reset. Work on it is gone. Reset the GPU; if it does not come back, reboot the host.",
            "dashboard": f"/d/flopwatch-gpu{GPU_0}",
        },
    ),
    "GPUXidCritical": (
        12,
        {
            "summary": "GPU 0 on node1 reported XID 79",
            "description": "XID 79 was reported 2m 0s ago, and the GPU has not been reset since. Likely: memory (48, 63, 64, 92, 94, 95, 140), "
            "NVLink (74, 121, 144 to 150), off the bus (79), firmware (61, 62, 119, 120, 143). Drain the GPU and reset it; replace it if "
            "the error comes back.",
            "dashboard": f"/d/flopwatch-gpu{GPU_0}",
        },
    ),
    "GPURecoveryActionNeeded": (
        20,
        {
            "summary": "GPU 0 on node1 needs a recovery action",
            "description": "The driver recommends gpu_reset. Likely: an error that the driver cannot clear by itself. Take the recommended action; results "
            "and performance are not reliable until then.",
            "dashboard": f"/d/flopwatch-gpu{GPU_0}",
        },
    ),
    "GPUSlowerThanPeers": (
        60,
        {
            "summary": "GPU 0 on node1 computes slower than its peers",
            "description": "Its slowest GEMM probe reaches 87.5% of the median of the H100 in c, corrected for the SM clock, so "
            "neither heat nor a power limit explains it. Likely: failing silicon or memory, or software that the peers do not have. "
            "Run the vendor's diagnostics.",
            "dashboard": f"/d/flopwatch-probes{GPU_0}",
        },
    ),
}
HELD_BY = {
    f'flopwatch_gpu_allocation_info{{{HOST}, gpu="0", exported_namespace="chat", exported_pod="llama-0", pod="flopwatch-x"}}': "1x600",
}


@needs_promtool
@pytest.mark.parametrize("name", RENDERED)
def test_annotations_say_which_gpu_how_much_and_why(name: str, tmp_path: Path) -> None:
    """The rendered texts name the GPU and the value, word for word: 0.70 of 0.80 is 87.5 %."""
    case = next(case for case in CASES if case.alert == name and case.fires_at)
    minute, annotations = RENDERED[name]
    runbook = f"https://github.com/flopwatch/flopwatch/blob/main/docs/runbooks/{name}.md"
    test = promtool_test(case)
    test["input_series"] += [{"series": name, "values": values} for name, values in HELD_BY.items()]
    test |= {
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": name,
                "exp_alerts": [
                    {
                        "exp_labels": {
                            "cluster": "c",
                            "instance": "node1",
                            "job": "flopwatch",
                            "severity": severity(case),
                            **case.labels,
                        },
                        "exp_annotations": annotations
                        | {"runbook_url": runbook}
                        | {"holders": "GPU 0: pod chat/llama-0\n"},
                    }
                ],
            }
        ]
    }
    done = run_promtool(tmp_path, rule_files(), test)

    assert done.returncode == 0, done.stdout + done.stderr
