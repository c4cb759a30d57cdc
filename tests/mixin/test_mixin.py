"""The mixin is the shipped rules, dashboards and thresholds in Jsonnet, the language of mixins."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import _jsonnet
import yaml

from exporter.findings import KINDS, THRESHOLDS, Thresholds
from mixin.build import main, outputs, rule_files, stale
from mixin.config import SETTINGS
from mixin.source import Alert, Record


ROOT = Path(__file__).parents[2]


def rendered(expression: str, config: str = "{}") -> Any:
    """A field of the mixin, rendered by Jsonnet itself."""
    source = f"local m = (import 'mixin/mixin.libsonnet') + {{ _config+:: {config} }}; {expression}"
    return json.loads(_jsonnet.evaluate_snippet("test.jsonnet", source, jpathdir=[str(ROOT)]))


def shipped(folder: str) -> dict[str, Any]:
    """The groups of the shipped YAML, by name."""
    return {
        group["name"]: group
        for path in (ROOT / "deploy" / "prometheus" / folder).glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
    }


def groups(expression: str, config: str = "{}") -> dict[str, Any]:
    return {group["name"]: group for group in rendered(expression, config)["groups"]}


def test_everything_is_fresh() -> None:
    """`python -m mixin.build` would change nothing."""
    assert stale() == []
    assert main(["--check"]) == 0


def test_jsonnet_renders_what_is_shipped() -> None:
    """With the default settings Jsonnet and YAML are the same rules and alerts, word for word."""
    assert groups("m.prometheusRules") == shipped("rules")
    assert groups("m.prometheusAlerts") == shipped("alerts")


def test_settings_reach_the_rules() -> None:
    """Another job, another threshold, another place for runbooks and Grafana."""
    config = """{
      selector: 'job="gpus"', memoryHotCelsius: 90, runbooks: 'https://wiki.example', grafana: 'https://g.example',
      host: 'cluster, job, instance, rack',
    }"""
    alerts = {
        rule["alert"]: rule
        for group in groups("m.prometheusAlerts", config).values()
        for rule in group["rules"]
    }

    assert alerts["GPUMemoryHot"]["expr"].endswith(">= 90")
    assert (
        alerts["GPUMemoryHot"]["annotations"]["runbook_url"]
        == "https://wiki.example/GPUMemoryHot.md"
    )
    assert alerts["GPUMemoryHot"]["annotations"]["dashboard"].startswith(
        "https://g.example/d/flopwatch-gpu?"
    )
    assert alerts["FlopwatchNoTargets"]["expr"] == 'absent(up{job="gpus"})'
    assert "by (cluster, job, instance, rack)" in alerts["FlopwatchDown"]["expr"]


def test_every_dashboard_is_in_the_mixin() -> None:
    """Each with its uid."""
    boards = rendered("m.grafanaDashboards")

    assert set(boards) == {path.name for path in (ROOT / "grafana" / "dashboards").glob("*.json")}
    assert all(board["uid"].startswith("flopwatch-") for board in boards.values())


def test_every_setting_is_used() -> None:
    """A threshold that no rule reads would have no effect; the page's own thresholds are listed."""
    text = "".join(
        str(rule) for file in rule_files() for group in file.groups for rule in group.rules
    )
    unused = {name for name in SETTINGS if f"%{{{name}}}" not in text}

    assert unused - {"runbooks", "grafana"} == set()
    assert set(THRESHOLDS) <= set(SETTINGS)


def test_alerts_speak_of_findings_that_exist() -> None:
    """An alert on a GPU uses the same words as the page's finding."""
    for file in rule_files():
        for group in file.groups:
            for rule in group.rules:
                if isinstance(rule, Alert) and rule.finding:
                    assert rule.finding in KINDS


def test_no_rule_aggregates_without() -> None:
    """`without` keeps undeclared labels, and every one of them splits the groups."""
    for file in rule_files():
        for group in file.groups:
            for rule in group.rules:
                assert isinstance(rule, Record | Alert)
                assert "without (" not in rule.expr, rule.name
                assert "ignoring (" not in rule.expr, rule.name


