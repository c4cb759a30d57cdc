"""`make run` and `make demo`: what they start, and that the steps that they print can be followed."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 120
# Nothing is installed: this environment is taken as installed already.
MAKE_RUN = ("make", "run", f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No probes, and a state file of the test's own."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        "FLOPWATCH_PROBES_ENABLED": "false",
        "FLOPWATCH_STATE_FILE": str(tmp_path / "state.json"),
    }


@pytest.fixture
def other_server() -> Iterator[int]:
    """A server that answers 200 to everything, on its port."""

    class Always(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Always)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def output_until(process: subprocess.Popen[str], text: str) -> str:
    """What it prints, up to the line with this text."""
    watchdog = threading.Timer(DEADLINE_SECONDS, process.kill)
    watchdog.start()
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    watchdog.cancel()
    assert text in "".join(lines), "".join(lines)
    return "".join(lines)


@contextlib.contextmanager
def started(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own; Ctrl-C ends it."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            process.wait(DEADLINE_SECONDS)


def test_make_run_serves_and_its_steps_can_be_typed(environment: dict[str, str]) -> None:
    """The printed `top` and `check` run, the printed address has metrics, and Ctrl-C ends it."""
    url = f"http://127.0.0.1:{free_port()}/"
    command = (*MAKE_RUN, f"ARGS=--web.listen-address={url[7:-1]}")
    with started(command, environment) as process:
        said = output_until(process, "`make demo` shows them")
        top, check = re.findall(r"`(\S+/flopwatch [^`]+)`", said)
        shown = subprocess.run(
            [*top.split(), "--once"], capture_output=True, text=True, check=False, env=environment
        )
        checked = subprocess.run(
            check.split(), capture_output=True, text=True, check=False, env=environment
        )
        with urllib.request.urlopen(f"{url}metrics", timeout=30) as answer:
            metrics = answer.read().decode()

    assert f"flopwatch serves {url}" in said
    assert shown.returncode == 0, shown.stderr
    assert "cpu0" in shown.stdout
    assert checked.returncode in (0, 1), checked.stderr  # 1: a finding about this host
    assert "configuration" in checked.stdout
    assert "flopwatch_gpu_up{" in metrics


def test_a_port_of_another_server_is_not_taken_for_the_daemon(
    environment: dict[str, str], other_server: int
) -> None:
    """It answers at that address, but the daemon could not listen there: no steps are printed."""
    command = (*MAKE_RUN, f"ARGS=--web.listen-address=127.0.0.1:{other_server}")
    with started(command, environment) as process:
        said, _ = process.communicate(timeout=DEADLINE_SECONDS)

    assert process.returncode != 0
    assert "address already in use" in said
    assert "flopwatch serves" not in said


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("prometheus"),
    reason="needs a network namespace of its own and Prometheus",
)
def test_the_demo_has_data_and_ends_with_ctrl_c(environment: dict[str, str]) -> None:
    """Its first step, the printed query, has a value for each simulated GPU; no error is printed."""
    script = "ip link set lo up && exec deploy/make/demo.sh " + f"{sys.prefix}/bin"
    with started(("unshare", "--net", "sh", "-c", script), environment) as process:
        said = output_until(process, "Ctrl-C ends it")
        query = re.search(r"g0\.expr=(\S+)&", said)
        assert query is not None
        asked = subprocess.run(
            ["nsenter", "--net", f"--target={process.pid}", sys.executable, "-c", ASK, query[1]],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_SECONDS,
        )

    assert "error" not in said
    assert asked.returncode == 0, asked.stderr
    assert int(asked.stdout) >= 8


# Asks Prometheus until the query has an answer; prints its number of series.
ASK = """
import json, sys, time, urllib.request
while True:
    url = "http://127.0.0.1:9090/api/v1/query?query=" + sys.argv[1]
    found = json.load(urllib.request.urlopen(url, timeout=60))["data"]["result"]
    if found:
        break
    time.sleep(1)
print(len(found))
"""
