"""What `flopwatch check` reports: configuration, addresses, files, engines, privileges."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.check import doctor
from exporter.check.host import clock_findings
from exporter.config.load import ConfigOrigin, load_config
from tests.check.conftest import Check, found
from tests.dcgm.server import DcgmExporter
from tests.inference.engines import server as engines


def test_a_port_in_use_fails(check: Check) -> None:
    """Another program on the port keeps the daemon from starting."""
    with DcgmExporter() as other:
        port = other.url.split(":")[2].split("/")[0]
        code, report = check(FLOPWATCH_WEB_LISTEN_ADDRESS=f"127.0.0.1:{port}")

    assert code == 1
    assert [level for level, _text in found(report, "port")] == ["failure"]


def test_a_broken_configuration_is_a_finding(check: Check) -> None:
    """The mistakes are listed, and the host is examined with the defaults."""
    code, report = check(config="samplings: {interval: 1s}\n")

    assert code == 1
    assert found(report, "configuration")[0][0] == "failure"
    assert found(report, "driver") != []


def test_an_engine_that_does_not_answer_is_named(check: Check) -> None:
    """The daemon runs without it, so it is a warning."""
    code, report = check(
        config="workloads: [{name: chat, engine: vllm, url: 'http://127.0.0.1:1/metrics'}]\n"
    )

    assert code == 0
    assert [level for level, _text in found(report, "engine chat")] == ["warning"]


def test_a_different_engine_is_named(check: Check) -> None:
    """llama.cpp at an address configured as vLLM: a warning that names both."""
    metrics = "# TYPE llamacpp:prompt_tokens_total counter\nllamacpp:prompt_tokens_total 1\n"
    with engines.serving(engines.text(metrics)) as engine:
        _code, report = check(
            config=f"workloads: [{{name: chat, engine: vllm, url: '{engine.url}'}}]\n"
        )

    ((level, said),) = found(report, "engine chat")
    assert level == "warning"
    assert "metrics of llama_cpp, not vllm's" in said


# Who may run a check: a user other than root, and root without its privileges.
UNPRIVILEGED = {
    "another user": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
    "root without capabilities": ["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
}


@pytest.mark.skipif(os.geteuid() != 0, reason="takes privileges away: needs root")
@pytest.mark.parametrize("who", UNPRIVILEGED)
def test_without_privileges_each_finding_is_a_finding(who: str, tmp_path: Path) -> None:
    """A kubelet folder and a state folder without read permission: reported, no crash."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "kubelet.sock").touch()
    (closed / "pause").touch()
    closed.chmod(0o700)
    os.chown(closed, 1, 1)  # not root's: without capabilities root has no special rights
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    finished = subprocess.run(
        [*UNPRIVILEGED[who], sys.executable, "-m", "exporter", "check", "--json"],
        env={
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_STATE_HOME": str(closed),
            "FLOPWATCH_WEB_LISTEN_ADDRESS": "127.0.0.1:0",
            "FLOPWATCH_KUBERNETES_SOCKET": str(closed / "kubelet.sock"),
            "FLOPWATCH_STATE_FILE": str(closed / "deep/state.json"),
            "FLOPWATCH_PROBES_PAUSE_FILE": str(closed / "pause"),
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert (finished.returncode, finished.stderr) == (0, "")
    report = json.loads(finished.stdout)
    assert found(report, "kubernetes") == [
        ("warning", f"{closed}/kubelet.sock: permission denied: pods are not named")
    ]
    ((level, text),) = found(report, "state file")
    assert (level, "permission denied" in text) == ("warning", True)


def test_an_internal_error_of_check_affects_one_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error becomes a finding that asks to be reported; all others are still there."""

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(doctor, "clock_findings", fail)
    config = load_config(ConfigOrigin(environment={"FLOPWATCH_PROBES_ENABLED": "false"}))

    report = doctor.examine(config)

    (clock,) = [finding for finding in report.findings if finding.area == "clock"]
    assert clock.text == "could not be examined: ZeroDivisionError: a bug"
    assert {"configuration", "port", "driver"} <= {finding.area for finding in report.findings}


def test_an_address_that_is_given_twice_is_in_use_the_second_time(check: Check) -> None:
    """`serve` would not start with it either."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code, report = check(FLOPWATCH_WEB_LISTEN_ADDRESS=f"{address},{address}")

    assert code == 1
    assert [level for level, _text in found(report, "port")] == ["ok", "failure"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
def test_a_disk_without_space_keeps_no_state(tmp_path: Path) -> None:
    """Files can be made on a full disk, and nothing written to them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = (
        f"mount -t tmpfs -o size=64k tmpfs {disk} && dd if=/dev/zero of={disk}/fill bs=4k 2>/dev/null; "
        f"{sys.executable} -m exporter check --json"
    )
    finished = subprocess.run(
        ["unshare", "--mount", "sh", "-c", words],
        env={
            **os.environ,
            "FLOPWATCH_STATE_FILE": f"{disk}/state.json",
            "FLOPWATCH_PROBES_ENABLED": "false",
            "FLOPWATCH_WEB_LISTEN_ADDRESS": "127.0.0.1:0",
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert found(json.loads(finished.stdout), "state file") == [
        (
            "warning",
            (
                f"{disk}/state.json: {disk} cannot be written: no space left on device: baselines are "
                "lost when the process ends"
            ),
        )
    ]


def test_a_folder_is_rejected_as_state_file(check: Check, tmp_path: Path) -> None:
    """The daemon serves without it and reports that; so does the check."""
    code, report = check(FLOPWATCH_STATE_FILE=str(tmp_path))

    assert code == 0
    assert found(report, "state file") == [
        ("warning", f"{tmp_path}: is a folder: baselines are lost when the process ends")
    ]


# Configurations that can never work, by their mistake: files, and flags.
NEVER: dict[str, tuple[dict[str, str], list[str]]] = {
    "address without a port": ({}, ["--web.listen-address", "9907"]),
    "address of another kind": ({}, ["--web.listen-address", "[::1"]),
    "no web configuration there": ({}, ["--web.config.file", "none.yml"]),
    "unknown key of the web configuration": (
        {"web.yml": "tls_server_konfig: {}\n"},
        ["--web.config.file", "web.yml"],
    ),
    "a certificate that is none": (
        {"web.yml": "tls_server_config: {cert_file: web.yml, key_file: web.yml}\n"},
        ["--web.config.file", "web.yml"],
    ),
    "a password in clear text": (
        {"web.yml": "basic_auth_users: {prometheus: secret}\n"},
        ["--web.config.file", "web.yml"],
    ),
    "unknown key": ({"config.yml": "sampling: {intervall: 1s}\n"}, ["--config.file", "config.yml"]),
    "no configuration there": ({}, ["--config.file", "none.yml"]),
}


@pytest.mark.parametrize("what", NEVER)
def test_serve_check_and_config_refuse_the_same(what: str, tmp_path: Path) -> None:
    """With the same words; exit code 2 from `serve`, which could never start, and 1 from `check`."""
    files, flags = NEVER[what]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    said = {}
    for command, code in (("serve", 2), ("config", 2), ("check", 1)):
        result = subprocess.run(
            [sys.executable, "-m", "exporter", command, *flags],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "FLOPWATCH_PROBES_ENABLED": "false",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == code, (command, result.stderr)
        said[command] = result

    assert said["serve"].stderr == said["config"].stderr
    assert said["serve"].stderr.startswith("flopwatch: ")
    assert said["check"].stderr == ""
    mistake = said["serve"].stderr.splitlines()[0].removeprefix("flopwatch: ")
    assert mistake.replace(" ", "") in said["check"].stdout.replace(" ", "").replace("\n", "")


def test_the_clock_says_how_far_it_may_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not synchronized, poorly synchronized, well synchronized."""
    for clock, level, text in (
        ((5, 16.0), "warning", "not synchronized"),
        ((0, 2.5), "warning", "synchronized, but may be 2.5 s off"),
        ((0, 0.0123), "ok", "synchronized, at most 12.3 ms off"),
    ):
        monkeypatch.setattr("exporter.check.host._clock", lambda clock=clock: clock)
        (finding,) = clock_findings()
        assert finding.level == level
        assert finding.text.startswith(text)
