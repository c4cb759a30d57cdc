"""`make run` on a host without an NVIDIA GPU: what it prints, and which torch it installs.

pip is real and asks a package index on the loopback interface. The index has nothing but torch, so
the installation of flopwatch itself fails at the end: only the steps before it are checked.
"""

import functools
import os
import platform
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
VERSION = next(
    line.removeprefix("torch==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.startswith("torch==")
)
Install = Callable[[str], str]

pytestmark = [
    pytest.mark.skipif(
        platform.machine() != "x86_64", reason="elsewhere every build is for the CPU"
    ),
    pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="a host with an NVIDIA GPU"),
]


def wheel(path: Path, version: str) -> None:
    """A package of this version of torch that can be imported and does nothing."""
    name = f"torch-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch/__init__.py", f"__version__ = {version!r}\n")
        archive.writestr(
            f"{name}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        )
        archive.writestr(
            f"{name}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}/RECORD", "")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of torch's page in a served index; wheels in it are offered."""
    folder = tmp_path_factory.mktemp("index")
    page = folder / "torch"
    page.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    (folder / "url").write_text(f"http://127.0.0.1:{server.server_port}/")
    yield page
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty virtual environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture
def install(index: Path, python: Path) -> Iterator[Install]:
    """Runs the installation with these extras; returns what it prints."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))
    } | {"PIP_INDEX_URL": (index.parent / "url").read_text(), "PIP_CONFIG_FILE": os.devnull}

    def run(extras: str) -> str:
        done = subprocess.run(
            ["deploy/make/install.sh", str(python), extras],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=environment,
            timeout=300,
        )
        assert done.returncode != 0  # the index has none of flopwatch's own dependencies
        return done.stdout

    yield run
    for each in index.iterdir():
        each.unlink()
    subprocess.run(
        [python, "-m", "pip", "uninstall", "--quiet", "--yes", "torch"],
        capture_output=True,
        check=False,
    )


def test_without_a_cpu_build_it_says_what_to_do(index: Path, install: Install) -> None:
    """The index has the build with CUDA libraries only: 2.7 GB, and two ways around them."""
    wheel(index / f"torch-{VERSION}-py3-none-any.whl", VERSION)
    said = install("probes")

    assert said.splitlines()[:2] == [
        (
            "Installing flopwatch with torch for the probes: a download of about 200 MB"
            " (no NVIDIA GPU here: the CPU build)."
        ),
        "Without probes it is about 10 MB: make run EXTRAS=",
    ]
    assert f"The package index in use has no CPU build of torch {VERSION}." in said
    assert "about 2.7 GB" in said
    assert "make run EXTRAS= " in said
    assert "PIP_EXTRA_INDEX_URL=" in said


def test_the_cpu_build_is_taken_where_there_is_one(
    index: Path, install: Install, python: Path
) -> None:
    """Of two builds the one without CUDA libraries; the next time nothing large is announced."""
    wheel(index / f"torch-{VERSION}-py3-none-any.whl", VERSION)
    wheel(index / f"torch-{VERSION}+cpu-py3-none-any.whl", f"{VERSION}+cpu")
    said = install("probes")
    installed = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "2.7 GB" not in said
    assert installed.stdout.strip() == f"{VERSION}+cpu"
    assert install("probes").strip().endswith("about 10 MB; torch is there already.")


def test_without_extras_it_is_small(install: Install) -> None:
    """No torch, and it says so."""
    assert install("") == "Installing flopwatch without probes: a download of about 10 MB.\n"


def test_the_first_steps_name_the_address(tmp_path: Path) -> None:
    """Once a daemon answers, three steps with its address."""
    ready = tmp_path / "-"
    ready.mkdir()
    (ready / "ready").write_text("ready\n")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"127.0.0.1:{server.server_port}"
    try:
        done = subprocess.run(
            ["deploy/make/first-steps.sh", sys.executable, "--web.listen-address", address],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            timeout=120,
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

    assert f"flopwatch serves http://{address}/" in done.stdout
    assert [line[2:4] for line in done.stdout.splitlines() if line.startswith("  ")][:2] == [
        "1.",
        "2.",
    ]
    assert f"  3. Let Prometheus scrape http://{address}/metrics" in done.stdout
