"""The chart: linted and rendered by Helm's engine, for the default and for each option."""

import copy
import json
import os
import shlex
import shutil
import subprocess
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

from exporter.config.load import ConfigOrigin, load_config, variable_of
from exporter.config.model import SCHEMA
from exporter.version import VERSION
from tests.deploy.documents import commands
from tests.deploy.manifests import (
    CHART,
    KUBERNETES_VERSIONS,
    OPTIONS,
    ROOT,
    container,
    environment,
    of_kind,
    option,
    pod,
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
        """What the chart ships is what it accepts."""
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


class TestPrivileges:
    def test_the_default_drops_all_that_can_be_dropped(self):
        """Uid 0 for the kubelet's socket, but without capabilities, escalation or a writable root."""
        objects = render()

        assert container(objects)["securityContext"] == {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert "hostPID" not in pod(objects)
        assert "hostNetwork" not in pod(objects)
        assert pod(objects)["automountServiceAccountToken"] is False

    def test_without_the_socket_it_is_no_root_and_sees_nothing_of_the_node(self):
        """No pod names, no folder of the node, uid 65532."""
        objects = render(option("unprivileged"))

        context = container(objects)["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 65532)
        assert not [volume for volume in pod(objects)["volumes"] if "hostPath" in volume]
        assert environment(objects)["FLOPWATCH_KUBERNETES_POD_RESOURCES"] == "off"

    def test_without_the_socket_it_fits_the_restricted_level(self):
        """Every rule of the Pod Security Standards' level `restricted`, one by one."""
        objects = render(option("unprivileged"))
        context = container(objects)["securityContext"]
        volumes = {kind for volume in pod(objects)["volumes"] for kind in volume if kind != "name"}

        assert not {"hostPID", "hostIPC", "hostNetwork"} & pod(objects).keys()
        assert volumes <= {"configMap", "csi", "downwardAPI", "emptyDir", "projected", "secret"}
        assert context["allowPrivilegeEscalation"] is context["privileged"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"]["type"] in {"RuntimeDefault", "Localhost"}
        assert "hostPort" not in container(objects)["ports"][0]

    def test_mig_adds_the_one_capability_that_it_needs(self):
        """The runtime shows MIG instances to containers with SYS_ADMIN only."""
        objects = render(option("mig"))

        context = container(objects)["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN"]}
        assert context["allowPrivilegeEscalation"] is True  # the API refuses false beside SYS_ADMIN
        assert environment(objects)["NVIDIA_MIG_MONITOR_DEVICES"] == "all"

    def test_only_the_hosts_own_devices_need_a_privileged_container(self):
        """`privileged` comes with gpu.access host, and with nothing else."""
        privileged = {
            values_file.stem
            for values_file in OPTIONS
            if container(render(yaml.safe_load(values_file.read_text())))["securityContext"][
                "privileged"
            ]
        }

        assert privileged == {"gke-values"}

    def test_nothing_may_be_evicted_for_it(self):
        """Its priority places it on a full node only where there is room."""
        (priority,) = of_kind(render(), "PriorityClass")

        assert priority["preemptionPolicy"] == "Never"
        assert pod(render())["priorityClassName"] == priority["metadata"]["name"]


class TestPod:
    @each_option
    def test_each_variable_is_one_that_the_daemon_reads(self, values_file: Path):
        """A key that is renamed in the daemon cannot be forgotten here."""
        known = {variable_of(path) for path, _key in SCHEMA.options()}
        known.add("FLOPWATCH_CONFIG_FILE")
        named = environment(render(yaml.safe_load(values_file.read_text())))

        assert {name for name in named if name.startswith("FLOPWATCH_")} <= known

    @each_option
    def test_the_daemon_accepts_what_it_is_given(self, values_file: Path, tmp_path: Path):
        """Config file and environment of the pod, through the daemon's own loader."""
        objects = render(yaml.safe_load(values_file.read_text()))
        given = environment(objects)
        config = [found["data"]["config.yml"] for found in of_kind(objects, "ConfigMap")
                  if "config.yml" in found["data"]]  # fmt: skip
        if config:
            (tmp_path / "config.yml").write_text(config[0])
        origin = ConfigOrigin(
            file=str(tmp_path / "config.yml") if config else None,
            environment={
                name: value for name, value in given.items() if name != "FLOPWATCH_CONFIG_FILE"
            },
        )

        loaded = load_config(origin)

        assert bool(config) == ("FLOPWATCH_CONFIG_FILE" in given)
        assert str(loaded.state_file) == "/var/lib/flopwatch/state.json"

    @each_option
    def test_each_mount_has_its_volume(self, values_file: Path):
        """Mounts and volumes are the same set, and no path is used twice."""
        objects = render(yaml.safe_load(values_file.read_text()))
        mounts = container(objects)["volumeMounts"]

        assert {mount["name"] for mount in mounts} == {v["name"] for v in pod(objects)["volumes"]}
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)

    def test_probes_bring_their_image_and_memory(self):
        """One option: the image with torch, its resources, and the daemon told to probe."""
        objects = render(option("probes"))

        assert container(objects)["image"] == f"flopwatch/flopwatch:{VERSION}-full"
        assert container(objects)["resources"]["limits"] == {"memory": "8Gi"}
        assert environment(objects)["FLOPWATCH_PROBES_ENABLED"] == "true"
        # The state folder is the one place that operators of the node and the daemon share.
        assert environment(objects)["FLOPWATCH_PROBES_PAUSE_FILE"] == "/var/lib/flopwatch/pause"
        assert container(render())["image"] == f"flopwatch/flopwatch:{VERSION}"

    def test_a_digest_wins_over_the_tag(self):
        """A mirror and a digest make the whole reference."""
        reference = container(render(option("everything")))["image"]

        assert reference == f"registry.example.com/mirror/flopwatch@sha256:{'0' * 64}"

    def test_a_new_configuration_makes_new_pods(self):
        """The checksum in the pod's annotations changes with the configuration."""

        def checksum(interval: str) -> str:
            objects = render({"config": {"sampling": {"interval": interval}}})
            (daemonset,) = of_kind(objects, "DaemonSet")
            return str(daemonset["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

        assert checksum("1s") == checksum("1s") != checksum("2s")

    def test_health_checks_follow_the_web_configuration(self):
        """HTTP, HTTPS, and with client certificates, which the kubelet lacks, a mere connection."""
        plain, tls, clients = (
            container(render(values))["livenessProbe"]
            for values in ({}, option("web"), option("client-certificates"))
        )

        assert plain["httpGet"] == {"path": "/-/healthy", "port": "metrics", "scheme": "HTTP"}
        assert tls["httpGet"]["scheme"] == "HTTPS"
        assert clients["tcpSocket"] == {"port": "metrics"}

    def test_no_variables_of_services_reach_the_daemon(self):
        """Kubernetes would set FLOPWATCH_PORT for a service called flopwatch."""
        assert pod(render())["enableServiceLinks"] is False

    def test_it_runs_where_gpus_are(self):
        """Nodes are chosen by the labels of all common ways to label them, taints tolerated."""
        terms = pod(render())["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]["nodeSelectorTerms"]

        keys = {term["matchExpressions"][0]["key"] for term in terms}
        assert {"nvidia.com/gpu.present", "cloud.google.com/gke-accelerator"} <= keys
        assert pod(render())["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]


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
        """The instance is the node; labels of the pod itself are dropped, so that restarts are no gaps."""
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
        """A hung driver makes the pod unready, and its metrics are what tells of it."""
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


class TestFreshness:
    @pytest.mark.parametrize("folder", ["deploy/helm/flopwatch/files", "deploy/kubernetes"])
    def test_what_is_generated_is_committed_fresh(self, folder: str):
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
        """Each document of deploy/kubernetes fits the schemas, and nothing of Helm is left in it."""
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


class TestCollisions:
    """What a user gives wins over the chart's own, and no key comes twice."""

    def test_labels_of_users_but_not_of_selectors(self):
        """A pod that lost its name would be lost to service, monitor and DaemonSet."""
        objects = render(option("pods"))
        (daemonset,) = of_kind(objects, "DaemonSet")
        labels = daemonset["spec"]["template"]["metadata"]["labels"]

        assert labels["app.kubernetes.io/name"] == "flopwatch"
        assert labels["app.kubernetes.io/version"] == "mine"
        assert (labels["team"], labels["tier"]) == ("inference", "gpu")
        assert daemonset["spec"]["selector"]["matchLabels"].items() <= labels.items()

    def test_annotations_of_users(self):
        """Turning the scrape annotation off turns it off."""
        (daemonset,) = of_kind(render(option("pods")), "DaemonSet")
        annotations = daemonset["spec"]["template"]["metadata"]["annotations"]

        assert annotations["prometheus.io/scrape"] == "false"
        assert annotations["kubectl.kubernetes.io/default-container"] == "mine"

    def test_variables_of_users(self):
        """The log level is there once, and the user's."""
        names = [entry["name"] for entry in container(render(option("pods")))["env"]]

        assert len(names) == len(set(names))
        assert environment(render(option("pods")))["FLOPWATCH_LOG_LEVEL"] == "debug"

    def test_a_security_context_can_be_loosened(self):
        """`false` is a value, too; keys that are not given stay the chart's."""
        context = container(render(option("pods")))["securityContext"]

        assert context["readOnlyRootFilesystem"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


class TestOptionsOfThePod:
    def test_each_reaches_its_place(self):
        """Probes' timing, arguments, containers, history, DNS and security of the pod."""
        objects = render(option("pods"))
        (daemonset,) = of_kind(objects, "DaemonSet")
        daemon, sidecar = pod(objects)["containers"]

        assert daemon["args"] == ["serve", "--log.level=debug"]
        assert daemon["livenessProbe"]["periodSeconds"] == 60
        assert daemon["readinessProbe"]["periodSeconds"] == 30
        assert daemon["startupProbe"]["failureThreshold"] == 30
        assert daemon["startupProbe"]["httpGet"]["path"] == "/-/healthy"
        assert daemon["lifecycle"]["preStop"]
        assert sidecar["name"] == "sidecar"
        assert [each["name"] for each in pod(objects)["initContainers"]] == ["wait"]
        assert pod(objects)["securityContext"] == {"fsGroup": 65532}
        assert pod(objects)["dnsPolicy"] == "Default"
        assert daemonset["spec"]["revisionHistoryLimit"] == 2
        assert daemonset["spec"]["minReadySeconds"] == 5
        assert {found["metadata"].get("namespace") for found in objects} <= {"gpus", None}

    def test_devices_by_dynamic_resource_allocation(self):
        """The pod claims, the container uses; today's Kubernetes takes it."""
        objects = render(
            {
                "resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "all"}],
                "resources": {"claims": [{"name": "gpus"}]},
            }
        )

        assert pod(objects)["resourceClaims"] == [
            {"name": "gpus", "resourceClaimTemplateName": "all"}
        ]
        assert container(objects)["resources"]["claims"] == [{"name": "gpus"}]
        validate(of_kind(objects, "DaemonSet")[0], KUBERNETES_VERSIONS[-1:])

    def test_further_objects_may_be_templates(self):
        """As maps, and as text that knows the release."""
        names = [
            found["metadata"]["name"] for found in of_kind(render(option("pods")), "ConfigMap")
        ]

        assert names == ["mine", "flopwatch-too"]


class TestService:
    def test_it_is_headless_unless_asked(self):
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
        """With a PodMonitor nobody needs it; the test of it goes, too."""
        objects = render({"service": {"enabled": False}, "monitor": {"kind": "PodMonitor"}})

        assert of_kind(objects, "Service") == []
        assert of_kind(objects, "Pod") == []

    def test_helm_test_asks_the_service(self):
        """A pod of the same image, that the service does not select, checks the health."""
        (test,) = of_kind(render(), "Pod")
        (service,) = of_kind(render(), "Service")
        (only,) = test["spec"]["containers"]

        assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
        assert only["command"] == ["python", "/usr/local/lib/flopwatch/healthcheck.py"]
        assert only["env"][0]["value"] == "flopwatch.monitored:9907"
        assert not service["spec"]["selector"].items() <= test["metadata"]["labels"].items()


class TestUmbrella:
    def test_a_chart_that_depends_on_it_can_turn_it_off(self, tmp_path: Path):
        """`condition: flopwatch.enabled`: on by default, and off without a complaint of the schema."""
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


class TestAlertOverrides:
    def test_a_threshold_is_the_users(self):
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


def test_what_the_documentation_installs_is_what_kubernetes_takes():
    """`helm install` of docs/install.md: its chart and each `--set`, through the schemas."""
    block = next(text for text in commands("install.md", "Kubernetes") if "helm install" in text)
    words = shlex.split(block.replace("\\\n", " "))
    assert words[:4] == ["helm", "install", "flopwatch", "deploy/helm/flopwatch"]
    values: dict[str, Any] = {}
    for position, word in enumerate(words):
        if word == "--set":
            key, _, value = words[position + 1].partition("=")
            *groups, name = key.split(".")
            node = values
            for group in groups:
                node = node.setdefault(group, {})
            node[name] = value
    objects = render(values)

    for found in objects:
        validate(found)
    assert container(objects)["image"].startswith("registry.example.com/flopwatch/flopwatch:")
