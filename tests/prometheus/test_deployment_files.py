"""The files of deploy/prometheus and deploy/compose fit together, checked without an engine."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.rules_history import long_reads, recorded_level, rule_groups


ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
PROMETHEUS = ROOT / "deploy" / "prometheus"


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((COMPOSE / "compose.yml").read_text()))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_scrape_configuration_is_valid() -> None:
    """promtool accepts the scrape configuration together with its rule files."""
    done = subprocess.run(
        ["promtool", "check", "config", str(PROMETHEUS / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_compose_scrape_configuration_is_valid(tmp_path: Path) -> None:
    """With the mounts of the compose file in place promtool accepts its scrape configuration."""
    for mount in compose()["services"]["prometheus"]["volumes"]:
        source, target, *_ = mount.split(":")
        if target.startswith("/etc/prometheus/"):
            (tmp_path / target.removeprefix("/etc/prometheus/")).symlink_to(
                (COMPOSE / source).resolve()
            )
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")
def test_alertmanager_configuration_is_valid() -> None:
    """amtool accepts routes, receivers and inhibitions."""
    done = subprocess.run(
        ["amtool", "check-config", str(PROMETHEUS / "alertmanager.yml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_inhibitions_name_alerts_that_exist() -> None:
    """Every alert that inhibits another is one of ours."""
    known = {
        rule["alert"]
        for path in (PROMETHEUS / "alerts").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    rules = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())["inhibit_rules"]
    sources = {
        name
        for rule in rules
        for matcher in rule["source_matchers"]
        for name in matcher.split('"')[1].split("|")
    }

    assert sources <= known


@pytest.mark.parametrize("name", sorted(compose()["services"]))
def test_mounted_files_exist(name: str) -> None:
    """Every bind mount of a service is a file or folder of this repository, mounted read-only."""
    for mount in compose()["services"][name].get("volumes", []):
        source, _target, *mode = mount.split(":")
        if source.startswith("."):
            assert (COMPOSE / source).resolve().exists(), mount
            assert mode == ["ro"], mount
        else:
            assert source in compose()["volumes"], mount


@pytest.mark.parametrize("name", sorted(compose()["services"]))
def test_ports_are_bound_to_this_machine(name: str) -> None:
    """No port of the trial stack is open to the network."""
    for port in compose()["services"][name].get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_grafana_is_provisioned_with_what_is_mounted() -> None:
    """The dashboards' folder in the provisioning is the one that the compose file mounts them to."""
    provider = yaml.safe_load(
        (COMPOSE / "grafana/provisioning/dashboards/flopwatch.yml").read_text()
    )
    path = provider["providers"][0]["options"]["path"]
    mounts = compose()["services"]["grafana"]["volumes"]

    assert f"../../grafana/dashboards:{path}:ro" in mounts
    home = compose()["services"]["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ]
    assert (ROOT / "grafana" / "dashboards" / Path(home).name).is_file()


def test_the_scaling_benchmark_can_write_the_past_of_every_recorded_series() -> None:
    """It knows the labels of each level that a rule looks back to."""
    reads = long_reads(rule_groups(PROMETHEUS))
    recorded = {read.name for read in reads if ":" in read.name}

    assert {"gpu:", "gpu_workload:", "workload:"} <= {recorded_level(name) for name in recorded}
