"""A container engine without a registry: podman and runc, and a base that debootstrap makes.

Needs root, and the Debian packages of `make apt-test`. The base, which takes about two minutes to
build, is cached below ~/.cache/flopwatch-tests.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
CACHE = Path.home() / ".cache" / "flopwatch-tests"
# podman records its location in its database: it must be the same in every session.
RUN = Path("/run/flopwatch-tests")
SUITES = {"3.11": "bookworm", "3.13": "trixie"}
TOOLS = ("podman", "runc", "debootstrap")
NETAVARK = Path("/usr/lib/podman/netavark")
_LIMIT = 16384
_KEPT_HOURS = 24
# Whatever is in a base changes its name.
_BASE_REVISION = 1
_PACKAGES = {
    "3.11": "python3.11-venv,python3-distutils,python3-pip-whl,ca-certificates",
    "3.13": "python3.13-venv,python3-pip-whl,ca-certificates",
}
# The official image has its Python in /usr/local, and a pip that installs into it.
_LIKE_THE_OFFICIAL_IMAGE = """
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
wheel=$(ls /usr/share/python-wheels/pip-*.whl)
python{version} "$wheel/pip" install --quiet --no-index --root-user-action=ignore "$wheel"
ln -s /usr/bin/python{version} /usr/local/bin/python
ln -s /usr/bin/python{version} /usr/local/bin/python3
rm -rf /var/cache/apt /var/lib/apt/lists
"""

missing = [tool for tool in TOOLS if shutil.which(tool) is None]
needs_engine = pytest.mark.skipif(
    os.geteuid() != 0 or bool(missing),
    reason="SKIPPED IMAGES: building and running containers needs root"
    if os.geteuid() != 0
    else f"SKIPPED IMAGES: not installed: {', '.join(missing)} (make apt-test)",
)


class Engine:
    """podman with its own storage and configuration. The machine's own setup is not touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "containers.conf").write_text(
            "[engine]\n"
            'runtime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'tmp_dir = "{RUN}/tmp"\nnetwork_cmd_path = ""\n'
            "[containers]\n"
            f"default_ulimits = [{_limits()}]\n" + _network(folder)
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{CACHE}/podman"\nrunroot = "{RUN}/run"\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }

    def __call__(self, *arguments: object, check: bool = True, seconds: float = 300) -> str:
        """Run podman; its standard output."""
        result = self.run(*arguments, seconds=seconds)
        assert not check or result.returncode == 0, f"podman {arguments}: {result.stderr[-4000:]}"
        return result.stdout.strip()

    def run(self, *arguments: object, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run podman; the completed process."""
        return subprocess.run(
            ["podman", *map(str, arguments)],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def base(self, name: str, python: str = "3.11") -> None:
        """Have a base image under this name: Debian with that Python, as the official one has it."""
        archive = CACHE / f"base-{python}-{_BASE_REVISION}.tar"
        if not archive.exists():
            _make_base(archive, python)
        if self.run("image", "exists", name).returncode:
            self("import", archive, name)

    def build(
        self, tag: str, *options: object, base: str, context: Path = ROOT, seconds: float = 600
    ) -> None:
        """Build the Dockerfile on that base, as `docker build` does."""
        self(
            "build", "--format", "docker", "--isolation", "chroot", "--network", "host",
            "--pull=never", "--quiet", *_pip_volumes(self.folder),
            "--build-arg", f"PYTHON_IMAGE={base}", "--tag", tag, *options, context,
            seconds=seconds,
        )  # fmt: skip
        # Stages of builds older than a day: every changed file leaves some.
        self.run("image", "prune", "--force", "--filter", f"until={_KEPT_HOURS}h")


def _network(folder: Path) -> str:
    """Containers find each other by name where netavark and aardvark-dns are installed."""
    if not NETAVARK.exists():
        return ""
    return f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}/networks"\n'


def _limits() -> str:
    """Limits that this process may hand on: podman's own default is above what some machines allow."""
    limits = []
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(number)[1]
        value = _LIMIT if hard == resource.RLIM_INFINITY else min(hard, _LIMIT)
        limits.append(f'"{name}={value}:{value}"')
    return ", ".join(limits)


def _make_base(archive: Path, python: str) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    root = archive.with_suffix(f".{os.getpid()}")
    try:
        _checked(
            [
                "debootstrap",
                "--variant=minbase",
                f"--include={_PACKAGES[python]}",
                SUITES[python],
                root,
            ]
        )
        _checked(["chroot", root, "sh", "-ec", _LIKE_THE_OFFICIAL_IMAGE.format(version=python)])
        _checked(["tar", "-C", root, "-cf", f"{archive}.{os.getpid()}", "."])
        Path(f"{archive}.{os.getpid()}").rename(archive)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _pip_volumes(folder: Path) -> Sequence[str]:
    """How the build reaches packages on this machine: pip's settings and the files they name."""
    listed = subprocess.run(
        ["python3", "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in ("global", "install", ":env:"):
            settings[name] = value.strip("'\"")
    text = "".join(f"{name} = {value}\n" for name, value in settings.items())
    (folder / "pip.conf").write_text(f"[global]\n{text}")
    volumes = ["--volume", f"{folder}/pip.conf:/etc/pip.conf:ro"]
    words = [word.removeprefix("file://") for value in settings.values() for word in value.split()]
    paths = {Path(word) for word in words if word.startswith("/") and Path(word).exists()}
    # An index on disk has its files next to its pages.
    for path in sorted({path.parent if path.name == "simple" else path for path in paths}):
        volumes += ["--volume", f"{path}:{path}:ro"]
    return volumes


def _checked(command: Sequence[object]) -> None:
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, f"{command[0]}: {(result.stdout + result.stderr)[-4000:]}"
