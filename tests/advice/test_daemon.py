"""Advice from a running daemon: a fake H100 that waits for memory, and an engine with a queue."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from exporter.simulate.forward_pass import Shape, Silicon
from exporter.simulate.serving import Engine, Setup, Traffic
from tests.daemon.process import DaemonProcess, passive
from tests.fake_nvml import H100, Load


# Llama 3.1 8B: 15 GB of weights a pass, 4.5 ms at 3.35 TB/s.
MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
SILICON = Silicon({"bf16": 989e12, "fp8": 1979e12}, 3.35e12, 450e9, 80e9)
SHAPE = Shape(4096, 32, 32, 8, 128, 14336, 128256)


def setup(batch: int) -> Setup:
    """The engine with this batch limit and 28 clients."""
    traffic = Traffic(500, 0.3, 250, 0.3, clients=28)
    return Setup(SILICON, SHAPE, traffic, batch_limit=batch)


def load(batch: int) -> Load:
    """What such a batch is for the GPU, in the mean."""
    window = Engine(setup(batch)).run(100, 300)
    tensor = window.tensor_seconds / window.seconds
    return Load(
        graphics=window.kernel_seconds / window.seconds,
        sm=window.sm_seconds / window.seconds,
        any_tensor=tensor,
        hmma_tensor=tensor,
        dram=window.dram_bytes / window.seconds / SILICON.bandwidth,
        sm_clock_mhz=1980,
    )


class Vllm:
    """vLLM's metrics of an engine that is simulated pass by pass in real time."""

    def __init__(self) -> None:
        self.engine = Engine(setup(8))
        self.lock = threading.Lock()
        self.began = time.monotonic()

    def exposition(self) -> str:
        """What the engine shows now."""
        with self.lock:
            self.engine.run_until(time.monotonic() - self.began)
            now, running = replace(self.engine.counters), self.engine.running
        label = '{model_name="llama",engine="0"}'
        values = {
            "vllm:prompt_tokens_total": now.prompt_tokens,
            "vllm:generation_tokens_total": now.decode_tokens,
            "vllm:iteration_tokens_total_count": now.passes,
            "vllm:iteration_tokens_total_sum": now.prefill_tokens + now.decode_tokens,
            "vllm:time_to_first_token_seconds_count": now.prompts,
            "vllm:request_prompt_tokens_sum": 500 * now.answers,
            "vllm:request_prompt_tokens_count": now.answers,
            "vllm:request_generation_tokens_sum": now.answer_tokens,
            "vllm:request_generation_tokens_count": now.answers,
            "vllm:num_requests_running": running,
            "vllm:num_requests_waiting": 28 - running,
            "vllm:kv_cache_usage_perc": 0.05,
        }
        body = "".join(f"{name}{label} {value:.6g}\n" for name, value in values.items())
        return body + "process_start_time_seconds 1000\n"  # of one process: it counts every pass

    def take_more(self) -> None:
        """Sixteen places in the batch instead of eight."""
        with self.lock:
            self.engine.reconfigure(setup(16))


@pytest.fixture
def vllm() -> Iterator[tuple[Vllm, str]]:
    engine = Vllm()

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(engine.exposition().encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield engine, f"http://127.0.0.1:{server.server_address[1]}/metrics"
    server.shutdown()
    thread.join()
    server.server_close()


def advise(address: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "exporter", "advise", "--url", address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_daemon_without_engines_says_what_advice_needs(start) -> None:
    _, daemon = start([H100])

    assert json.loads(daemon.get("/api/v1/advice")[1]) == {"workloads": [], "api_version": 1}
    assert "metrics (`workloads` in the configuration)" in advise(daemon.address)
    assert not daemon.scrape().has("flopwatch_lever_gain_ratio")


def has_whole_windows(daemon: DaemonProcess) -> bool:
    """Whether the advice rests on whole windows of twenty seconds."""
    workloads = json.loads(daemon.get("/api/v1/advice")[1])["workloads"]
    return bool(workloads) and workloads[0]["window_seconds"] >= 19.5


def trials(folder: Path) -> list[object]:
    """Changes in the state file that have not been stable for long enough yet."""
    file = folder / "state.json"
    if not file.exists():
        return []
    return list(json.loads(file.read_text()).get("levers", {}).get("trials", []))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_daemon_records_whether_its_prediction_held(
    start, vllm: tuple[Vllm, str], tmp_path: Path
) -> None:
    """Eight of 28 requests run, and the batch can double; then it does, and the daemon compares.

    The daemon is stopped while it waits for the change to settle and again afterwards: neither the
    trial nor the record is lost. Windows are of twenty seconds here, of five minutes by default.
    """
    engine, url = vllm
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    workload = (
        f"{{name: chat, engine: vllm, url: '{url}', model: {tmp_path}, gpus: [0], interval: 1s}}"
    )
    config = passive(
        f"sampling: {{interval: 250ms, slow_interval: 1s}}\nworkloads: [{workload}]\n"
        "prices: [{per_gpu_hour: 2.5, currency: USD}]\nadvice: {window: 20s, stable: 20s}\n"
    )
    fake, daemon = start([H100], config=config, prepare=lambda f: f.gpu(0).set_load(load(8)))
    daemon.wait_for(lambda: has_whole_windows(daemon), seconds=240.0)
    scrape = daemon.scrape()
    text = advise(daemon.address)

    low = scrape.value("flopwatch_lever_gain_ratio", lever="larger_batch", bound="low")
    high = scrape.value("flopwatch_lever_gain_ratio", lever="larger_batch", bound="high")
    assert 1.3 < low < high < 2.1
    assert re.search(r"--max-num-seqs 1[56]\b", text), text  # twice the mean, which may be below 8
    assert "USD a day" in text
    assert "no track record yet" in text
    assert "What would help chat (llama)" in daemon.get("/")[1]

    engine.take_more()
    fake.gpu(0).set_load(load(16))
    daemon.wait_for(lambda: trials(tmp_path), seconds=240.0)
    daemon.terminate()
    with DaemonProcess(tmp_path, config=config, environment=fake.env) as second:
        booked = second.wait_until(
            lambda each: each.total("flopwatch_lever_backtests_total", lever="larger_batch") == 1,
            seconds=300.0,
        )
        error = booked.value("flopwatch_lever_backtest_error_ratio", lever="larger_batch")
        held = booked.value(
            "flopwatch_lever_backtests_total", lever="larger_batch", outcome="inside"
        )
        assert abs(error) < 0.3
        second.terminate()
    with DaemonProcess(tmp_path, config=config, environment=fake.env) as third:
        after = third.wait_until(
            lambda each: each.has("flopwatch_lever_gain_ratio", lever="larger_batch"),
            seconds=240.0,
        )
        assert after.total("flopwatch_lever_backtests_total", lever="larger_batch") == 1
        assert f"{held:.0f} of 1 predictions held here" in advise(third.address)
