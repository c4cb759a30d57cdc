"""Engines on real ports, scraped by real threads, and their models in a real Prometheus."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from exporter.inference.config import WorkloadConfig
from exporter.inference.service import WorkloadService
from exporter.metrics.layout import Format
from exporter.metrics.models import WORKLOADS
from exporter.metrics.render import Exposition
from tests.inference.engines import server
from tests.inference.engines.gpus import gpu, host
from tests.inference.engines.server import exposition, serving


TINY = Path(__file__).parent / "tiny.json"
HOST = host(*(gpu(str(index), f"GPU-{index}", {"bf16": 1e7, "fp8": 1e7}) for index in range(4)))


def until(condition):
    """Wait for something that happens on another thread; the test's own timeout is the limit."""
    while not (value := condition()):
        time.sleep(0.02)
    return value


def entry(name, url, **settings):
    return WorkloadConfig(
        name, "vllm", url, TINY, (0,), interval_seconds=0.1, timeout_seconds=0.5, **settings
    )


def settled(service):
    """The workloads by name, once the good one is up and each other one has failed."""
    states = {workload.name: workload for workload in service.snapshot().workloads}
    others = (state for name, state in states.items() if name != "good")
    return states if states["good"].up and all(state.errors for state in others) else None


def test_misbehaving_clients_affect_no_one_else():
    """One hangs, one drips, one is broken, one floods, one is someone else; the good one is up."""
    answers = {
        "good": server.text(exposition("vllm-current")),
        "hangs": server.hang,
        "drips": server.drip,
        "broken": server.text("oops", status="500 Internal Server Error"),
        "floods": server.flood,
        "other": server.text(exposition("node-exporter")),
        "moved": server.text("", status="301 Moved", headers="Location: http://127.0.0.1/\r\n"),
    }
    engines = {name: server.EngineServer(answer) for name, answer in answers.items()}
    service = WorkloadService([entry(name, engine.url) for name, engine in engines.items()])
    try:
        service.start()
        states = until(lambda: settled(service))
    finally:
        service.stop()
        for engine in engines.values():
            engine.close()

    assert [name for name, state in states.items() if state.up] == ["good"]
    assert "timeout" in states["hangs"].errors
    assert "timeout" in states["drips"].errors
    assert "http_status" in states["broken"].errors
    assert set(states["floods"].errors) <= {"too_large", "timeout"}
    assert "wrong_engine" in states["other"].errors
    assert "redirect" in states["moved"].errors


def test_a_restart_is_survived():
    """Up, gone, and back as a new process: tokens add up and never decrease."""
    with serving(server.text(exposition("vllm-current"))) as engine:
        service = WorkloadService([entry("chat", engine.url)], state=lambda: HOST)
        try:
            service.start()
            state = lambda: service.snapshot().workloads[0]  # noqa: E731 - read where it is used
            until(lambda: state().up)
            engine.answer = server.text("starting", status="503 Service Unavailable")
            until(lambda: not state().up)
            began = f"process_start_time_seconds {time.time()}"
            restarted = exposition("vllm-restarted").replace(
                "process_start_time_seconds 1.7609e+09", began
            )
            engine.answer = server.text(restarted)
            until(lambda: state().up)
            (model,) = state().models
        finally:
            service.stop()

    assert (model.prefill_tokens, model.decode_tokens) == (70, 9000)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus")
def test_prometheus_has_the_models(tmp_path):
    """Scraped by Prometheus, a query joins a model's FLOPs with its GPUs."""
    with serving(server.text(exposition("vllm-current"))) as engine:
        service = WorkloadService([entry("chat", engine.url)], state=lambda: HOST)
        rendered = Exposition(
            lambda snapshot: [WORKLOADS.of(snapshot)],
            series_limit=lambda: 1000,
            state=service.snapshot,
        )

        def metrics(exchange):
            body = rendered.render(Format.TEXT, compressed=False).decode()
            server.text(body, headers="Content-Type: text/plain; version=0.0.4\r\n")(exchange)

        with serving(metrics) as daemon:
            service.start()
            try:
                until(lambda: service.snapshot().workloads[0].up)
                engine.answer = server.text(exposition("vllm-current-later"))
                until(lambda: service.snapshot().workloads[0].models[0].decode_tokens == 100)
                query = (
                    "sum by (model, gpu) (flopwatch_workload_gpu_info * on (workload) group_left"
                    " (model) sum without (phase) (flopwatch_model_tokens_total))"
                )
                result = query_prometheus(tmp_path, daemon.port, query)
            finally:
                service.stop()

    assert result == [{"metric": {"model": "acme/tiny", "gpu": "0"}, "value": "900"}]


def query_prometheus(folder, port, query):
    """Run Prometheus until `query` has a result, and return it."""
    free = server.EngineServer(server.hang)
    free.close()
    configuration = folder / "prometheus.yml"
    configuration.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                "scrape_configs": [
                    {"job_name": "f", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                ],
            }
        )
    )
    process = subprocess.Popen(
        [
            shutil.which("prometheus"),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{free.port}",
            "--log.level=error",
        ]
    )
    address = f"http://127.0.0.1:{free.port}/api/v1/query?query={urllib.parse.quote(query)}"

    def ask():
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                return json.load(answer)["data"]["result"]
        except OSError:
            return None

    try:
        found = until(ask)
    finally:
        process.terminate()
        process.wait()
    return [{"metric": entry["metric"], "value": entry["value"][1]} for entry in found]
