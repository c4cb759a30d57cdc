"""What a node does to its processes: clocks, sleep, limits."""

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, passive
from tests.fake_nvml import H100, FakeNvml, Load
from tests.faults.invariants import Witness, families
from tests.faults.wall_clock import WallClock
from tests.inference.engines.server import exposition, serving, text
from tests.web.clients import eventually


CONFIG = passive("sampling: {interval: 250ms, slow_interval: 1s, deadline: 1s}\n")
# 2 × interval + deadline: the longest span that counts as watched.
WINDOW_SECONDS = 1.5
HOUR = 3600


def whole(scrape) -> bool:
    return all(
        scrape.has("flopwatch_sm_active_ratio", gpu=gpu)
        and scrape.has("flopwatch_processes", gpu=gpu)
        for gpu in ("0", "1")
    )


class Node:
    """A daemon on two GPUs, and its witness."""

    def __init__(self, fake: FakeNvml, daemon: DaemonProcess, clock: WallClock) -> None:
        self.fake = fake
        self.daemon = daemon
        self.clock = clock
        self.witness = Witness(daemon, window_seconds=WINDOW_SECONDS)
        self.witness.until(whole)

    @property
    def pid(self) -> int:
        return self.daemon.process.pid

    def counted(self) -> float:
        """Seconds accounted for GPU 0 so far."""
        return self.witness.scrape().total("flopwatch_gpu_seconds_total", gpu="0")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Two busy GPUs, under a wall clock that can be moved."""
    clock = WallClock(tmp_path)
    with FakeNvml([H100, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with DaemonProcess(
            tmp_path, config=CONFIG, environment={**fake.env, **clock.env}
        ) as daemon:
            yield Node(fake, daemon, clock)


def test_the_wall_clock_may_jump(node: Node) -> None:
    """An hour ahead and behind: time is counted as it elapses, timestamps use the new clock."""
    for jump in (HOUR, -HOUR, 0):
        began, counted = time.monotonic(), node.counted()
        node.clock.jump(jump)
        scrape = node.witness.watch(3)

        grown = scrape.total("flopwatch_gpu_seconds_total", gpu="0") - counted
        assert grown == pytest.approx(time.monotonic() - began, abs=WINDOW_SECONDS)
        succeeded = scrape.value(
            "flopwatch_source_last_success_timestamp_seconds", gpu="0", source="nvml"
        )
        assert succeeded == pytest.approx(time.time() + jump, abs=60)
        assert whole(scrape)
        assert scrape.value("flopwatch_gpu_up", gpu="0") == 1
        assert node.daemon.get("/-/ready")[0] == 200


def test_a_stopped_process_counts_nothing_of_the_gap(node: Node) -> None:
    """Suspended for five seconds, as by a debugger: a gap in the counters, then it continues."""
    began, counted = time.monotonic(), node.counted()
    os.kill(node.pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(node.pid, signal.SIGCONT)
    node.witness.until(
        lambda scrape: (
            whole(scrape)
            and scrape.total("flopwatch_gpu_seconds_total", gpu="0")
            > counted + WINDOW_SECONDS + 0.5
        )
    )
    passed = time.monotonic() - began

    assert node.counted() - counted <= passed - 5 + WINDOW_SECONDS + 0.5
    assert node.witness.scrape().value("flopwatch_gpu_up", gpu="0") == 1


def test_no_descriptors_left(node: Node) -> None:
    """Connections use every descriptor: sampling continues, and the next scraper is served again."""
    before = node.counted()
    used = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
    soft, hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used + 8, hard))
    host, port = node.daemon.address.removeprefix("http://").split(":")
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection((host, int(port))))
        time.sleep(2)
        assert node.daemon.process.poll() is None
    scrape = node.witness.until(
        lambda scrape: scrape.total("flopwatch_gpu_seconds_total", gpu="0") > before + 2
    )
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (soft, hard))

    assert whole(scrape)
    assert "Traceback" not in node.daemon.log


def test_no_memory_left(node: Node) -> None:
    """No thread can start and no memory can be mapped: it survives, and serves again afterwards."""
    before = node.counted()
    size = int(Path(f"/proc/{node.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    unlimited = resource.prlimit(node.pid, resource.RLIMIT_AS)
    resource.prlimit(node.pid, resource.RLIMIT_AS, (size, unlimited[1]))
    host, port = node.daemon.address.removeprefix("http://").split(":")
    with ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2)
        assert node.daemon.process.poll() is None, node.daemon.log
    resource.prlimit(node.pid, resource.RLIMIT_AS, unlimited)
    scrape = node.witness.until(
        lambda scrape: (
            whole(scrape) and scrape.total("flopwatch_gpu_seconds_total", gpu="0") > before + 2
        )
    )

    assert scrape.value("flopwatch_gpu_up", gpu="0") == 1


def test_a_reload_without_memory(node: Node, tmp_path: Path) -> None:
    """The configuration may be rejected or applied in part: the next reload completes it."""
    size = int(Path(f"/proc/{node.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    unlimited = resource.prlimit(node.pid, resource.RLIMIT_AS)
    with serving(text(exposition("vllm-current"))) as engine:
        node.daemon.config_file.write_text(
            f"{CONFIG}workloads: [{{name: chat, engine: vllm, url: '{engine.url}', interval: 1s}}]\n"
        )
        resource.prlimit(node.pid, resource.RLIMIT_AS, (size, unlimited[1]))
        for _ in range(5):
            node.daemon.reload()
            time.sleep(0.3)
        assert node.daemon.process.poll() is None, node.daemon.log
        resource.prlimit(node.pid, resource.RLIMIT_AS, unlimited)

        node.daemon.reload()
        scrape = node.witness.until(
            lambda scrape: (
                scrape.has("flopwatch_workload_up") and scrape.value("flopwatch_workload_up") == 1
            )
        )
    assert scrape.value("flopwatch_config_last_reload_successful") == 1
    assert whole(scrape)


class UnheardDaemon(DaemonProcess):
    """A daemon whose log pipe is closed from the moment it serves."""

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log.append(line)
            if "event=serving" in line:
                break
        self.process.stderr.close()


def test_the_log_has_no_reader(tmp_path: Path) -> None:
    """A closed standard error does not stop the sampling."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with UnheardDaemon(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            witness = Witness(daemon, window_seconds=WINDOW_SECONDS)
            shown = witness.until(lambda scrape: scrape.has("flopwatch_sm_active_ratio"))
            daemon.reload()
            fake.fail("nvmlDeviceGetPowerUsage", 999)
            witness.until(lambda scrape: not scrape.has("flopwatch_power_watts"))
            fake.clear()
            fake.lose(0)
            witness.until(lambda scrape: scrape.value("flopwatch_gpu_up", gpu="0") == 0)
            fake.restore(0)
            witness.until(lambda scrape: families(scrape, 0) >= families(shown, 0))


