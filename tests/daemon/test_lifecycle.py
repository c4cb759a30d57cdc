"""Starting, reloading and ending the daemon; what a user sees when something is wrong."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from exporter.app import Daemon, SignalWaiter
from exporter.config.load import ConfigOrigin, load_config
from exporter.early_start import EarlyStart
from tests.daemon.process import passive
from tests.fake_nvml import H100
from tests.inference.engines.server import exposition


TINY = Path(__file__).parents[1] / "inference" / "engines" / "tiny.json"


def flopwatch(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a subcommand to its end."""
    return subprocess.run(
        [sys.executable, "-m", "exporter", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def refused(tmp_path: Path, text: str, *arguments: str) -> str:
    """What `serve` says to a configuration that it refuses: exit code 2, and no traceback."""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    result = flopwatch(
        "serve", "--config.file", str(file), "--web.listen-address", "127.0.0.1:0", *arguments
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    return result.stderr


def test_every_mistake_is_named_with_its_place(tmp_path: Path) -> None:
    """One line each, with the file, the path, what is allowed and what was given."""
    errors = refused(
        tmp_path,
        "sampling: {interval: 0, slow_intervall: 3s}\n"
        "sources: {gpm: maybe}\n"
        "probes: {kernels: [gemm_fp9]}\n",
    ).splitlines()

    assert len(errors) == 4
    assert errors[0].endswith(
        "config.yaml: sampling.slow_intervall: unknown key, did you mean slow_interval?"
    )
    assert errors[1].endswith("config.yaml: sampling.interval: must be at least 0.1 s, got 0")
    assert errors[2].endswith("config.yaml: sources.gpm: must be one of auto, on, off, got 'maybe'")
    assert "config.yaml: probes.kernels: must be one of launch, " in errors[3]


def test_the_first_window_is_not_a_whole_interval_long(start) -> None:
    """With one tick a minute, activities appear long before the second minute begins."""
    _fake, daemon = start([H100], config=passive("sampling: {interval: 60s}\n"))

    scrape = daemon.wait_until(lambda scrape: scrape.has("flopwatch_sm_active_ratio"), 30)
    assert scrape.total("flopwatch_ticks_missed_total") == 0


def test_a_gpu_index_that_this_host_does_not_have(start) -> None:
    """It may not be up yet: the error names it and its place, and the other GPUs are watched."""
    _fake, daemon = start([H100], config=passive("gpus: [{match: {index: 7}, precision: fp8}]\n"))

    assert daemon.scrape().value("flopwatch_gpu_up", gpu="0") == 1
    daemon.wait_for(lambda: "gpu_not_on_this_host" in daemon.log)
    assert "key=gpus[0].match.index gpu=7 known=0" in daemon.log


def test_a_port_in_use(tmp_path: Path) -> None:
    """One line with the address, and an exit code after which a supervisor tries again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "config.yaml"
        file.write_text(passive(""))
        result = flopwatch(
            "serve", "--config.file", str(file), "--web.listen-address", f"127.0.0.1:{port}"
        )

    assert result.returncode == 1
    assert result.stderr == (
        f"flopwatch: cannot listen on 127.0.0.1:{port}: address already in use\n"
    )


def test_a_name_that_is_not_resolved_yet(tmp_path: Path) -> None:
    """At boot the resolver may start later than the daemon: the daemon is restarted."""
    file = tmp_path / "config.yaml"
    file.write_text(passive(""))
    result = flopwatch(
        "serve", "--config.file", str(file), "--web.listen-address", "gpu-node.invalid:9907"
    )

    assert result.returncode == 1
    assert result.stderr.startswith("flopwatch: cannot listen on gpu-node.invalid:9907: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file or directory"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"sampling: [", "config.yaml"),
        (b"- a\n- b\n", "must be a mapping"),
    ],
    ids=["missing", "binary", "not yaml", "a list"],
)
def test_a_file_that_is_not_a_configuration(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    """Whatever the file holds: one line, no traceback."""
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content)
    result = flopwatch("config", "--config.file", str(file))

    assert result.returncode == 2
    assert said in result.stderr
    assert "config.yaml" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_empty_file_is_a_good_file(tmp_path: Path) -> None:
    """Every key has a default."""
    file = tmp_path / "config.yaml"
    file.write_text("")

    result = flopwatch("config", "--config.file", str(file))

    assert result.returncode == 0
    assert "interval: 1.0" in result.stdout


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    """The same key from four places."""
    file = tmp_path / "config.yaml"
    file.write_text("log: {level: warning}\nlimits: {series: 500}\n")
    arguments = ["config", "--config.file", str(file)]

    from_file = flopwatch(*arguments).stdout
    from_environment = flopwatch(*arguments, environment={"FLOPWATCH_LOG_LEVEL": "error"}).stdout
    from_flag = flopwatch(
        *arguments, "--log.level", "debug", environment={"FLOPWATCH_LOG_LEVEL": "error"}
    ).stdout

    assert "level: warning" in from_file
    assert "series: 500" in from_file
    assert "format: auto" in from_file
    assert "level: error" in from_environment
    assert "level: debug" in from_flag


def test_the_configuration_that_is_printed_can_be_read_again(tmp_path: Path) -> None:
    """`flopwatch config` prints a configuration, not a report about one."""
    printed = flopwatch("config").stdout
    file = tmp_path / "config.yaml"
    file.write_text(printed)

    again = flopwatch("config", "--config.file", str(file))

    assert again.returncode == 0
    assert again.stdout == printed


def test_version_and_help() -> None:
    """What every exporter answers."""
    assert flopwatch("--version").stdout.startswith("flopwatch 0.")
    assert "--web.listen-address" in flopwatch("serve", "--help").stdout


def test_a_reader_that_disconnects_is_not_an_error() -> None:
    """`flopwatch metrics | head -1` ends quietly."""
    result = subprocess.run(
        f"{sys.executable} -m exporter metrics | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.stderr == ""


def test_a_host_without_driver_is_its_own_device(start_on_cpu) -> None:
    """One log line says so, and the processor stands in as cpu0; torch is never loaded."""
    daemon = start_on_cpu()

    scrape = daemon.wait_until(
        lambda scrape: scrape.total("flopwatch_gpu_seconds_total", gpu="cpu0") > 0
    )
    assert scrape.value("flopwatch_gpu_up", gpu="cpu0") == 1
    assert daemon.log.count("event=no_gpu_found") == 1
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert "torch" not in maps
    assert "libcuda" not in maps


@pytest.fixture
def engine_url() -> Iterator[str]:
    """A vLLM that has served some requests at the first scrape, and more from the second on."""
    answers = iter([exposition("vllm-current"), *[exposition("vllm-current-later")] * 10_000])

    class Engine(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = next(answers).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_engine_on_the_processor_has_mfu_and_mbu(start_on_cpu, engine_url: str) -> None:
    """It divides by what the probes measured: the only source of a processor's peak bandwidth."""
    pytest.importorskip("torch")
    daemon = start_on_cpu(
        config=(
            "probes: {kernels: [copy_device], interval: 1s, budget: 200ms, pause_file: null}\n"
            f"workloads: [{{name: chat, engine: vllm, url: '{engine_url}', model: '{TINY}', gpus: [cpu0]}}]\n"
        )
    )
    scrape = daemon.wait_until(
        lambda scrape: scrape.has("flopwatch_model_bandwidth_utilization_ratio")
    )

    assert scrape.has("flopwatch_peak_dram_bandwidth_bytes_per_second", gpu="cpu0")
    assert scrape.has("flopwatch_model_flops_utilization_ratio", workload="chat")
    assert scrape.value("flopwatch_workload_gpu_info", gpu="cpu0", workload="chat") == 1


def test_an_engine_on_the_processor_is_found_by_itself(start_on_cpu, tmp_path: Path) -> None:
    """A program that is called llama-server and answers like one, on an unconfigured port."""
    recordings = Path(__file__).parents[1] / "inference" / "engines" / "recordings"
    text = (recordings / "llama.cpp-b11434-loaded.prom").read_text()
    program = tmp_path / "llama-server"
    program.write_text(
        "import http.server\n"
        "class Engine(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200 if self.path == '/metrics' else 404)\n"
        "        self.end_headers()\n"
        f"        self.wfile.write({text.encode()!r})\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), Engine)\n"
        "print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as engine:
        try:
            assert engine.stdout is not None
            port = int(engine.stdout.readline())
            daemon = start_on_cpu(config="probes: {enabled: false}\n")
            daemon.wait_until(
                lambda scrape: scrape.has(
                    "flopwatch_workload_gpu_info", gpu="cpu0", workload=f"llama_cpp-{port}"
                ),
                seconds=120.0,
            )
        finally:
            engine.kill()


def test_a_driver_that_appears_later_is_found(start) -> None:
    """Started before the driver: the processor first, the GPUs as soon as there are any."""
    fake, daemon = start([H100], prepare=lambda fake: fake.unload_driver())
    daemon.wait_until(lambda scrape: scrape.has("flopwatch_gpu_up", gpu="cpu0"))

    fake.load_driver()
    scrape = daemon.wait_until(lambda scrape: scrape.has("flopwatch_power_watts", gpu="0"))

    assert not scrape.has("flopwatch_gpu_up", gpu="cpu0")


def test_reload_takes_a_good_configuration_and_refuses_a_bad_one(start) -> None:
    """SIGHUP with a mistake: reported in log and metrics, and the old configuration stays active."""
    _fake, daemon = start([H100], config=passive("sampling: {interval: 250ms}\n"))
    daemon.wait_until(lambda scrape: scrape.has("flopwatch_flop_total", precision="bf16"))

    daemon.config_file.write_text(passive("sampling: {interval: soon}\n"))
    daemon.reload()
    scrape = daemon.wait_until(
        lambda scrape: scrape.value("flopwatch_config_last_reload_successful") == 0
    )
    assert "sampling.interval: must be a duration" in daemon.log
    assert scrape.value("flopwatch_headline_precision_info") == 1

    daemon.config_file.write_text(
        passive("sampling: {interval: 250ms}\ngpus: [{match: {index: 0}, precision: fp8}]\n")
    )
    daemon.reload()
    scrape = daemon.wait_until(
        lambda scrape: scrape.has("flopwatch_headline_precision_info", precision="fp8")
    )
    assert scrape.value("flopwatch_config_last_reload_successful") == 1
    daemon.wait_until(lambda scrape: scrape.has("flopwatch_flop_total", precision="fp8"))


def test_reload_over_http_only_where_it_is_enabled(start) -> None:
    """403 by default; with --web.enable-lifecycle a POST reloads and a mistake is answered by 500."""
    _fake, closed = start([H100])
    assert closed.get("/-/reload", method="POST")[0] == 403
    assert closed.get("/-/reload")[0] == 405

    _fake, opened = start([H100], arguments=["--web.enable-lifecycle"])
    assert opened.get("/-/reload", method="POST") == (200, "configuration reloaded\n")
    opened.config_file.write_text(passive("sources: {gpm: off}\n"))
    assert opened.get("/-/reload", method="POST") == (
        200,
        "configuration reloaded; restart to change sources.gpm\n",
    )
    assert "gpm: auto" in opened.get("/config")[1]
    opened.wait_for(lambda: "restart_needed_for" in opened.log)
    opened.config_file.write_text("sampling: 3\n")
    status, body = opened.get("/-/reload", method="POST")
    assert status == 500
    assert "sampling: must be a mapping" in body


def test_the_landing_page_leads_to_the_metrics(start_on_cpu) -> None:
    """A person who opens the port finds the pages."""
    daemon = start_on_cpu(arguments=["--web.telemetry-path", "/flops"])

    status, page = daemon.get("/")
    assert status == 200
    assert "/flops" in page
    assert daemon.get("/flops")[0] == 200
    assert daemon.get("/metrics")[0] == 404


def test_the_series_limit_holds(start) -> None:
    """More series than allowed are dropped and counted; the exporter's own health stays."""
    _fake, daemon = start([H100] * 4, config=passive("limits: {series: 300}\n"))

    scrape = daemon.wait_until(lambda scrape: scrape.total("flopwatch_series_dropped_total") > 0)
    own = [key for key in scrape.samples if key[0].startswith("flopwatch_")]
    assert len(own) <= 300 + 4 * 30
    assert len(scrape.series("flopwatch_gpu_up")) == 4


class TestSignalWaiter:
    @pytest.fixture
    def waiter(self) -> Iterator[SignalWaiter]:
        before = signal.getsignal(signal.SIGTERM)
        waiter = SignalWaiter((signal.SIGTERM,))
        yield waiter
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before)
        waiter._ours.close()
        waiter._theirs.close()

    def test_no_number_of_wakes_loses_a_signal(self, waiter: SignalWaiter) -> None:
        """A main loop that is busy for hundreds of ticks still ends by SIGTERM."""
        for _ in range(10_000):
            waiter.wake()
        os.kill(os.getpid(), signal.SIGTERM)

        assert waiter.wait(10) == {signal.SIGTERM}

    def test_a_wake_ends_one_wait(self, waiter: SignalWaiter) -> None:
        """It brings no signal, and works again after each wait."""
        for _ in range(3):
            waiter.wake()
            waiter.wake()
            assert waiter.wait(3600) == frozenset()
        assert waiter.wait(0) == frozenset()

    def test_a_tick_wakes_the_main_loop_once_it_has_waited(
        self, waiter: SignalWaiter, tmp_path: Path
    ) -> None:
        """A tick that ends when the loop has only just run does not."""
        origin = ConfigOrigin(
            file=None, flags={"state_file": ("", str(tmp_path / "state"))}, environment={}
        )
        early = EarlyStart(load_config(origin))
        daemon = Daemon(load_config(origin), origin, early)
        daemon._signals = waiter

        daemon._waits_since = time.monotonic() + 3600
        early.host._on_tick()
        assert not waiter._is_woken
        daemon._waits_since = time.monotonic() - 3600
        early.host._on_tick()
        assert waiter._is_woken
