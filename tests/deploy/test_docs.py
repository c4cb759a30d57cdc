"""The pages for operators: everything they name exists, and their queries work as described."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.config.model import SCHEMA
from exporter.metrics.catalogue import BY_NAME
from exporter.metrics.family import MetricType
from tests.deploy.manifests import CHART, ROOT


PAGES = ("install.md", "security.md", "operations.md", "migrating.md")
ALL_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# docs/faults.md names tests by their place below tests/.
FILE_NAME = re.compile(
    r"`((?:exporter|flopwatch|tests|benchmarks|deploy|mixin|grafana|probes/(?!test_))[\w./-]*/[\w.-]+\.\w+)`"
)
each_page = pytest.mark.parametrize("page", PAGES)


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def queries(page: str) -> list[str]:
    return re.findall(r"```promql\n(.*?)```", text(page), re.DOTALL)


@each_page
def test_every_metric_exists(page: str):
    """No page names a metric that the exporter does not have."""
    named = set(re.findall(r"flopwatch_[a-z0-9_]+[a-z0-9]", text(page))) - {"flopwatch_probe"}
    known = set(BY_NAME) | {
        f"{name}_{part}"
        for name, family in BY_NAME.items()
        if family.type is MetricType.HISTOGRAM
        for part in ("bucket", "sum", "count")
    }

    assert {name for name in named if not any(k.startswith(name) for k in known)} == set()


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path):
    """All linked files and headings exist, and all files named in code."""
    content = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = [name for name in FILE_NAME.findall(content) if not (ROOT / name).exists()]
    for target in re.findall(r"\]\(([^)\s]+)\)", content):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)

    assert broken == []


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_value_of_the_chart_exists():
    """`name.key=value` in the pages is a key of values.yaml; test_peer_charts.py reads the tables of other charts."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    pages = re.sub(
        r"^### Helm values of .*\n\n(?:\|.*\n)*", "", "".join(map(text, PAGES)), flags=re.MULTILINE
    )
    named = re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)+)[=`]", pages)
    groups = {name for name in values if isinstance(values[name], dict)}
    keys = {path for path, _key in SCHEMA.options()}
    ours = [name for name in named if name.partition(".")[0] in groups and name not in keys]

    assert len(ours) > 10
    for name in ours:
        node: Any = values
        for part in name.split("."):
            # Maps such as labels are open: their keys are the user's.
            if node in ({}, None):
                break
            assert part in node, name
            node = node[part]


@each_page
def test_every_query_parses(page: str, tmp_path: Path):
    """promtool takes each as the expression of a rule."""
    rules = [
        {"record": f"a:b:c{number}", "expr": query} for number, query in enumerate(queries(page))
    ]
    if not rules:
        assert page != "install.md"
        return
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))

    checked = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yml"],
        check=False,
        capture_output=True,
        text=True,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_flops_are_given_to_pods_and_jobs(tmp_path: Path):
    """One pod has GPU 0 (100 FLOP/s in two precisions); two share GPU 1 (80); job 42 has both."""
    by_pod, by_job = queries("install.md")
    (tmp_path / "none.yml").write_text("groups: []\n")
    gpu_0, gpu_1 = 'instance="n",gpu="0",uuid="GPU-a"', 'instance="n",gpu="1",uuid="GPU-b"'
    series = {
        f'flopwatch_achieved_flops{{{gpu_0},precision="bf16"}}': "60",
        f'flopwatch_achieved_flops{{{gpu_0},precision="int8"}}': "40",
        f'flopwatch_achieved_flops{{{gpu_1},precision="bf16"}}': "80",
        f'flopwatch_gpu_allocation_info{{{gpu_0},namespace="s",pod="one",container="c"}}': "1",
        f'flopwatch_gpu_allocation_info{{{gpu_1},namespace="s",pod="two",container="c"}}': "1",
        f'flopwatch_gpu_allocation_info{{{gpu_1},namespace="s",pod="three",container="c"}}': "1",
        f'flopwatch_gpu_job_info{{{gpu_0},hpc_job="42"}}': "1",
        f'flopwatch_gpu_job_info{{{gpu_1},hpc_job="42"}}': "1",
    }
    test = {
        "rule_files": ["none.yml"],
        "tests": [
            {
                "input_series": [{"series": s, "values": value} for s, value in series.items()],
                "promql_expr_test": [
                    {
                        "expr": by_pod,
                        "eval_time": "0s",
                        "exp_samples": [
                            {"labels": '{namespace="s",pod="one"}', "value": 100},
                            {"labels": '{namespace="s",pod="two"}', "value": 40},
                            {"labels": '{namespace="s",pod="three"}', "value": 40},
                        ],
                    },
                    {
                        "expr": by_job,
                        "eval_time": "0s",
                        "exp_samples": [{"labels": '{hpc_job="42"}', "value": 180}],
                    },
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))

    result = subprocess.run(
        ["promtool", "test", "rules", "test.yml"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )

    assert result.returncode == 0, result.stdout + result.stderr