class UndrainedDaemon(DaemonProcess):
    """A daemon whose log pipe is not drained from the moment it serves."""

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        for line in self.process.stderr:
            self._log.append(line)
            if "event=serving" in line:
                break


def test_the_log_is_not_drained(tmp_path: Path) -> None:
    """A full pipe stops neither the sampling nor SIGTERM; lines beyond the queue are lost and counted."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with UndrainedDaemon(
            tmp_path, config=CONFIG, environment=fake.env, arguments=["--log.level", "debug"]
        ) as daemon:
            # Every request is a line at this level: ten times what pipe and queue hold.
            for _ in range(1100):
                daemon.get("/-/healthy")
            before = daemon.scrape().total("flopwatch_gpu_seconds_total", gpu="0")
            daemon.wait_until(
                lambda scrape: scrape.total("flopwatch_gpu_seconds_total", gpu="0") > before + 1
            )
            daemon.wait_until(lambda scrape: scrape.total("flopwatch_log_lines_dropped_total") > 0)
            code, _seconds = daemon.terminate()

    assert code == 0


def test_the_standard_streams_are_closed_at_start(tmp_path: Path) -> None:
    """No socket of the daemon gets the descriptor of standard error, and it serves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"exec {sys.executable} -m exporter serve --web.listen-address 127.0.0.1:{port} <&- >&- 2>&-"
    environment = {
        **os.environ,
        "FLOPWATCH_PROBES_ENABLED": "false",
        "XDG_STATE_HOME": str(tmp_path),
    }
    process = subprocess.Popen(["/bin/sh", "-c", command], env=environment)
    try:
        deadline = time.monotonic() + 40
        while True:
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/metrics", timeout=5
                ) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        streams = [str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)]
        assert streams == ["/dev/null"] * 3
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_journald_receives_the_severity(tmp_path: Path) -> None:
    """When standard error is the journal, each line begins with its severity, as in sd-daemon(3)."""
    journal = tmp_path / "journal"
    with journal.open("wb") as file:
        status = os.fstat(file.fileno())
        environment = {
            **os.environ,
            "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
            "FLOPWATCH_PROBES_ENABLED": "false",
            "FLOPWATCH_SAMPLNG_INTERVAL": "1s",
            "XDG_STATE_HOME": str(tmp_path),
        }
        command = [sys.executable, "-m", "exporter", "serve", "--web.listen-address", "127.0.0.1:0"]
        process = subprocess.Popen(command, env=environment, stderr=file)
        try:
            assert eventually(lambda: "event=serving" in journal.read_text())
        finally:
            process.terminate()
            process.wait(30)
    lines = journal.read_text().splitlines()

    severities = {line.partition("event=")[2].split(" ")[0]: line[:3] for line in lines}
    assert severities["serving"] == "<6>"
    assert severities["environment_variable_unknown"] == "<4>"


def test_a_flood_of_reloads(tmp_path: Path) -> None:
    """Thousands of SIGHUPs are a few reloads; the daemon samples, serves and obeys SIGTERM."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            before = daemon.scrape().total("flopwatch_gpu_seconds_total", gpu="0")
            for _ in range(5000):
                daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_until(
                lambda scrape: scrape.total("flopwatch_gpu_seconds_total", gpu="0") > before + 1
            )
            daemon.wait_for(lambda: "event=configuration_reloaded" in daemon.log)
            code, _seconds = daemon.terminate()

    assert code == 0
    assert daemon.log.count("event=configuration_reloaded") < 20


def test_the_state_file_is_a_named_pipe(tmp_path: Path) -> None:
    """The daemon serves, and obeys SIGTERM; its state stays in memory."""
    os.mkfifo(tmp_path / "state.json")
    config = (
        f"state_file: {tmp_path}/state.json\nsources: {{cpu: off}}\nprobes: {{kernels: [launch]}}\n"
    )
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with DaemonProcess(tmp_path, config=config, environment=fake.env) as daemon:
            daemon.wait_until(lambda scrape: scrape.has("flopwatch_sm_active_ratio"))
            code, _seconds = daemon.terminate()

    assert code == 0
