"""Predictions against llama.cpp on the host processor: a larger batch, and weights in 8 bits.

Times are processor time of one thread, which is what the work takes however busy the machine is. The
prediction has the window at batch 1 in bf16, the bandwidth at which memory is read, and the FLOP/s that
the engine itself reaches in prefill.
"""

import os
import resource
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.levers.gguf import Llama, write
from exporter.accounting.peaks import Peaks
from exporter.advice.levers import LEVERS
from exporter.advice.prediction import Interval
from exporter.advice.window import GpuWindow, WorkloadWindow
from exporter.inference.models.flops import linear_flop_per_token


BATCHES = (2, 4, 8)
_PROMPT = 16
_SHORT, _LONG = 8, 40
_PREFILL = 256
_REPEATS = 3
_READ_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One change: throughput over that at batch 1 in bf16, predicted and measured."""

    change: str
    predicted: Interval
    measured: float

    @property
    def error(self) -> float:
        """Signed error of the middle of the interval."""
        return self.predicted.middle / self.measured - 1.0


def rows(binaries: Path, folder: Path) -> list[Row]:
    """Make the models, time the engine, and compare."""
    model = Llama()
    plain, quantized = folder / "bf16.gguf", folder / "q8_0.gguf"
    write(plain, model)
    _run(binaries, "llama-quantize", str(plain), str(quantized), "q8_0", "1")
    today = _decode_seconds(binaries, plain, 1)
    window = _window(model, today, _prefill_flops(binaries, plain, model), _bandwidth())
    found = []
    for batch in BATCHES:
        measured = batch * today / _decode_seconds(binaries, plain, batch)
        after = replace(window, running_requests=float(batch))
        found.append(Row(f"batch 1 to {batch}", _predict("larger_batch", window, after), measured))
    # Eight bits and a 16-bit scale for each 32 weights.
    after = replace(window, description=model.description((8 + 16 / 32) / 8))
    measured = today / _decode_seconds(binaries, quantized, 1)
    found.append(Row("bf16 to q8_0", _predict("weights_fp8", window, after), measured))
    return found


def table(found: list[Row]) -> str:
    """The comparison as people read it."""
    lines = ["change          predicted      middle  measured   error"]
    lines += [
        f"{row.change:14}  {row.predicted.low:.2f} to {row.predicted.high:.2f}  "
        f"{row.predicted.middle:6.2f}  {row.measured:8.2f}  {row.error:+6.1%}"
        for row in found
    ]
    return "\n".join(lines)


def _predict(lever: str, before: WorkloadWindow, after: WorkloadWindow) -> Interval:
    predict = LEVERS[lever].after
    assert predict is not None
    return predict(before, after)


def _window(model: Llama, seconds: float, flops: float, bandwidth: float) -> WorkloadWindow:
    """What the exporter would see of decoding at batch 1."""
    processor = GpuWindow(
        gpu="cpu0",
        uuid="cpu0",
        name="host processor",
        peaks=Peaks(origin="derived", model="host processor", flops={"bf16": flops}),
        clock_ratio=1.0,
        graphics=1.0,
        reachable_bandwidth_bytes_per_second=bandwidth,
        reachable_flops={"bf16": flops},
    )
    return WorkloadWindow(
        workload="llama.cpp",
        model="random",
        seconds=seconds,
        gpus=(processor,),
        gpu_count=1,
        description=model.description(),
        prefill_tokens=0.0,
        cached_tokens=0.0,
        decode_tokens=1.0,
        prompts=0.0,
        passes=1.0,
        running_requests=1.0,
        waiting_requests=8.0,
        cache_usage_ratio=0.01,
        decode_context=_PROMPT + (_SHORT + _LONG) / 2,
    )


def _decode_seconds(binaries: Path, model: Path, batch: int) -> float:
    """Processor seconds of one pass that decodes `batch` sequences: of two lengths, the difference."""
    best = {
        length: min(_bench(binaries, model, batch, _PROMPT, length) for _ in range(_REPEATS))
        for length in (_SHORT, _LONG)
    }
    return (best[_LONG] - best[_SHORT]) / (_LONG - _SHORT)


def _prefill_flops(binaries: Path, model: Path, shape: Llama) -> float:
    """FLOP/s of the engine's own prefill."""
    short, long = (
        min(_bench(binaries, model, 1, tokens, 1) for _ in range(_REPEATS))
        for tokens in (_PREFILL, 3 * _PREFILL)
    )
    return 2 * _PREFILL * linear_flop_per_token(shape.description()) / (long - short)


def _bench(binaries: Path, model: Path, batch: int, prompt: int, answer: int) -> float:
    context = batch * (prompt + answer) + 64
    return _run(
        binaries,
        "llama-batched-bench",
        *("-m", str(model), "-c", str(max(512, context)), "-t", "1", "-tb", "1"),
        *("-npp", str(prompt), "-ntg", str(answer), "-npl", str(batch)),
    )


def _run(binaries: Path, program: str, *arguments: str) -> float:
    """Run a program of the engine to its end; returns its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [binaries / program, *arguments],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "LD_LIBRARY_PATH": str(binaries)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _bandwidth() -> float:
    """Bytes per second that one thread reads: the C library looks for a byte that is not there."""
    memory = bytearray(_READ_BYTES)
    best = float("inf")
    for _ in range(8):
        started = time.thread_time()
        memory.find(1)
        best = min(best, time.thread_time() - started)
    return _READ_BYTES / best
