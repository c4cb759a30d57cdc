"""Starts the engines on a tiny generated random-weight model, and stops them."""

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine_accuracy import truth
from benchmarks.engine_accuracy.environments import vllm_python
from benchmarks.programs import free_port


START_SECONDS = 300.0
# The option of vLLM for models that make embeddings.
POOLING = "--runner=pooling"
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Server:
    """A running engine."""

    port: int
    model: str
    folder: Path  # of its steps
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Where its metrics are."""
        return f"http://127.0.0.1:{self.port}/metrics"


def write_model(folder: Path) -> Path:
    """Write the configuration of the tiny model; vLLM makes random weights for it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": truth.HIDDEN,
        "num_hidden_layers": truth.LAYERS,
        "num_attention_heads": truth.HEADS,
        "num_key_value_heads": truth.GROUPS,
        "head_dim": truth.HEAD,
        "intermediate_size": truth.INNER,
        "vocab_size": truth.WORDS,
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    # Prompts are token numbers; only the server of embeddings insists on a tokenizer.
    words = {str(number): number for number in range(truth.WORDS)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@contextmanager
def vllm(folder: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """Serve the tiny model with vLLM on the CPU; twice in one folder it is a restart."""
    folder.mkdir(parents=True, exist_ok=True)
    model = write_model(folder / "model")
    steps = folder / "steps"
    steps.mkdir(exist_ok=True)
    port = port or free_port()
    command = [
        str(vllm_python()),
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(model),
        "--load-format=dummy",
        *([] if POOLING in options else ["--skip-tokenizer-init"]),
        "--enforce-eager",
        f"--port={port}",
        "--max-model-len=4096",
        *options,
    ]
    environment = {
        **os.environ,
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
        "FLOPWATCH_STEPS": str(steps),
    }
    with running(command, environment, folder / "vllm.log") as process:
        server = Server(port, str(model), steps, folder / "vllm.log", process)
        wait_for(server, "/health")
        yield server


@contextmanager
def running(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a process group of its own; the group ends with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(timeout=15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def wait_for(server: Server, path: str) -> None:
    """Wait until the server answers; raises RuntimeError with the end of its log."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(_POLL_SECONDS)
    raise RuntimeError("the engine did not start:\n" + server.log.read_text()[-3000:])
