"""The compose project, started and stopped as docs/install.md says, by podman-compose.

Prometheus and Alertmanager are Debian's, in images with the names that compose.yml gives. Debian has no Grafana:
its stand-in serves files, which shows that provisioning and dashboards are mounted where Grafana reads them.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.documents import commands
from tests.deploy.engine import NETAVARK, ROOT, Engine, needs_engine
from tests.deploy.test_image import image_of


# What netavark does in a network namespace: a bridge, and address translation.
_BRIDGE = "ip link add name probe type bridge && iptables --table nat --list --numeric"


def _has_bridges() -> bool:
    """Whether this kernel, and this process's rights, allow a network of containers."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--net", "--mount", "sh", "-c", _BRIDGE]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = [
    needs_engine,
    pytest.mark.skipif(
        not NETAVARK.exists(),
        reason="SKIPPED COMPOSE: not installed: netavark, aardvark-dns (make apt-test)",
    ),
    pytest.mark.skipif(
        not _has_bridges(),
        reason="SKIPPED COMPOSE: no bridge or no NAT in a network namespace here",
    ),
    pytest.mark.timeout(900),
]
COMPOSE = ROOT / "deploy" / "compose" / "compose.yml"
UP, DOWN = commands("install.md", "Compose")[0].splitlines()
BASE = "localhost/flopwatch-test-base"
PROMETHEUS = "http://127.0.0.1:9090"
ALERTMANAGER = "http://127.0.0.1:9093"
GRAFANA = "http://127.0.0.1:3000"


_NETWORK = """
ip link set lo up
mkdir -p /run/containers/networks
mount -t tmpfs tmpfs /run/containers/networks
echo
exec sleep infinity
"""


class Project:
    """The project in its own network namespace: the documented ports are free there.

    podman's network records and name server belong to that namespace, so they are separate as well.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._network = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-ec", _NETWORK],
            stdout=subprocess.PIPE,
        )
        assert self._network.stdout is not None
        self._network.stdout.readline()

    def type(self, command: str, *more: object) -> str:
        """A command of the documentation, with podman-compose for `docker compose`; what it prints."""
        words = shlex.split(command)
        assert words[:2] == ["docker", "compose"]
        compose = [sys.executable, "-m", "podman_compose"]
        files = [word for file in more for word in ("--file", str(file))]
        result = self._run(*compose, *words[2:4], *files, *words[4:])
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def podman(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("podman", *arguments)

    def get(self, address: str) -> Any:
        """JSON from an address on the host; None while there is no answer."""
        result = self._run("curl", "--silent", "--fail", "--max-time", "5", address)
        return json.loads(result.stdout) if result.returncode == 0 else None

    def close(self) -> None:
        assert self._network.stdout is not None
        self._network.kill()
        self._network.wait()
        self._network.stdout.close()

    def _run(self, *command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *("nsenter", "--net", "--mount", f"--target={self._network.pid}", f"--wd={ROOT}"),
                *map(str, command),
            ],
            env=self._engine.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine that has all images of compose.yml."""
    engine = Engine(tmp_path_factory.mktemp("engine"))
    engine("tag", image_of(engine), "localhost/flopwatch:local")
    engine.base(BASE)
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name, copied, command in (
        ("prometheus", ["/usr/bin/prometheus"], ["/usr/bin/prometheus"]),
        (
            "alertmanager",
            ["/usr/bin/prometheus-alertmanager", "/usr/share/prometheus"],
            ["/usr/bin/prometheus-alertmanager"],
        ),
        ("grafana", [], ["python3", "-m", "http.server", "--directory", "/", "3000"]),
    ):
        _stand_in(engine, f"docker.io/{services[name]['image']}", copied, command)
    return engine


def _stand_in(engine: Engine, name: str, copied: list[str], command: list[str]) -> None:
    """These files of the host in an image of that name."""
    container = f"flopwatch-stand-in-{os.getpid()}"
    engine("create", "--name", container, BASE, "true")
    try:
        for path in copied:
            engine("cp", path, f"{container}:{path}")
        engine(
            "commit", "--quiet", "--format", "docker",
            "--change", f"ENTRYPOINT {json.dumps(command)}", "--change", "CMD []",
            "--change", "STOPSIGNAL SIGKILL", container, name,
        )  # fmt: skip
    finally:
        engine("rm", "--force", container)


@pytest.fixture(scope="module")
def project(engine: Engine) -> Iterator[Project]:
    """Up, as documented; down in the end."""
    project = Project(engine)
    try:
        project.type(DOWN)  # of an interrupted run
        project.type(UP)
        yield project
    finally:
        try:
            project.type(DOWN)
        finally:
            project.close()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.5)


def query(project: Project, expression: str) -> list[dict[str, Any]]:
    asked = urllib.parse.urlencode({"query": expression})
    answer = project.get(f"{PROMETHEUS}/api/v1/query?{asked}")
    return list(answer["data"]["result"]) if answer else []


