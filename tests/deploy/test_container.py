"""The Dockerfile: linted, and its steps run as far as that goes without a container engine."""

import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme
from packaging.requirements import Requirement

from tests.deploy.dockerfile import Stage, lineage, stages


ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
LOCKS = ROOT / "deploy" / "requirements"
HEALTHCHECK = ROOT / "deploy" / "container" / "healthcheck.py"


@pytest.fixture(scope="module")
def built() -> dict[str, Stage]:
    return stages(DOCKERFILE)


class TestDockerfile:
    def test_hadolint_finds_nothing(self):
        """The linter for Dockerfiles has no complaint."""
        result = subprocess.run(
            [Path(sys.executable).with_name("hadolint"), DOCKERFILE],
            check=False,
            capture_output=True,
            text=True,
        )

        assert (result.returncode, result.stdout) == (0, "")

    def test_the_base_is_pinned(self, built: dict[str, Stage]):
        """Every stage builds on the one base, which has a full version, not `latest`."""
        (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)

        assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
        assert {stage.base for stage in built.values()} == {"${PYTHON_IMAGE}", "runtime"}

    def test_the_default_image_is_the_small_one(self, built: dict[str, Stage]):
        """`docker build .` builds the last stage."""
        assert list(built)[-1] == "slim"

    @pytest.mark.parametrize("target", ["slim", "full"])
    def test_both_images_run_as_a_user_that_is_not_root(self, built: dict[str, Stage], target: str):
        """The last word on the user is a number, so that Kubernetes can check it."""
        users = [arguments for word, arguments in lineage(built, target) if word == "USER"]

        assert users == ["65532:65532"]

    @pytest.mark.parametrize("target", ["slim", "full"])
    def test_both_images_declare_their_health_check(self, built: dict[str, Stage], target: str):
        """Entry point, port, stop signal, health check, labels and revision exist."""
        instructions = dict(lineage(built, target))
        environment = " ".join(a for word, a in lineage(built, target) if word == "ENV")

        assert instructions["ENTRYPOINT"] == '["flopwatch"]'
        assert instructions["CMD"] == '["serve"]'
        assert instructions["EXPOSE"] == "9907"
        assert instructions["STOPSIGNAL"] == "SIGTERM"
        assert "healthcheck.py" in instructions["HEALTHCHECK"]
        assert "org.opencontainers.image.revision=" in instructions["LABEL"]
        assert "FLOPWATCH_REVISION=${REVISION}" in environment

    @pytest.mark.parametrize(
        ("target", "capabilities"), [("slim", "utility"), ("full", "compute,utility")]
    )
    def test_each_image_asks_the_runtime_for_what_it_needs(
        self, built: dict[str, Stage], target: str, capabilities: str
    ):
        """NVML is `utility`; kernels need `compute` as well."""
        (environment,) = built[target].all("ENV")
        assert f"NVIDIA_DRIVER_CAPABILITIES={capabilities} " in f"{environment} "

    def test_installed_packages_are_locked_by_hash(self, built: dict[str, Stage]):
        """No install step may fetch a package whose hash is not known in advance."""
        installs = [
            step.strip()
            for stage in built.values()
            for run in stage.all("RUN")
            for step in run.split("&&")
            if " install " in step and "pip" in step
        ]

        assert len(installs) == 5
        for step in installs:
            assert "--require-hashes" in step or "--no-index /wheels/*.whl" in step

    def test_the_context_holds_what_is_copied_and_no_more(self, built: dict[str, Stage]):
        """Every COPY finds its source, and tests and history never reach the build."""
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        copied = [
            source
            for stage in built.values()
            for arguments in stage.all("COPY")
            if not arguments.startswith("--from")
            for source in arguments.split()[:-1]
        ]

        assert copied
        for source in copied:
            assert (ROOT / source).exists(), source
            assert any(f"!{part}" in ignored for part in (source, *map(str, Path(source).parents)))
        assert ignored[1] == "*"
        assert not {"!tests", "!.git", "!grafana"} & set(ignored)


