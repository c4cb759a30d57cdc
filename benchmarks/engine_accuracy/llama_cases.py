"""The cases of llama.cpp: its answers report what it computed, cached and generated."""

import http.client
import json
import os
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.engine_accuracy.environments import llama_server
from benchmarks.engine_accuracy.load import Prompts, Request
from benchmarks.engine_accuracy.servers import Server, running, wait_for
from benchmarks.engine_accuracy.truth import (
    CACHE_BYTES,
    LINEAR_FLOP,
    LOGITS_FLOP,
    PAIR_FLOP,
    SERVED,
    WEIGHT_BYTES,
    Truth,
)
from benchmarks.gguf import F16, write
from benchmarks.programs import free_port


_UBATCH = 512  # llama.cpp's default


@contextmanager
def llama_cpp(folder: Path) -> Iterator[Server]:
    """Serve the tiny model, four requests at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    model = write(folder / "tiny.gguf", SERVED, F16, words=True)
    port = free_port()
    command = [
        str(llama_server()),
        f"--model={model}",
        "--metrics",
        f"--port={port}",
        "--parallel=4",
        "--ctx-size=16384",
        "--threads=1",
    ]
    # It takes values apart from names.
    command = [part for entry in command for part in entry.split("=", 1)]
    with running(command, dict(os.environ), folder / "llama.log") as process:
        server = Server(port, str(model), folder, folder / "llama.log", process)
        wait_for(server, "/health")
        yield server


def passes(server: Server) -> int:
    """How often the server has called its model."""
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = (line for line in lines if line.startswith("llamacpp:n_decode_total "))
    return int(float(line.split()[1]))


def send(server: Server, requests: Sequence[Request], workers: int) -> Truth:
    """Send all requests and return the work that the answers report."""
    queue, truths, lock = list(reversed(requests)), [Truth()], threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not queue:
                    return
                request = queue.pop()
            truth = _send(server, request)
            with lock:
                truths.append(truth)

    before = passes(server)
    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    called = passes(server) - before
    total = Truth(
        *(
            sum(getattr(truth, name) for truth in truths)
            for name in (
                "prefill_tokens",
                "decode_tokens",
                "prefill_flop",
                "decode_flop",
                "dram_bytes",
            )
        )
    )
    extra = sum(truth.passes for truth in truths)
    return Truth(
        total.prefill_tokens,
        total.decode_tokens,
        total.prefill_flop,
        total.decode_flop,
        total.dram_bytes + (called + extra) * WEIGHT_BYTES,
    )


def one_by_one(seed: int, seconds: float) -> list[Request]:
    """Requests of several lengths, each of which takes longer than a scrape."""
    prompts = Prompts(seed)
    lengths = (100, 700, 1500, 300)
    return [
        Request(prompts.fresh(lengths[n % 4]), 1200 + 200 * (n % 3)) for n in range(int(seconds))
    ]


def _send(server: Server, request: Request) -> Truth:
    body = {"prompt": list(request.prompt), "n_predict": request.answer, "ignore_eos": True}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.request("POST", "/completion", json.dumps(body))
    said = json.loads(connection.getresponse().read())["timings"]
    connection.close()
    new, cached, answer = said["prompt_n"], said["cache_n"], said["predicted_n"]
    whole = new + cached
    prefill_pairs = new * cached + new * (new + 1) // 2
    decode_pairs = (answer - 1) * whole + (answer - 1) * answer // 2
    chunks = -(-new // _UBATCH)
    read = cached * chunks + _UBATCH * chunks * (chunks - 1) // 2 + decode_pairs
    return Truth(
        new,
        answer,
        new * LINEAR_FLOP + prefill_pairs * PAIR_FLOP + LOGITS_FLOP,
        (answer - 1) * (LINEAR_FLOP + LOGITS_FLOP) + decode_pairs * PAIR_FLOP,
        (new + answer - 1 + read) * CACHE_BYTES,
        chunks - 1,  # in one call of the model, and so in none of its counts
    )
