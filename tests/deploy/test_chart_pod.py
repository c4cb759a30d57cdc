"""The pod of the chart: privileges, variables, mounts, probes, and what users can change."""

from pathlib import Path

import pytest
import yaml

from exporter import VERSION
from exporter.config.load import ConfigOrigin, load_config, variable_of
from exporter.config.model import SCHEMA
from tests.deploy.manifests import (
    KUBERNETES_VERSIONS,
    OPTIONS,
    container,
    environment,
    of_kind,
    option,
    pod,
    render,
    validate,
)


each_option = pytest.mark.parametrize("values_file", OPTIONS, ids=lambda path: path.stem)


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
        assert (
            context["allowPrivilegeEscalation"] is True
        )  # the API rejects false together with SYS_ADMIN
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
        """A key renamed in the daemon must be renamed here as well."""
        known = {variable_of(path) for path, _key in SCHEMA.options()}
        known.add("FLOPWATCH_CONFIG_FILE")
        named = environment(render(yaml.safe_load(values_file.read_text())))

        assert {name for name in named if name.startswith("FLOPWATCH_")} <= known

    @each_option
    def test_the_daemon_accepts_its_arguments(self, values_file: Path, tmp_path: Path):
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
        """The log level appears once, with the user's value."""
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
        """The pod has the claim, the container uses it; current Kubernetes accepts it."""
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
        """As maps, and as text that uses the release."""
        names = [
            found["metadata"]["name"] for found in of_kind(render(option("pods")), "ConfigMap")
        ]

        assert names == ["mine", "flopwatch-too"]
