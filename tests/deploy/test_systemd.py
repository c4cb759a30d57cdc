"""The service for systemd: installed into a folder, verified and scored by systemd's own tools."""

import configparser
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.config.load import variable_of
from exporter.config.model import SCHEMA
from tests.fake_nvml import H100, FakeNvml


SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = SYSTEMD / "flopwatch.service"
HOST_UNITS = Path("/usr/lib/systemd/system")


def install(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SYSTEMD / "install.sh", *options, "--root", root],
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder with the service and a program in the daemon's place."""
    assert install(tmp_path).returncode == 0
    for program in ("opt/flopwatch/bin/flopwatch", "bin/kill"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / program)
    return tmp_path


def exposure(*arguments: object) -> float:
    """systemd's own score, 0 (best) to 10."""
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
    )
    (score,) = re.findall(
        r"Overall exposure level for flopwatch\.service: ([0-9.]+)", result.stdout
    )
    return float(score)


def settings(path: Path) -> dict[str, list[str]]:
    """The [Service] section; keys may come several times."""
    parsed: dict[str, list[str]] = {}
    for line in path.read_text().split("[Service]")[1].split("[Install]")[0].splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            parsed.setdefault(key, []).append(value)
    return parsed


def complaints(root: Path) -> list[str]:
    """What `systemd-analyze verify` says of the service, with the host's targets around it."""
    for unit in HOST_UNITS.glob("*.target"):
        target = root / "usr/lib/systemd/system" / unit.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(unit, target, follow_symlinks=True)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", "flopwatch.service"],
        check=False,
        capture_output=True,
        text=True,
    )
    return [line for line in result.stderr.splitlines() if "flopwatch" in line]


def test_systemd_knows_every_directive(root: Path):
    """The unit and its drop-ins are read without a warning; a misspelt key would cause one."""
    assert install(root, "--probes", "--perf").returncode == 0

    assert complaints(root) == []
    with (root / "etc/systemd/system/flopwatch.service.d/probes.conf").open("a") as drop_in:
        drop_in.write("ProtectEverything=yes\n")
    assert any("ProtectEverything" in line for line in complaints(root))


def test_the_service_is_hardened(tmp_path: Path):
    """Passive metrics: an exposure of at most 2.0, with the driver's devices allowed."""
    alone = shutil.copy(UNIT, tmp_path / "flopwatch.service")

    assert exposure(alone) <= 2.0


def test_with_probes_it_is_hardened_too(root: Path):
    """What CUDA needs on top stays within the same bound."""
    assert install(root, "--probes").returncode == 0

    with_probes = exposure(f"--root={root}", "flopwatch.service")

    assert with_probes <= 2.0


def test_with_the_processors_counters_it_is_hardened_too(root: Path):
    """One system call and one capability more, and no user namespace; the daemon is not root."""
    assert install(root, "--perf").returncode == 0
    drop_in = settings(SYSTEMD / "flopwatch.service.d" / "perf.conf")

    assert (root / "etc/systemd/system/flopwatch.service.d/perf.conf").is_file()
    assert drop_in["SystemCallFilter"] == ["perf_event_open"]
    assert drop_in["CapabilityBoundingSet"] == drop_in["AmbientCapabilities"] == ["CAP_PERFMON"]
    assert exposure(f"--root={root}", "flopwatch.service") <= 2.0


def test_only_the_drivers_devices_are_open():
    """The policy is closed, and each exception is a device node of the NVIDIA driver."""
    service = settings(UNIT)

    assert service["DevicePolicy"] == ["closed"]
    assert service["DeviceAllow"]
    assert all(re.fullmatch(r"char-nvidia[a-z-]* rw", entry) for entry in service["DeviceAllow"])


def test_systemd_gets_readiness_watchdog_and_restart():
    """The daemon reports readiness and liveness; a rejected configuration is not retried."""
    service = settings(UNIT)

    assert service["Type"] == ["notify"]
    assert service["WatchdogSec"] == ["30s"]
    assert service["Restart"] == ["always"]
    assert service["RestartPreventExitStatus"] == ["2"]
    assert service["ExecReload"] == [
        "/bin/kill -HUP $MAINPID",
        "/opt/flopwatch/bin/flopwatch config --check",
    ]
    assert service["User"] == ["flopwatch"]