def test_no_alternative_depends_on_labels_that_an_engine_adds() -> None:
    """A recorded series after `or` is matched by declared labels: vmalert adds its external labels to what it records.

    Without `on` such a series would exist beside the one that it replaces, and vmalert rejects
    both.
    """
    for file in rule_files():
        for group in file.groups:
            for rule in group.rules:
                assert not re.search(r"(?m)^\s*or [a-z_]+:flopwatch", rule.expr), rule.name
                assert not re.match(r"\(\s*[a-z_]+:flopwatch", rule.expr), rule.name


def test_outputs_have_no_placeholder_left() -> None:
    """Every setting of the shipped YAML is filled in."""
    for path, text in outputs().items():
        assert "%{" not in text, path


def chart_rules(settings: dict[str, Any]) -> dict[str, Any]:
    """Alerts by name, as the chart renders them with these settings."""
    from helm_python import Chart

    values = {"prometheusRule": {"enabled": True, "settings": settings}}
    with Chart.load(ROOT / "deploy" / "helm" / "flopwatch") as chart:
        manifest = chart.render(values, name="flopwatch", namespace="flopwatch")
    (text,) = [text for path, text in manifest.items() if path.endswith("prometheusrule.yaml")]
    return {
        rule["alert"]: rule
        for document in yaml.safe_load_all(text)
        if document
        for group in document["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }


def test_the_chart_renders_what_is_shipped() -> None:
    """By default the chart has the expressions and texts of deploy/prometheus."""
    shipped_alerts = {
        rule["alert"]: rule for group in shipped("alerts").values() for rule in group["rules"]
    }
    found = chart_rules({})

    assert set(found) == set(shipped_alerts)
    for name, rule in found.items():
        assert rule["expr"] == shipped_alerts[name]["expr"]
        assert rule["annotations"] == shipped_alerts[name]["annotations"]


def test_thresholds_are_values_of_the_chart() -> None:
    """A threshold and Grafana's address as values; the chart's schema knows all settings by name."""
    found = chart_rules(
        {"memoryHotCelsius": 90, "grafana": "https://g.example", "heatLossWarning": 0.1}
    )
    schema = json.loads((ROOT / "deploy/helm/flopwatch/values.schema.json").read_text())
    settings = schema["properties"]["prometheusRule"]["properties"]["settings"]

    assert found["GPUMemoryHot"]["expr"].endswith(">= 90")
    assert found["GPUClocksHeldDownByHeat"]["expr"].endswith("> 0.1")
    assert found["GPULost"]["annotations"]["dashboard"].startswith("https://g.example/d/")
    assert settings["propertyNames"]["enum"] == list(SETTINGS)


def chart_config(values: dict[str, Any]) -> dict[str, Any]:
    """The daemon's configuration as the chart writes it; empty where it writes none."""
    from helm_python import Chart

    with Chart.load(ROOT / "deploy" / "helm" / "flopwatch") as chart:
        manifest = chart.render(values, name="flopwatch", namespace="flopwatch")
    texts = [text for path, text in manifest.items() if path.endswith("templates/configmap.yaml")]
    documents = [document for text in texts for document in yaml.safe_load_all(text) if document]
    return dict(yaml.safe_load(documents[0]["data"]["config.yml"])) if documents else {}


def test_the_daemon_has_the_rules_thresholds_as_options() -> None:
    """Each option of `findings` is a setting of the rules, with the same default, and in camel case the same name."""
    defaults = Thresholds()
    for field in dataclasses.fields(defaults):
        first, *rest = field.name.split("_")
        setting = first + "".join(word.title() for word in rest)
        assert SETTINGS[setting].default == getattr(defaults, field.name), setting


def test_a_threshold_of_the_chart_reaches_rules_and_daemon() -> None:
    """The chart writes a shared threshold into the configuration too; what `config` says stays, and no other setting goes there."""
    rules = {"heatLossWarning": 0.1, "memoryHotCelsius": 90, "usefulDrop": 0.5}
    config = {"findings": {"memory_hot_celsius": 92}, "log": {"level": "debug"}}

    assert chart_config({"prometheusRule": {"settings": rules}, "config": config}) == {
        "findings": {"heat_loss_warning": 0.1, "memory_hot_celsius": 92},
        "log": {"level": "debug"},
    }
    assert chart_config({}) == {}
    every = {setting: threshold.value for setting, threshold in THRESHOLDS.items()}
    found = chart_config({"prometheusRule": {"settings": every}})["findings"]
    assert set(found) == {field.name for field in dataclasses.fields(Thresholds)}
