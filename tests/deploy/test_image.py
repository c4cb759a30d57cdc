"""The image, built by a container engine and run as docs/install.md says, with a fake driver."""

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.dockerfile import base_of
from tests.deploy.documents import commands
from tests.deploy.engine import ROOT, Engine, needs_engine
from tests.fake_nvml import H100, FakeNvml, Load


pytestmark = [needs_engine, pytest.mark.timeout(900)]
REVISION = "0123456789abcdef0123456789abcdef01234567"
ASK = "import urllib.request as u, sys; print(u.urlopen('http://127.0.0.1:9907' + sys.argv[1]).read().decode())"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    """The slim image."""
    return image_of(engine)


def image_of(engine: Engine) -> str:
    """Build the slim image, upon a base with the name that the Dockerfile gives it."""
    base = f"docker.io/library/{base_of(ROOT / 'Dockerfile')}"
    engine.base(base)
    engine.build("flopwatch:slim", "--build-arg", f"REVISION={REVISION}", base=base)
    return "localhost/flopwatch:slim"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeNvml]:
    with FakeNvml([H100, H100], tmp_path) as fake:
        yield fake


@pytest.fixture
def container(engine: Engine, image: str, fake: FakeNvml, tmp_path: Path) -> Iterator[str]:
    """The image with the options of docs/install.md; two GPUs under load, and no network."""
    for gpu in fake.gpus:
        gpu.set_load(Load(graphics=0.9, sm=0.8, any_tensor=0.5, hmma_tensor=0.5, dram=0.4))
    name = f"flopwatch-{os.getpid()}"
    mounted, environment = driver(fake, tmp_path)
    engine(*documented(name, "--network", "none", *mounted, *environment))
    yield name
    engine("rm", "--force", "--time", "1", name, check=False)
    engine("volume", "rm", "--force", name, check=False)


def documented(name: str, *here: str) -> list[str]:
    """`docker run` as docs/install.md has it, in this machine's terms.

    There is no NVIDIA runtime and no published port: the test mounts a driver and queries from
    inside.
    """
    build, run = commands("install.md", "Container")[0].replace("\\\n", " ").splitlines()
    assert build.startswith("docker build ")
    assert build.endswith(" --tag flopwatch:slim .")
    words = shlex.split(run)
    assert words[:2] == ["docker", "run"]
    for option, value in (
        ("--gpus", "all"),
        ("--publish", "9907:9907"),
        ("--restart", "unless-stopped"),
    ):
        at = words.index(option)
        assert words[at + 1] == value
        del words[at : at + 2]
    words[words.index("--name") + 1] = name
    words[words.index("--volume") + 1] = f"{name}:/var/lib/flopwatch"
    return [*words[1:-1], *here, f"localhost/{words[-1]}"]


def driver(fake: FakeNvml, folder: Path) -> tuple[list[str], list[str]]:
    """Options that put the fake driver where NVIDIA's container runtime puts the real one."""
    library = shutil.copy(Path(fake.env["LD_LIBRARY_PATH"]) / "libnvidia-ml.so.1", folder)
    control = Path(fake.env["FAKE_NVML_CONTROL"])
    control.chmod(0o666)
    there = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
    mounted = ["--volume", f"{library}:{there}:ro", "--volume", f"{control}:{control}"]
    return mounted, ["--env", f"FAKE_NVML_CONTROL={control}"]


def ask(engine: Engine, container: str, path: str) -> str:
    return engine("exec", container, "python", "-c", ASK, path)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.2)