def test_the_fleet_is_healthy_and_scraped(project: Project) -> None:
    """Three scenarios of two hosts each: six targets, found by HTTP, all up.

    mixed-fleet, straggler and thermal-throttling have 8 GPUs on each host: 3 * 2 * 8 = 48.
    """
    wait_for(lambda: _healthy(project, "simulator"), "the simulator is healthy")
    wait_for(lambda: len(query(project, "up{job='flopwatch'} == 1")) == 6, "six targets are up")
    wait_for(
        lambda: [s["value"][1] for s in query(project, "count(flopwatch_gpu_up == 1)")] == ["48"],
        "48 GPUs are up",
    )


def _healthy(project: Project, service: str) -> bool:
    listed = project.podman(
        "ps", "--quiet", "--filter", f"label=com.docker.compose.service={service}"
    )
    name = listed.stdout.strip()
    return bool(name) and project.podman("healthcheck", "run", name).returncode == 0


def test_every_rule_is_loaded_and_none_fails(project: Project) -> None:
    """As many as in the files, each evaluated without an error."""
    written = sum(
        len(group["rules"])
        for folder in ("rules", "alerts")
        for path in (ROOT / "deploy/prometheus" / folder).glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
    )
    wait_for(lambda: project.get(f"{PROMETHEUS}/api/v1/rules"), "Prometheus answers")
    groups = project.get(f"{PROMETHEUS}/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert len(rules) == written
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []


def test_prometheus_found_alertmanager(project: Project) -> None:
    """By the name of its service; and Alertmanager has the receivers of alertmanager.yml."""

    def active() -> list[str]:
        answer = project.get(f"{PROMETHEUS}/api/v1/alertmanagers")
        return [found["url"] for found in answer["data"]["activeAlertmanagers"]] if answer else []

    wait_for(active, "an Alertmanager is known")
    assert active() == ["http://alertmanager:9093/api/v2/alerts"]
    wait_for(lambda: project.get(f"{ALERTMANAGER}/api/v2/receivers"), "Alertmanager answers")
    receivers = [found["name"] for found in project.get(f"{ALERTMANAGER}/api/v2/receivers")]
    assert receivers == ["pager", "chat", "digest"]


def test_grafana_gets_its_dashboards_and_its_data_source(project: Project) -> None:
    """Where its provisioning reads them; the home dashboard is one of them."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    wait_for(lambda: project.get(f"{GRAFANA}{home}"), "the home dashboard is there")
    listed = project.podman(
        "exec", _container(project, "grafana"), "sh", "-c",
        "cat /etc/grafana/provisioning/dashboards/*.yml; ls /var/lib/grafana/dashboards",
    ).stdout  # fmt: skip

    assert "path: /var/lib/grafana/dashboards" in listed
    for path in (ROOT / "grafana" / "dashboards").glob("*.json"):
        assert path.name in listed.split()
    data_source = project.podman(
        "exec", _container(project, "grafana"), "cat",
        "/etc/grafana/provisioning/datasources/prometheus.yml",
    ).stdout  # fmt: skip
    assert yaml.safe_load(data_source)["datasources"][0]["url"] == "http://prometheus:9090"


def _container(project: Project, service: str) -> str:
    return project.podman(
        "ps", "--quiet", "--filter", f"label=com.docker.compose.service={service}"
    ).stdout.strip()


def test_down_leaves_nothing(project: Project) -> None:
    """No container, no volume, no network of the project."""
    listings = (
        ("ps", "--all", "--format", "{{.Names}}"),
        ("volume", "ls", "--format", "{{.Name}}"),
        ("network", "ls", "--format", "{{.Name}}"),
    )

    def of_the_project() -> list[list[str]]:
        return [
            [
                name
                for name in project.podman(*words).stdout.split()
                if name.startswith("flopwatch_")
            ]
            for words in listings
        ]

    containers, volumes, networks = of_the_project()
    project.type(DOWN)

    assert len(containers) == 4
    assert volumes
    assert networks
    assert of_the_project() == [[], [], []]


@pytest.mark.slow
def test_an_alert_reaches_alertmanager(engine: Engine, tmp_path: Path) -> None:
    """A GPU that is lost five minutes into its scenario, played at sixty times the pace.

    The same project with another command of the simulator. GPU 6 of the first host; the alert waits a minute.
    """
    override = tmp_path / "override.yml"
    command = [
        "simulate",
        "--web.listen-address",
        ":9908",
        "--pace",
        "60",
        "--scenario",
        "lost-gpu",
    ]
    override.write_text(yaml.safe_dump({"services": {"simulator": {"command": command}}}))
    project = Project(engine)
    try:
        project.type(DOWN)  # of another test, should it have failed
        project.type(UP, override)

        def lost() -> list[dict[str, str]]:
            alerts = project.get(f"{ALERTMANAGER}/api/v2/alerts") or []
            return [a["labels"] for a in alerts if a["labels"]["alertname"] == "GPULost"]

        wait_for(lost, "GPULost is in Alertmanager", 600)
        assert [(labels["gpu"], labels["severity"]) for labels in lost()] == [("6", "critical")]
    finally:
        try:
            project.type(DOWN, override)
        finally:
            project.close()
