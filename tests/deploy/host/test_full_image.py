"""The image with torch and CUDA's libraries: built as docs/install.md says, about 3 GB of downloads, and run on the processor."""

from collections.abc import Iterator

import pytest

from tests.deploy.dockerfile import base_of
from tests.deploy.documents import DOCS
from tests.deploy.engine import ROOT, Engine, needs_engine
from tests.deploy.host.machine import wait_for
from tests.deploy.test_image import ask


pytestmark = [needs_engine, pytest.mark.slow, pytest.mark.timeout(1800)]
# As a container of docs/install.md, except for the network.
OPTIONS = ("--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")
NAME = "flopwatch-full"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine with the image."""
    assert "`--target full` builds the image with torch" in (DOCS / "install.md").read_text()
    engine = Engine(tmp_path_factory.mktemp("engine"))
    base = f"docker.io/library/{base_of(ROOT / 'Dockerfile')}"
    engine.base(base)
    engine.build("flopwatch:full", "--target", "full", base=base, seconds=1500)
    return engine


@pytest.fixture(scope="module")
def container(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Running, with its state in a volume and a probe cycle every five seconds."""
    engine(
        "run", "--detach", "--name", NAME, *OPTIONS, "--volume", f"{NAME}:/var/lib/flopwatch",
        "--env", "FLOPWATCH_PROBES_INTERVAL=5s", "--env", "FLOPWATCH_PROBES_BUDGET=500ms",
        "localhost/flopwatch:full",
    )  # fmt: skip
    yield NAME
    engine("rm", "--force", "--time", "1", NAME, check=False)
    engine("volume", "rm", "--force", NAME, check=False)


def test_torch_is_found(engine: Engine, container: str) -> None:
    """Of the locked version, built for CUDA."""
    lock = (ROOT / "deploy" / "requirements" / "full.txt").read_text()
    (version,) = (line.split()[0] for line in lock.splitlines() if line.startswith("torch=="))

    said = engine("exec", container, "flopwatch", "check", check=False)
    assert f"torch {version.removeprefix('torch==')}+cu" in said


def test_the_probes_run(engine: Engine, container: str) -> None:
    """As an unprivileged user with a read-only root: the worker starts, and kernels of the processor run."""
    wait_for(
        lambda: "flopwatch_probe_runs_total{" in ask(engine, container, "/metrics"),
        "a probe has run",
        300,
    )

    assert engine("exec", container, "id", "-u") == "65532"
    assert engine.run("exec", container, "touch", "/opt/flopwatch/x").returncode == 1


def test_it_is_distinguished_from_the_slim_image(engine: Engine) -> None:
    """Through a variable that the remedies read."""
    assert "FLOPWATCH_IMAGE=full" in engine(
        "inspect", "--format", "{{.Config.Env}}", "localhost/flopwatch:full"
    )