def values(text: str, name: str) -> list[float]:
    return [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def test_it_says_its_revision(engine: Engine, image: str) -> None:
    """The label, and the command itself."""
    labels = json.loads(engine("inspect", "--format", "{{json .Labels}}", image))

    assert labels["org.opencontainers.image.revision"] == REVISION
    assert REVISION in engine("run", "--rm", "--network", "none", image, "--version")


def test_it_watches_gpus_with_nothing_but_the_driver(engine: Engine, container: str) -> None:
    """Read-only root, no capability, no privilege: healthy, and FLOPS of both GPUs.

    Half of the tensor pipe of an H100 at its idle clock: 0.5 * 132 SMs * 4096 FLOP per clock and SM in
    bf16 * 345 MHz = 9.33e13 FLOP/s.
    """

    def achieved() -> list[float]:
        return [
            flops
            for flops in values(ask(engine, container, "/metrics"), "flopwatch_achieved_flops")
            if flops == pytest.approx(9.33e13, rel=0.01)
        ]

    wait_for(lambda: engine.run("healthcheck", "run", container).returncode == 0)
    wait_for(lambda: len(achieved()) == 2)

    assert values(ask(engine, container, "/metrics"), "flopwatch_gpu_up") == [1.0, 1.0]
    assert engine("exec", container, "id", "-u") == "65532"


def test_its_root_is_read_only_and_its_state_is_kept(engine: Engine, container: str) -> None:
    """Its state is written to the volume."""
    assert engine.run("exec", container, "touch", "/opt/flopwatch/x").returncode == 1
    assert engine.run("exec", container, "touch", "/var/lib/flopwatch/x").returncode == 0


def test_it_does_not_warn_of_what_it_cannot_have(engine: Engine, container: str) -> None:
    """The slim image has no torch and does not need it; `check` says where to get it."""
    wait_for(lambda: "serving" in engine.run("logs", container).stderr)

    assert "probes_off" not in engine.run("logs", container).stderr
    with_probes = engine(
        "run", "--rm", "--network", "none", "--env", "FLOPWATCH_PROBES_ENABLED=true",
        "localhost/flopwatch:slim", "check", check=False,
    )  # fmt: skip
    assert "use the image that is built with --target full" in " ".join(with_probes.split())


def test_it_ends_on_request(engine: Engine, container: str) -> None:
    """SIGTERM as process 1: exit code 0, long before the engine would kill it."""
    wait_for(lambda: engine.run("healthcheck", "run", container).returncode == 0)
    engine("stop", "--time", "60", container)

    assert engine("inspect", "--format", "{{.State.ExitCode}}", container) == "0"


def test_top_is_in_it(engine: Engine, container: str) -> None:
    """`docker exec flopwatch flopwatch top --once` shows the GPUs."""
    wait_for(lambda: engine.run("healthcheck", "run", container).returncode == 0)

    assert "H100" in engine("exec", container, "flopwatch", "top", "--once")


def test_the_contents_are_the_locked_versions(engine: Engine, image: str) -> None:
    """Each distribution with its locked version, flopwatch beside them, and nothing else."""
    listing = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions("
        "path=['/opt/flopwatch/lib/python3.11/site-packages'])}))"
    )
    installed = json.loads(
        engine("run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", listing)
    )
    locked = dict(
        line.split(";")[0].split()[0].split("==")
        for line in (ROOT / "deploy/requirements/slim.txt").read_text().splitlines()
        if "==" in line and not line.startswith((" ", "#")) and "python_version <" not in line
    )

    assert installed.pop("flopwatch")
    assert installed == locked


@pytest.mark.parametrize("service", ["simulator", "exporter"])
def test_the_services_of_compose_are_healthy(engine: Engine, image: str, service: str) -> None:
    """With the command and environment of compose.yml, checked by the image itself."""
    compose = yaml.safe_load((ROOT / "deploy/compose/compose.yml").read_text())
    wanted = compose["services"][service]
    name = f"flopwatch-{service}-{os.getpid()}"
    variables = [f"--env={key}={value}" for key, value in wanted["environment"].items()]
    try:
        engine(
            "run", "--detach", "--name", name, "--network", "none", "--read-only",
            "--cap-drop", "ALL", *variables, image, *wanted["command"],
        )  # fmt: skip
        wait_for(lambda: engine.run("healthcheck", "run", name).returncode == 0)
    finally:
        engine("rm", "--force", "--time", "1", name, check=False)


@pytest.mark.slow
def test_it_builds_upon_the_newest_python(engine: Engine) -> None:
    """The same Dockerfile and the same locks on Python 3.13."""
    base = "localhost/flopwatch-test-base-3.13"
    engine.base(base, "3.13")
    engine.build("flopwatch:slim-3.13", base=base)
    report = json.loads(
        engine("run", "--rm", "--network", "none", "flopwatch:slim-3.13", "check", "--json")
    )

    assert report["healthy"], report["findings"]


# A software event of CPU 0 for all programs, by the daemon's own system call.
OPEN_AN_EVENT = """\
from exporter.collect.cpu import LinuxKernel, attributes
kernel = LinuxKernel()
kernel.close(kernel.open(attributes(1, 0), 0))
print("opened")
"""


def test_the_processors_counters_need_the_documented_options(engine: Engine, image: str) -> None:
    """Those of docs/probes.md; without them the kernel refuses."""
    capability = "--cap-add PERFMON --user 0"
    profile = "--security-opt seccomp=unconfined"
    page = (ROOT / "docs" / "probes.md").read_text()
    command = ("run", "--rm", "--network", "none", "--cap-drop", "ALL", "--entrypoint", "python")
    refused = engine.run(*command, image, "-c", OPEN_AN_EVENT)
    options = f"{capability} {profile}".split()
    opened = engine.run(*command, *options, image, "-c", OPEN_AN_EVENT)

    assert f"`{capability}`" in page
    assert f"`{profile}`" in page
    assert refused.returncode != 0
    assert opened.stdout.strip() == "opened", opened.stderr
