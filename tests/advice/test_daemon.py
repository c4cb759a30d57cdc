"""Advice from a running daemon: a fake H100 that waits for memory, and an engine with a queue."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.daemon.process import passive
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
PASSES_A_SECOND = 150.0


class Metrics(BaseHTTPRequestHandler):
    """vLLM's metrics: 8 requests of 500 prompt and 250 answer tokens decode, 20 wait."""

    began = 0.0

    def do_GET(self) -> None:
        passed = PASSES_A_SECOND * (time.monotonic() - self.began)
        prompts = passed * 8 / 250
        label = '{model_name="llama",engine="0"}'
        values = {
            "vllm:prompt_tokens_total": 500 * prompts,
            "vllm:generation_tokens_total": 8 * passed,
            "vllm:iteration_tokens_total_count": passed,
            "vllm:iteration_tokens_total_sum": 8 * passed + 500 * prompts,
            "vllm:time_to_first_token_seconds_count": prompts,
            "vllm:request_prompt_tokens_sum": 500 * prompts,
            "vllm:request_prompt_tokens_count": prompts,
            "vllm:request_generation_tokens_sum": 250 * prompts,
            "vllm:request_generation_tokens_count": prompts,
            "vllm:num_requests_running": 8,
            "vllm:num_requests_waiting": 20,
            "vllm:kv_cache_usage_perc": 0.05,
        }
        body = "".join(f"{name}{label} {value:.0f}\n" for name, value in values.items())
        body += "process_start_time_seconds 1000\n"  # of one process: it counts every pass
        body = body.replace(f"usage_perc{label} 0\n", f"usage_perc{label} 0.05\n")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def engine() -> Iterator[str]:
    Metrics.began = time.monotonic()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
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


@pytest.mark.slow
def test_two_minutes_after_its_start_a_daemon_advises(start, engine: str, tmp_path: Path) -> None:
    """Eight of 28 requests run in a cache that is 5 % full: the batch can double."""
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    workload = f"{{name: chat, engine: vllm, url: '{engine}', model: {tmp_path}, gpus: [0]}}"
    load = Load(graphics=0.9, sm=0.85, any_tensor=0.1, hmma_tensor=0.1, dram=0.7, sm_clock_mhz=1980)
    _, daemon = start(
        [H100],
        config=passive(
            f"sampling: {{interval: 250ms, slow_interval: 1s}}\nworkloads: [{workload}]\n"
            "prices: [{per_gpu_hour: 2.5, currency: USD}]\n"
        ),
        prepare=lambda fake: fake.gpu(0).set_load(load),
    )
    scrape = daemon.wait_until(
        lambda each: each.has("flopwatch_lever_gain_ratio", lever="larger_batch"), seconds=240.0
    )
    text = advise(daemon.address)

    low = scrape.value("flopwatch_lever_gain_ratio", lever="larger_batch", bound="low")
    high = scrape.value("flopwatch_lever_gain_ratio", lever="larger_batch", bound="high")
    assert 1.3 < low < high < 2.1
    assert "--max-num-seqs 16" in text
    assert "USD a day" in text
    assert "no track record yet" in text
    assert "What would help chat (llama)" in daemon.get("/")[1]
