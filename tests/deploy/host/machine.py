"""A machine in a container: systemd as process 1, Slurm, two users, and a checkout of this project."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.deploy.engine import CACHE, ROOT, Engine


BASE = "localhost/flopwatch-test-base"
IMAGE = "localhost/flopwatch-test-host:1"
_PACKAGES = (
    "systemd systemd-sysv dbus curl sudo procps util-linux bsdutils iproute2 python3-venv man-db "
    "bash-completion slurmctld slurmd slurm-client munge rpm"
)
# glibc resolves no name while there is only the loopback address.
ADDRESS = "10.99.0.1"
_SLURM_CONF = f"""\
ClusterName=test
SlurmctldHost=node1({ADDRESS})
NodeName=node1 NodeAddr={ADDRESS} CPUs=2 RealMemory=500 Gres=gpu:4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP OverSubscribe=NO
GresTypes=gpu
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmUser=slurm
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
JobAcctGatherType=jobacct_gather/none
Prolog=/etc/slurm/prolog.d/*
Epilog=/etc/slurm/epilog.d/*
"""


class Machine:
    """One container. Commands run as a person would type them, in root's shell in the checkout."""

    def __init__(self, engine: Engine, name: str, folder: Path) -> None:
        self.engine = engine
        self.name = name
        self._wheels = folder / "wheels"
        self._checkout = folder / "checkout"

    def start(self) -> None:
        """Boot it."""
        _have_image(self.engine)
        _download(self._wheels)
        _copy_project(self._checkout)
        self.engine(
            "run", "--detach", "--name", self.name, "--hostname", "node1", "--systemd=always",
            "--network", "none", "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE",
            "--volume", f"{self._checkout}:/root/flopwatch", "--volume", f"{self._wheels}:/wheels:ro",
            IMAGE, "/sbin/init",
        )  # fmt: skip
        self.wait_for("systemctl is-system-running | grep -E 'running|degraded'")
        self.type(
            f"ip address add {ADDRESS}/32 dev lo\n"
            "printf '[global]\\nno-index = true\\nfind-links = /wheels\\n' >/etc/pip.conf\n"
            "useradd --create-home alice; useradd --create-home bob"
        )

    def stop(self) -> None:
        """Remove it."""
        self.engine("rm", "--force", "--time", "1", self.name, check=False)

    def type(self, words: str, *, check: bool = True, user: str = "root") -> str:
        """Run this command in the checkout; its output."""
        result = self.run(words, user=user)
        said = result.stdout + result.stderr
        assert not check or result.returncode == 0, f"{words}: {result.returncode}: {said}"
        return said.strip()

    def run(self, words: str, *, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run this command; the completed process."""
        folder = "/root/flopwatch" if user == "root" else "/tmp"
        return self.engine.run(
            "exec", "--user", user, "--workdir", folder, self.name, "bash", "-c", words
        )

    def wait_for(self, words: str, seconds: float = 60, *, user: str = "root") -> None:
        """Run this command until it succeeds."""
        wait_for(lambda: self.run(words, user=user).returncode == 0, words, seconds)

    def property(self, name: str) -> str:
        """A property of the service, by `systemctl show`."""
        return self.type(f"systemctl show --property {name} --value flopwatch.service")


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.3)


def _have_image(engine: Engine) -> None:
    if engine.run("image", "exists", IMAGE).returncode == 0:
        return
    engine.base(BASE)
    name = "flopwatch-test-host-setup"
    engine("rm", "--force", name, check=False)
    engine(
        "run", "--name", name, "--network", "host", BASE, "sh", "-ec",
        "printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d\n"
        "apt-get update -qq\n"
        f"DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends {_PACKAGES}\n"
        "rm /usr/sbin/policy-rc.d /usr/local/bin/python /usr/local/bin/python3\n"
        "mkdir -p /etc/slurm/prolog.d /etc/slurm/epilog.d /var/lib/slurm/slurmctld /var/lib/slurm/slurmd\n"
        "chown -R slurm /var/lib/slurm; systemctl disable slurmd slurmctld munge >/dev/null 2>&1 || true\n"
        f"cat >/etc/slurm/slurm.conf <<'END'\n{_SLURM_CONF}END\n"
        "echo 'NodeName=node1 Name=gpu File=/dev/nvidia[4-7]' >/etc/slurm/gres.conf",
        seconds=600,
    )  # fmt: skip
    engine("commit", "--quiet", name, IMAGE)
    engine("rm", "--force", name)


def _download(wheels: Path) -> None:
    """The packages in the lock files, so that the machine needs no network."""
    kept = CACHE / "wheels"
    for name in ("slim", "build"):
        result = subprocess.run(
            ["python3", "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps",
             "--dest", kept, "--requirement", ROOT / f"deploy/requirements/{name}.txt"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    shutil.copytree(kept, wheels)


def _copy_project(checkout: Path) -> None:
    """The files as they are, and the commit that they belong to."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/images/")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    (checkout / ".git").mkdir()
    (checkout / ".git/HEAD").write_text(head)
