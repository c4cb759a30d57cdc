"""The chart and the Kubernetes commands of docs/install.md, by the real `helm` and `kubectl`, without a cluster."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter import VERSION
from tests.deploy.documents import commands
from tests.deploy.kubernetes_tools import ToolsUnavailable, tools
from tests.deploy.manifests import CHART, OPTIONS, ROOT, render, validate


each_option = pytest.mark.parametrize("values_file", OPTIONS, ids=lambda path: path.stem)
PLAIN = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))


@pytest.fixture(scope="module")
def path() -> str:
    """PATH with the two commands in front."""
    try:
        return f"{tools()}:{os.environ['PATH']}"
    except ToolsUnavailable as error:
        pytest.skip(f"SKIPPED HELM: helm and kubectl cannot be fetched here: {error}")


def run(path: str, words: list[object], text: str | None = None) -> str:
    result = subprocess.run(
        list(map(str, words)),
        env={"PATH": path, "HOME": "/nonexistent", "KUBECONFIG": "/dev/null"},
        cwd=ROOT, input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{words}: {result.stdout[-2000:]}{result.stderr[-2000:]}"
    return result.stdout


def objects(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and name."""
    found = [document for document in yaml.safe_load_all(text) if document]
    by_name = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(by_name) == len(found)
    return by_name


def template(path: str, chart: Path, values_file: Path) -> str:
    return run(
        path,
        ["helm", "template", "flopwatch", chart, "--namespace", "monitored", "--values", values_file],
    )  # fmt: skip


@each_option
def test_helm_renders_what_the_engine_in_the_tests_renders(path: str, values_file: Path) -> None:
    """So the results of the other chart tests hold for Helm."""
    rendered = objects(template(path, CHART, values_file))
    by_engine = render(yaml.safe_load(values_file.read_text()))

    assert rendered == {(each["kind"], each["metadata"]["name"]): each for each in by_engine}


@each_option
def test_helm_reports_no_problem(path: str, values_file: Path) -> None:
    """Warnings count as errors."""
    run(path, ["helm", "lint", "--strict", CHART, "--values", values_file])


@each_option
def test_kubectl_reads_every_object(path: str, values_file: Path) -> None:
    """It decodes each into its API type and labels it; no cluster is contacted."""
    text = template(path, CHART, values_file)
    labelled = run(
        path, ["kubectl", "label", "--local", "--output", "yaml", "--filename", "-", "seen=yes"], text
    )  # fmt: skip

    seen = labelled.count('seen: "yes"')
    assert seen == len(objects(text))


@pytest.mark.parametrize("manifest", PLAIN, ids=lambda path: path.stem)
def test_kubectl_reads_the_plain_manifests(path: str, manifest: Path) -> None:
    """For those who do not use Helm."""
    names = run(
        path, ["kubectl", "label", "--local", "--output", "name", "--filename", manifest, "seen=yes"]
    )  # fmt: skip

    assert len(names.split()) == len(objects(manifest.read_text()))


def test_the_package_is_the_chart(path: str, tmp_path: Path) -> None:
    """`helm package`, as a release does it, and rendered from there."""
    run(path, ["helm", "package", CHART, "--destination", tmp_path])
    package = tmp_path / f"flopwatch-{VERSION}.tgz"
    default = OPTIONS[0].with_name("default-values.yaml")

    assert template(path, package, default) == template(path, CHART, default)


def documented(start: str) -> list[list[str]]:
    """Each command of the Kubernetes section that begins with these words."""
    found = []
    for block in commands("install.md", "Kubernetes"):
        text = re.sub(
            r"cat > (\S+) <<'YAML'\n(.*?)^YAML$", "", block, flags=re.DOTALL | re.MULTILINE
        )
        found += [
            shlex.split(line)
            for line in text.replace("\\\n", " ").splitlines()
            if line.startswith(start)
        ]
    return found


def test_what_the_documentation_installs_is_what_kubernetes_takes(
    path: str, tmp_path: Path
) -> None:
    """Each `helm install` of docs/install.md as `helm template`, its values file written as the page says."""
    (block,) = (text for text in commands("install.md", "Kubernetes") if "cat > " in text)
    written = re.search(r"cat > (\S+) <<'YAML'\n(.*?)^YAML$", block, re.DOTALL | re.MULTILINE)
    assert written is not None
    (tmp_path / written[1]).write_text(written[2])
    installs = documented("helm install ")
    assert len(installs) == 2
    for words in installs:
        assert words[:2] == ["helm", "install"]
        here = [str(tmp_path / word) if word == written[1] else word for word in words[2:]]
        rendered = run(path, ["helm", "template", "--kube-version", "1.32", *here])
        for each in objects(rendered).values():
            validate(each)
            if each["kind"] == "DaemonSet":
                image = each["spec"]["template"]["spec"]["containers"][0]["image"]
                assert image.startswith("registry.example.com/flopwatch/flopwatch:")


def test_the_documented_engine_is_what_kubernetes_takes(path: str) -> None:
    """`kubectl create deployment` and `kubectl set resources` of docs/install.md, one after the other."""
    (create,) = documented("kubectl create deployment ")
    (limit,) = documented("kubectl set resources ")
    at = create.index("--")
    deployment = run(path, [*create[:at], "--dry-run=client", "--output", "yaml", *create[at:]])
    assert limit[3:5] == ["deployment", "chat"]
    limited = run(
        path, [*limit[:3], "--local", "--output", "yaml", "--filename", "-", *limit[5:]], deployment
    )  # fmt: skip

    (only,) = objects(limited).values()
    (container,) = only["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["vllm", "serve"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