def test_installing_makes_user_folders_and_files(root: Path):
    """sysusers and tmpfiles run; the jobs' folder is root's, since its writers name jobs."""
    assert re.search(r"^flopwatch:x:\d+:", (root / "etc/passwd").read_text(), re.MULTILINE)
    assert (root / "run/flopwatch/jobs").is_dir()
    assert (root / "run/flopwatch/jobs").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/systemd/system/flopwatch.service").read_text() == UNIT.read_text()
    assert not (root / "etc/systemd/system/flopwatch.service.d").exists()


def test_installing_again_keeps_what_the_operator_wrote(root: Path):
    """An upgrade replaces the unit, and leaves the environment file alone."""
    (root / "etc/default/flopwatch").write_text("FLOPWATCH_LOG_LEVEL=debug\n")

    assert install(root).returncode == 0

    assert (root / "etc/default/flopwatch").read_text() == "FLOPWATCH_LOG_LEVEL=debug\n"


def test_probes_are_switched_on_by_one_option(root: Path):
    """`--probes` adds the drop-in and says so in the environment file."""
    assert install(root, "--probes").returncode == 0

    assert (root / "etc/systemd/system/flopwatch.service.d/probes.conf").is_file()
    assert "\nFLOPWATCH_PROBES_ENABLED=true\n" in (root / "etc/default/flopwatch").read_text()


def test_a_wrong_option_is_named_in_one_line(tmp_path: Path):
    """The installer says what it did not understand, and does nothing."""
    result = install(tmp_path, "--everything")

    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "install.sh: unknown option '--everything' (known: --probes, --perf, --remove, --root FOLDER)"
    ]
    assert not any(tmp_path.iterdir())


def test_the_environment_file_names_variables_that_exist():
    """Each variable, also those that are commented out, is one of the daemon's."""
    known = {variable_of(path) for path, _key in SCHEMA.options()} | {"FLOPWATCH_CONFIG_FILE"}
    named = re.findall(
        r"^#?(FLOPWATCH_[A-Z_]+)=", (SYSTEMD / "flopwatch.default").read_text(), re.MULTILINE
    )

    assert named
    assert set(named) <= known


@pytest.mark.parametrize("name", ["probes.conf", "perf.conf"])
def test_a_drop_in_changes_the_service_alone(name: str):
    """It has no other section."""
    parser = configparser.ConfigParser(strict=False)
    parser.read(SYSTEMD / "flopwatch.service.d" / name)

    assert parser.sections() == ["Service"]


def test_without_root_nothing_is_installed(tmp_path: Path):
    """The installer asks `id` who runs it, and says that it must be root."""
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)

    result = subprocess.run(
        [SYSTEMD / "install.sh"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )

    assert (result.returncode, result.stderr) == (1, "install.sh: must be run as root\n")


def members(group: str) -> set[str]:
    """The system calls of one of systemd's groups, including nested groups."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], check=True, capture_output=True, text=True
    ).stdout
    calls: set[str] = set()
    for line in map(str.strip, listed.splitlines()[1:]):
        if line.startswith("@"):
            calls |= members(line)
        elif line and not line.startswith("#"):
            calls.add(line)
    return calls


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_system_call_filter_does_not_affect_the_daemon(tmp_path: Path):
    """All system calls of a start, ticks on simulated GPUs, a reload and an end are allowed."""
    traced = tmp_path / "calls"
    with FakeNvml([H100], tmp_path) as fake:
        log = tmp_path / "log"
        with log.open("w") as standard_error:
            tracer = subprocess.Popen(
                ["strace", "-f", "-qq", "-e", "signal=none", "-o", traced, sys.executable, "-m",
                 "exporter", "serve", "--web.listen-address", "127.0.0.1:0", "--log.format", "logfmt"],
                env={**os.environ, **fake.env, "FLOPWATCH_PROBES_ENABLED": "false",
                     "XDG_STATE_HOME": str(tmp_path)},
                stderr=standard_error,
            )  # fmt: skip
        try:
            _wait(lambda: "event=serving" in log.read_text())
            (daemon,) = Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text().split()
            time.sleep(2.5)  # two ticks and a look at who holds the GPUs
            os.kill(int(daemon), signal.SIGHUP)
            _wait(lambda: "event=configuration_reloaded" in log.read_text())
            os.kill(int(daemon), signal.SIGTERM)
            tracer.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                tracer.kill()
            tracer.wait()
    used = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", traced.read_text(), re.MULTILINE))

    allowed = members("@system-service") | members("@default")
    assert {"recvfrom", "openat", "clone3"} & used
    assert used - (allowed - members("@privileged") - members("@resources")) == set()


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)
