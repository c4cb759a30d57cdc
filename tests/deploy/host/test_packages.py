"""What `make release` builds: installed on a machine with systemd, and removed again."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from deploy.packages import build
from exporter import VERSION
from tests.deploy.documents import commands
from tests.deploy.engine import ROOT, Engine, needs_engine
from tests.deploy.host.machine import Machine


pytestmark = [needs_engine, pytest.mark.slow, pytest.mark.timeout(900)]
DEB_INSTALL, DEB_REMOVE, RPM_INSTALL, RPM_REMOVE, PERF = commands("install.md", "Packages")
SERVES = "curl -sf http://127.0.0.1:9907/metrics | grep '^flopwatch_gpu_up{gpu=\"cpu0\"'"
LEFT = (
    "find / -xdev -iname '*flopwatch*' -not -path '/root/*' -not -path '/proc/*' -not -path '/dist*' "
    "-not -path '/var/log/*' -not -path '/tmp/*' -not -path '/wheels*'"
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, as `make release` writes it."""
    folder = tmp_path_factory.mktemp("release") / "dist"
    assert build.main([str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def ready(machine: Machine, dist: Path) -> Machine:
    """A machine with the release at /dist."""
    machine.engine("cp", dist, f"{machine.name}:/dist")
    machine.type("ln -s /dist dist")
    return machine


def installation(block: str) -> str:
    """Everything after `make release`, which has already built the folder used here."""
    release, install = block.splitlines()
    assert release == "make release"
    assert "-m deploy.packages.build dist" in (ROOT / "Makefile").read_text()
    return install


def by_rpm(command: str, **words: str) -> str:
    """A documented command for this machine, whose rpm knows nothing of Debian's systemd and Python."""
    assert command.startswith("sudo rpm --")
    for word, other in words.items():
        command = command.replace(f"--{word}", other)
    return f"{command.strip()} --nodeps"


def test_the_release_is_complete_and_its_checksums_hold(ready: Machine, dist: Path) -> None:
    """Both packages for both architectures, wheel, source, chart, and a bill for each content."""
    assert {path.name for path in dist.iterdir()} == {
        "SHA256SUMS",
        f"flopwatch-{VERSION}-1.aarch64.rpm",
        f"flopwatch-{VERSION}-1.x86_64.rpm",
        f"flopwatch-{VERSION}-amd64.sbom.json",
        f"flopwatch-{VERSION}-arm64.sbom.json",
        f"flopwatch-{VERSION}-py3-none-any.whl",
        f"flopwatch-{VERSION}.tar.gz",
        f"flopwatch-chart-{VERSION}.tgz",
        f"flopwatch_{VERSION}_amd64.deb",
        f"flopwatch_{VERSION}_arm64.deb",
    }
    ready.type("cd /dist && sha256sum --check --strict --quiet SHA256SUMS")


def test_the_deb_installs_serves_and_is_removed(ready: Machine) -> None:
    """By the commands of docs/install.md: installed it serves, with manual and completion; purged it leaves nothing."""
    ready.type(installation(DEB_INSTALL))
    ready.wait_for(SERVES)
    assert ready.type("stat -c %U /proc/$(systemctl show -P MainPID flopwatch)") == "flopwatch"
    assert ready.type("flopwatch --version").startswith(f"flopwatch {VERSION} (revision ")
    assert "unknown" not in ready.type("flopwatch --version")
    assert ready.type("man --where flopwatch") == "/usr/share/man/man1/flopwatch.1.gz"
    assert "flopwatch" in ready.type(
        ". /usr/share/bash-completion/completions/flopwatch && complete -p flopwatch"
    )
    report = json.loads(ready.type("flopwatch check --json"))
    assert report["healthy"], report["findings"]

    ready.type("echo FLOPWATCH_LOG_LEVEL=debug >>/etc/default/flopwatch")
    ready.type(installation(DEB_INSTALL))
    assert "FLOPWATCH_LOG_LEVEL=debug" in ready.type("cat /etc/default/flopwatch")
    ready.wait_for(SERVES)

    # The script of the bare-metal installation would put another unit above the package's.
    refused = ready.run("deploy/systemd/install.sh --perf")
    assert refused.returncode == 1
    assert "/usr/share/flopwatch/systemd/perf.conf" in refused.stderr
    ready.type(PERF)
    ready.wait_for(SERVES)
    capabilities = "awk '/^CapEff/ {print $2}' /proc/$(systemctl show -P MainPID flopwatch)/status"
    assert int(ready.type(capabilities), 16) == 1 << 38  # CAP_PERFMON
    ready.type("rm -r /etc/systemd/system/flopwatch.service.d")

    ready.type(DEB_REMOVE)
    assert ready.type(LEFT) == ""


def test_the_bill_is_what_is_inside(ready: Machine, dist: Path) -> None:
    """Each distribution of the package with its version, and nothing else."""
    ready.type(f"dpkg --extract /dist/flopwatch_{VERSION}_amd64.deb /tmp/deb")
    listed = ready.type("python3 -m venv /tmp/v && /tmp/v/bin/pip list --format json --path /tmp/deb/usr/lib/flopwatch")  # fmt: skip
    bill = json.loads((dist / f"flopwatch-{VERSION}-amd64.sbom.json").read_text())

    assert {(each["name"], each["version"]) for each in bill["components"]} == {
        (each["name"], each["version"]) for each in json.loads(listed)
    }


def test_the_rpm_installs_serves_and_is_removed(ready: Machine) -> None:
    """By the commands of docs/install.md, and by rpm itself."""
    ready.type(by_rpm(installation(RPM_INSTALL)))
    ready.wait_for(SERVES)
    ready.type(by_rpm(installation(RPM_INSTALL), install="--upgrade --force"))
    ready.wait_for(SERVES)

    ready.type(by_rpm(RPM_REMOVE))
    assert ready.run("systemctl is-active flopwatch").returncode != 0
    assert ready.run("test -e /usr/bin/flopwatch || test -e /usr/lib/flopwatch").returncode == 1


def test_the_source_builds_and_knows_its_revision(ready: Machine) -> None:
    """An sdist has no git folder: its commit is recorded in it."""
    ready.type(f"rm -rf /tmp/s && python3 -m venv /tmp/s && /tmp/s/bin/pip install -q /dist/flopwatch-{VERSION}.tar.gz")  # fmt: skip

    head = ready.type("cat .git/HEAD")
    assert ready.type("/tmp/s/bin/flopwatch --version") == f"flopwatch {VERSION} (revision {head})"


def test_the_chart_is_the_chart(dist: Path) -> None:
    """Each of its files, below a folder of its name."""
    chart = ROOT / "deploy/helm/flopwatch"
    with tarfile.open(dist / f"flopwatch-chart-{VERSION}.tgz") as archive:
        names = set(archive.getnames())

    assert names == {
        f"flopwatch/{path.relative_to(chart)}" for path in chart.rglob("*") if path.is_file()
    }


def test_the_modules_run_on_the_newest_python(ready: Machine, dist: Path, tmp_path: Path) -> None:
    """The same package on Debian's next release, with Python 3.13."""
    engine: Engine = ready.engine
    base = "localhost/flopwatch-test-base-3.13"
    engine.base(base, "3.13")
    said = engine(
        "run", "--rm", "--network", "none", "--volume", f"{dist}:/dist:ro", base, "sh", "-ec",
        f"dpkg --extract /dist/flopwatch_{VERSION}_amd64.deb /\n"
        "rm /usr/local/bin/python*\n"
        "flopwatch --version >&2; flopwatch check --json",
    )  # fmt: skip
    report = json.loads(said)

    assert report["healthy"], report["findings"]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_modules_run_on_each_python_of_this_machine(
    dist: Path, tmp_path: Path, version: str
) -> None:
    """Native modules of every version are in one folder."""
    command = shutil.which(f"python{version}")
    # A version manager's shim works only in its own environment: use the interpreter itself.
    asked = subprocess.run(
        [command or "false", "-c", "import sys; print(sys.executable)"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        pytest.skip(f"no Python {version} here")
    python = asked.stdout.strip()
    subprocess.run(
        ["dpkg", "--extract", dist / f"flopwatch_{VERSION}_amd64.deb", tmp_path], check=True
    )
    said = subprocess.run(
        [python, "-P", "-m", "flopwatch", "check", "--json", "--web.listen-address=127.0.0.1:0"],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(tmp_path / "usr/lib/flopwatch"),
            "FLOPWATCH_PROBES_ENABLED": "false",
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    native = "import bcrypt, msgspec._core, yaml._yaml, sys; print(sys.version_info[:2])"
    loaded = subprocess.run(
        [python, "-P", "-c", native],
        env={"PYTHONPATH": str(tmp_path / "usr/lib/flopwatch")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert json.loads(said)["healthy"]
    assert loaded.strip() == f"({version.replace('.', ', ')})"
