"""How Prometheus reaches the chart: monitors, rules, dashboards, service and network policy."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import (
    ROOT,
    of_kind,
    option,
    render,
)


def rules_of(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        rule for found in objects for group in found["spec"]["groups"] for rule in group["rules"]
    ]


class TestMonitoring:
    def test_without_an_operator_pods_are_annotated(self):
        """`auto` without the operator's API: no monitor, no rules, but the common annotations."""
        objects = render()
        (daemonset,) = of_kind(objects, "DaemonSet")

        annotations = daemonset["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/scrape"] == "true"
        assert not of_kind(objects, "ServiceMonitor") + of_kind(objects, "PrometheusRule")

    @pytest.mark.parametrize("name", ["servicemonitor", "podmonitor"])
    def test_a_series_outlives_its_pod(self, name: str):
        """The instance is the node; the pod's own labels are dropped, so restarts cause no gaps."""
        objects = render(option(name))
        (monitor,) = of_kind(objects, "ServiceMonitor") + of_kind(objects, "PodMonitor")
        spec = monitor["spec"]
        (endpoint,) = spec.get("endpoints") or spec["podMetricsEndpoints"]

        assert endpoint["relabelings"][0] == {
            "sourceLabels": ["__meta_kubernetes_pod_node_name"],
            "targetLabel": "instance",
        }
        assert endpoint["relabelings"][-1] == {
            "action": "labeldrop",
            "regex": "namespace|pod|container|service|endpoint",
        }
        assert endpoint["honorLabels"] is True
        assert spec["jobLabel"] == "app.kubernetes.io/name"

    def test_a_node_that_is_not_ready_is_scraped(self):
        """A hung driver makes the pod unready, and only its metrics report that."""
        (service,) = of_kind(render(), "Service")

        assert service["spec"]["publishNotReadyAddresses"] is True
        assert service["spec"]["clusterIP"] == "None"

    def test_the_rules_are_the_projects(self, tmp_path: Path):
        """All rules and alerts of deploy/prometheus, and promtool accepts each object as rendered."""
        objects = of_kind(render({"prometheusRule": {"enabled": True}}), "PrometheusRule")
        expected = {
            entry.get("alert") or entry["record"]
            for path in (ROOT / "deploy" / "prometheus").glob("*/*.yml")
            for group in yaml.safe_load(path.read_text())["groups"]
            for entry in group["rules"]
        }
        files = [tmp_path / f"{found['metadata']['name']}.yml" for found in objects]
        for path, found in zip(files, objects, strict=True):
            path.write_text(yaml.safe_dump(found["spec"]))

        checked = subprocess.run(
            ["promtool", "check", "rules", *files], check=False, capture_output=True, text=True
        )

        assert {rule.get("alert") or rule["record"] for rule in rules_of(objects)} == expected
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_alerts_can_be_left_out_and_labelled(self):
        """One alert by its name, all of them, and a label for the team that is paged."""
        chosen = of_kind(render(option("servicemonitor")), "PrometheusRule")
        without = of_kind(render(option("podmonitor")), "PrometheusRule")
        alerts = [rule for rule in rules_of(chosen) if "alert" in rule]

        assert "GPUMissing" not in {rule["alert"] for rule in alerts}
        assert {rule["labels"]["team"] for rule in alerts} == {"inference"}
        assert all(rule["labels"]["severity"] for rule in alerts)
        assert not [rule for rule in rules_of(without) if "alert" in rule]
        assert rules_of(without)

    def test_dashboards_arrive_unchanged(self):
        """Each ConfigMap carries one committed dashboard and the sidecar's label."""
        maps = of_kind(render(option("servicemonitor")), "ConfigMap")
        committed = {
            f"flopwatch-{path.name}": json.loads(path.read_text())
            for path in (ROOT / "grafana" / "dashboards").glob("*.json")
        }

        carried = {name: json.loads(text) for found in maps for name, text in found["data"].items()}
        assert carried == committed
        assert all(found["metadata"]["labels"]["grafana_dashboard"] == "1" for found in maps)
        assert {found["metadata"]["namespace"] for found in maps} == {"monitoring"}

    def test_the_network_policy_admits_prometheus_alone(self):
        """Ingress to the one port from the chosen namespaces; egress to the engines only."""
        (policy,) = of_kind(render(option("networkpolicy")), "NetworkPolicy")

        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        (ingress,) = policy["spec"]["ingress"]
        assert ingress["ports"] == [{"port": 9907, "protocol": "TCP"}]
        assert len(ingress["from"]) == len(policy["spec"]["egress"]) == 1


class TestAlertOverrides:
    def test_a_user_can_set_a_threshold(self):
        """Each field that is given replaces the alert's; the others, and other alerts, stay."""
        plain = self._alerts({})
        name = min(plain)
        changed = self._alerts(
            {name: {"for": "42m", "expr": "vector(1) > 0.5", "labels": {"severity": "info"}}}
        )

        assert changed[name]["for"] == "42m"
        assert changed[name]["expr"] == "vector(1) > 0.5"
        assert changed[name]["labels"]["severity"] == "info"
        assert changed[name]["annotations"] == plain[name]["annotations"]
        assert {key: rule for key, rule in changed.items() if key != name} == {
            key: rule for key, rule in plain.items() if key != name
        }

    def _alerts(self, overrides: dict[str, Any]) -> dict[str, Any]:
        objects = render({"prometheusRule": {"enabled": True, "overrides": overrides}})
        return {
            rule["alert"]: rule
            for found in of_kind(objects, "PrometheusRule")
            for group in found["spec"]["groups"]
            for rule in group["rules"]
            if "alert" in rule
        }


class TestService:
    def test_it_is_headless_by_default(self):
        """One address for all nodes would scrape one of them by chance."""
        (service,) = of_kind(render(), "Service")

        assert service["spec"]["clusterIP"] == "None"

    def test_a_node_port_answers_for_its_node(self):
        """Of the type, port and labels that were asked for."""
        (service,) = of_kind(render(option("pods")), "Service")

        assert service["spec"]["type"] == "NodePort"
        assert service["spec"]["externalTrafficPolicy"] == "Local"
        assert service["spec"]["ports"][0]["port"] == 80
        assert service["spec"]["ports"][0]["nodePort"] == 30907
        assert service["metadata"]["labels"]["a"] == "b"

    def test_it_may_be_left_out(self):
        """With a PodMonitor it is not needed; its test is removed as well."""
        objects = render({"service": {"enabled": False}, "monitor": {"kind": "PodMonitor"}})

        assert of_kind(objects, "Service") == []
        assert of_kind(objects, "Pod") == []

    def test_helm_test_asks_the_service(self):
        """A pod of the same image, not selected by the service, checks the health."""
        (test,) = of_kind(render(), "Pod")
        (service,) = of_kind(render(), "Service")
        (only,) = test["spec"]["containers"]

        assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
        assert only["command"] == ["python", "/usr/local/lib/flopwatch/healthcheck.py"]
        assert only["env"][0]["value"] == "flopwatch.monitored:9907"
        assert not service["spec"]["selector"].items() <= test["metadata"]["labels"].items()
