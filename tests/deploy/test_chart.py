"""The chart: linted and rendered by the Helm engine, its values, and the files generated from it."""

import copy
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helm_python import Chart
from helm_python.chart import lint
from helm_python.errors import HelmError

from exporter import VERSION
from tests.deploy.manifests import (
    CHART,
    OPTIONS,
    ROOT,
    of_kind,
    option,
    render,
    validate,
)


each_option = pytest.mark.parametrize("values_file", OPTIONS, ids=lambda path: path.stem)


class TestChart:
    def test_helm_finds_nothing_wrong(self):
        """`helm lint` has no error and no warning; that an icon is missing is only noted."""
        found = lint(CHART)

        assert found["errors"] == []
        assert [message["error"] for message in found["messages"]] == ["icon is recommended"]

    @each_option
    def test_each_option_is_what_kubernetes_takes(self, values_file: Path):
        """Every object fits the schemas of the oldest and the newest version, unknown keys refused."""
        objects = render(yaml.safe_load(values_file.read_text()))

        assert objects
        for found in objects:
            validate(found)

    def test_the_schemas_would_notice(self):
        """A misspelt field and a wrong type are refused, in Kubernetes' and the operator's kinds."""
        objects = render(option("servicemonitor"))
        for kind, break_it in (
            ("DaemonSet", lambda o: o["spec"].update(upgradeStrategy={})),
            ("Service", lambda o: o["spec"].update(ports="metrics")),
            ("ServiceMonitor", lambda o: o["spec"]["endpoints"][0].update(intervall="15s")),
            ("PrometheusRule", lambda o: o["spec"]["groups"][0]["rules"][0].pop("expr")),
        ):
            broken = copy.deepcopy(of_kind(objects, kind)[0])
            break_it(broken)
            with pytest.raises(jsonschema.ValidationError):
                validate(broken)

    @each_option
    def test_object_names_are_unique_and_labelled(self, values_file: Path):
        """No object overwrites another, and each says what it belongs to."""
        objects = render(yaml.safe_load(values_file.read_text()))

        names = [(found["kind"], found["metadata"]["name"]) for found in objects]
        assert len(names) == len(set(names))
        assert all("app.kubernetes.io/name" in found["metadata"]["labels"] for found in objects)

    def test_the_version_is_the_daemons(self):
        """Chart and daemon are released together."""
        metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())

        assert metadata["appVersion"] == metadata["version"] == VERSION


class TestValues:
    def refusal(self, values: dict[str, Any]) -> str:
        with Chart.load(CHART) as chart, pytest.raises(HelmError) as caught:
            chart.validate_schema(values)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("values", "name"),
        [
            ({"probs": {"enabled": True}}, "probs"),
            ({"probes": {"enable": True}}, "enable"),
            ({"web": {"port": "http"}}, "port"),
            ({"gpu": {"access": "everything"}}, "access"),
            ({"state": {"hostPath": "relative"}}, "hostPath"),
            ({"monitor": {"interval": "often"}}, "interval"),
            ({"image": {"digest": "latest"}}, "digest"),
        ],
    )
    def test_a_mistake_is_refused_by_name(self, values: dict[str, Any], name: str):
        """An unknown key, a wrong type and a wrong value are each named."""
        assert name in self.refusal(values)

    def test_defaults_and_options_pass(self):
        """The chart accepts what it ships."""
        with Chart.load(CHART) as chart:
            chart.validate_schema({})
            for values_file in OPTIONS:
                chart.validate_schema(yaml.safe_load(values_file.read_text()))

    def test_every_value_has_a_schema_and_every_schema_a_value(self):
        """The schema lists exactly the keys of values.yaml, at every level that is closed."""
        schema = json.loads((CHART / "values.schema.json").read_text())
        values = yaml.safe_load((CHART / "values.yaml").read_text())

        def paths_of_schema(node: dict[str, Any], path: str = "") -> Iterator[str]:
            for key, child in node.get("properties", {}).items():
                yield f"{path}.{key}"
                yield from paths_of_schema(child, f"{path}.{key}")

        def paths_of_values(
            node: Any, node_schema: dict[str, Any], path: str = ""
        ) -> Iterator[str]:
            if isinstance(node, dict) and "properties" in node_schema:
                for key, child in node.items():
                    yield f"{path}.{key}"
                    below = node_schema["properties"].get(key, {})
                    yield from paths_of_values(child, below, f"{path}.{key}")

        optional = {".global", ".resources.claims", ".probes.resources.claims"}
        assert set(paths_of_schema(schema)) - optional == set(paths_of_values(values, schema))

    def test_everything_but_maps_is_closed(self):
        """Each level with named keys refuses others."""
        schema = json.loads((CHART / "values.schema.json").read_text())

        def open_levels(node: dict[str, Any], path: str) -> Iterator[str]:
            if "properties" in node and node.get("additionalProperties") is not False:
                yield path
            for key, child in node.get("properties", {}).items():
                yield from open_levels(child, f"{path}.{key}")

        assert list(open_levels(schema, "")) == []


class TestFreshness:
    @pytest.mark.parametrize("folder", ["deploy/helm/flopwatch/files", "deploy/kubernetes"])
    def test_generated_files_are_up_to_date(self, folder: str):
        """Rules, dashboards and plain manifests are what deploy/helm/sync.py writes now."""
        sys.path.insert(0, os.fspath(ROOT / "deploy" / "helm"))
        try:
            import sync
        finally:
            sys.path.pop(0)
        expected = sync.chart_files() if folder.endswith("files") else sync.manifests()

        present = {path: path.read_text() for path in (ROOT / folder).rglob("*.*")}

        assert present == expected, "stale: run `python deploy/helm/sync.py`"

    def test_the_plain_manifests_are_what_kubernetes_takes(self):
        """Each document of deploy/kubernetes fits the schemas, and no Helm template is left in it."""
        files = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))

        assert [path.name for path in files] == [
            "flopwatch-probes.yaml",
            "flopwatch.yaml",
            "prometheus-operator.yaml",
        ]
        for path in files:
            assert "helm.sh" not in path.read_text()
            for found in yaml.safe_load_all(path.read_text()):
                validate(found)


class TestUmbrella:
    def test_a_chart_that_depends_on_it_can_turn_it_off(self, tmp_path: Path):
        """`condition: flopwatch.enabled`: on by default, and off without a schema error."""
        umbrella = tmp_path / "platform"
        shutil.copytree(CHART, umbrella / "charts" / "flopwatch")
        (umbrella / "Chart.yaml").write_text(
            "apiVersion: v2\nname: platform\nversion: 1.0.0\ndependencies:\n"
            f"  - {{name: flopwatch, version: {VERSION}, condition: flopwatch.enabled}}\n"
        )
        with Chart.load(umbrella) as chart:
            on = chart.render({"flopwatch": {"enabled": True}, "global": {"a": 1}}, name="p")
            off = chart.render({"flopwatch": {"enabled": False}}, name="p")

        assert any("kind: DaemonSet" in text for text in on.values())
        assert not any("kind: DaemonSet" in text for text in off.values())