class TestLocks:
    @pytest.mark.parametrize(("name", "extra"), [("slim", None), ("full", "probes")])
    def test_requirements_are_locked_within_their_range(self, name: str, extra: str | None):
        """Each requirement of pyproject.toml has a pin, and the pin fits."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = project["dependencies"] + (
            project["optional-dependencies"][extra] if extra else []
        )
        pins = dict(
            re.findall(
                r"^([a-z0-9-]+)==([^ ;\\]+)", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE
            )
        )

        for requirement in map(Requirement, wanted):
            pin = pins[requirement.name.lower().replace("_", "-")]
            assert requirement.specifier.contains(pin), requirement

    @pytest.mark.parametrize("name", ["slim", "full", "build"])
    def test_each_pin_has_hashes_and_no_address(self, name: str):
        """A lock file names versions and hashes, never this machine's package index."""
        text = (LOCKS / f"{name}.txt").read_text()
        entries = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]

        assert entries
        assert all("--hash=sha256:" in entry for entry in entries)
        assert "://" not in text

    def test_the_slim_image_has_no_torch(self):
        """Passive metrics need neither torch nor CUDA's libraries."""
        text = (LOCKS / "slim.txt").read_text()

        assert not re.search(r"^(torch|numpy|cuda|nvidia-cu)", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_build_steps_make_a_small_environment_that_runs(
    built: dict[str, Stage], tmp_path: Path
):
    """The RUN lines of the stages behind `slim`, in order, in a folder in the place of `/`."""
    _copy_sources(built["build"], tmp_path / "build")
    _copy_sources(built["environment-slim"], tmp_path / "environment")
    # The base image's python and pip are on PATH: here a new environment provides them.
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "python"], check=True)

    _run_steps(built["build"], tmp_path, tmp_path / "build")
    _run_steps(built["environment-slim"], tmp_path, tmp_path / "environment")

    environment = tmp_path / "opt" / "flopwatch"
    (packages,) = environment.glob("lib/python3*/site-packages")
    bytes_installed = sum(p.stat().st_size for p in packages.rglob("*") if p.is_file())
    version = subprocess.run(
        [environment / "bin" / "flopwatch", "--version"],
        check=False,
        capture_output=True,
        text=True,
        env={"FLOPWATCH_REVISION": "abc123", "PATH": "/usr/bin:/bin"},
    )

    assert bytes_installed < 60e6
    assert "revision abc123" in version.stdout
    assert not (packages / "pip").exists()
    assert not (packages / "torch").exists()


def _copy_sources(stage: Stage, target: Path) -> None:
    for arguments in stage.all("COPY"):
        if arguments.startswith("--from"):
            continue
        *sources, _ = arguments.split()
        for source in sources:
            destination = target / source
            destination.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source, destination, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy(ROOT / source, destination)


def _run_steps(stage: Stage, root: Path, folder: Path) -> None:
    for step in stage.all("RUN"):
        here = step.replace("/opt/flopwatch", f"{root}/opt/flopwatch")
        here = here.replace("/wheels", f"{root}/wheels")
        path = f"{root}/python/bin:{os.environ['PATH']}"
        result = subprocess.run(
            ["/bin/sh", "-ec", here],
            check=False,
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr


class _Healthy(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/-/healthy" else 404)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    listening = HTTPServer(("127.0.0.1", 0), _Healthy)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield listening
    listening.shutdown()
    thread.join()
    listening.server_close()


def _check_health(address: str) -> int:
    return subprocess.run(
        [sys.executable, HEALTHCHECK],
        check=False,
        env={**os.environ, "FLOPWATCH_WEB_LISTEN_ADDRESS": address},
    ).returncode


class TestHealthCheck:
    def test_a_server_that_answers_is_healthy(self, server: HTTPServer):
        """The port is taken from the variable that the daemon itself reads."""
        assert _check_health(f"127.0.0.1:{server.server_port}") == 0

    @pytest.mark.parametrize("client_certificates", [False, True])
    def test_https_is_healthy_too(self, server: HTTPServer, *, client_certificates: bool):
        """Whatever the certificate; a server that requires a client certificate counts as serving."""
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("gpu-node-1.example.com").configure_cert(context)
        authority.configure_trust(context)
        if client_certificates:
            context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True)

        assert _check_health(f"127.0.0.1:{server.server_port}") == 0

    def test_an_answer_other_than_200_is_not(
        self, server: HTTPServer, monkeypatch: pytest.MonkeyPatch
    ):
        """A server that fails is not healthy."""
        monkeypatch.setattr(_Healthy, "status", 500)

        assert _check_health(f"127.0.0.1:{server.server_port}") == 1

    def test_a_port_without_a_listener_is_not_an_engine(self, server: HTTPServer):
        """No connection, no health."""
        server.socket.close()

        assert _check_health(f"127.0.0.1:{server.server_port}") == 1
