"""Predictions against llama.cpp on the host processor: a larger batch, and weights in fewer bits.

Times are processor time of one thread, which does not depend on how busy the machine is. The
prediction has the window before the change, the bandwidth at which memory is read, and the FLOP/s
that the engine itself reaches in prefill.
"""

import os
import resource
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gguf import Llama, write
from exporter.accounting.peaks import Peaks
from exporter.advice.levers import LEVERS
from exporter.advice.prediction import GpuWindow, Inapplicable, Interval, WorkloadWindow
from exporter.inference.models.cost import linear_flop_per_token


_SHORT, _LONG = 8, 40
_PREFILL = 256
_REPEATS = 3
_READ_BYTES = 256 * 2**20
# Bytes a weight: 8 or 4 bits, and a 16-bit scale for each 32 weights.
_FORMATS = {"q8_0": (8 + 16 / 32) / 8, "q4_0": (4 + 16 / 32) / 8}


@dataclass(frozen=True, slots=True)
class Experiment:
    """A model, the batch at which the window before the change is taken, and the changes."""

    title: str
    model: Llama
    prompt: int
    batch: int
    batches: tuple[int, ...]
    formats: tuple[str, ...]


EXPERIMENTS: Mapping[str, Experiment] = {
    "first": Experiment(
        "the model with which the range of overlap was chosen",
        Llama(),
        prompt=16,
        batch=1,
        batches=(2, 4, 8),
        formats=("q8_0",),
    ),
    "second": Experiment(
        "a second model",
        Llama(
            hidden=2048,
            layers=10,
            heads=16,
            key_value_heads=4,
            intermediate=5632,
            vocabulary=16384,
        ),
        prompt=192,
        batch=2,
        batches=(3, 6, 12),
        formats=("q8_0", "q4_0"),
    ),
    "third": Experiment(
        "a third model, after which the range for few rows was widened",
        Llama(
            hidden=1536,
            layers=14,
            heads=12,
            key_value_heads=12,
            intermediate=4096,
            vocabulary=12288,
        ),
        prompt=96,
        batch=1,
        batches=(3, 5, 16),
        formats=("q8_0", "q4_0"),
    ),
    "fourth": Experiment(
        "a fourth model, first measured when the predictor was finished",
        Llama(
            hidden=1280,
            layers=20,
            heads=20,
            key_value_heads=5,
            intermediate=3584,
            vocabulary=10240,
        ),
        prompt=64,
        batch=1,
        batches=(2, 6, 10),
        formats=("q8_0", "q4_0"),
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One change: throughput over that before it, predicted (or why not) and measured."""

    change: str
    predicted: Interval | str
    measured: float

    @property
    def error(self) -> float | None:
        """Signed error of the middle of the interval."""
        if isinstance(self.predicted, str):
            return None
        return self.predicted.middle / self.measured - 1.0


def rows(binaries: Path, folder: Path, experiment: Experiment) -> list[Row]:
    """Make the models, time the engine, and compare."""
    model, base = experiment.model, experiment.batch
    plain = folder / "bf16.gguf"
    write(plain, model)
    bench = _Bench(binaries, experiment.prompt)
    today = bench.decode_seconds(plain, base)
    window = _window(experiment, today, bench.prefill_flops(plain, model), _bandwidth())
    found = []
    for batch in experiment.batches:
        measured = batch / base * today / bench.decode_seconds(plain, batch)
        after = replace(window, running_requests=float(batch))
        change = f"batch {base} to {batch}"
        found.append(Row(change, _predict("larger_batch", window, after), measured))
    for name in experiment.formats:
        quantized = folder / f"{name}.gguf"
        _run(binaries, "llama-quantize", "--pure", str(plain), str(quantized), name, "1")
        after = replace(window, description=model.description(_FORMATS[name]))
        measured = today / bench.decode_seconds(quantized, base)
        quantized.unlink()
        found.append(Row(f"bf16 to {name}", _predict("weights_fp8", window, after), measured))
    return found


def table(found: list[Row]) -> str:
    """The comparison as people read it."""
    lines = ["change          predicted      middle  measured   error"]
    for row in found:
        if isinstance(row.predicted, str):
            lines.append(f"{row.change:14}  absent                 {row.measured:8.2f}")
        else:
            lines.append(
                f"{row.change:14}  {row.predicted.low:.2f} to {row.predicted.high:.2f}  "
                f"{row.predicted.middle:6.2f}  {row.measured:8.2f}  {row.error:+6.1%}"
            )
    reasons = dict.fromkeys(row.predicted for row in found if isinstance(row.predicted, str))
    return "\n".join([*lines, *(f"absent: {reason}" for reason in reasons)])


def _predict(lever: str, before: WorkloadWindow, after: WorkloadWindow) -> Interval | str:
    predict = LEVERS[lever].after
    assert predict is not None
    try:
        return predict(before, after)
    except Inapplicable as reason:
        return str(reason)


def _window(
    experiment: Experiment, seconds: float, flops: float, bandwidth: float
) -> WorkloadWindow:
    """What the exporter would observe of decoding before the change."""
    batch = float(experiment.batch)
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
        description=experiment.model.description(),
        prefill_tokens=0.0,
        cached_tokens=0.0,
        decode_tokens=batch,
        prompts=0.0,
        passes=1.0,
        running_requests=batch,
        waiting_requests=16.0,
        cache_usage_ratio=0.01,
        decode_context=experiment.prompt + (_SHORT + _LONG) / 2,
    )


@dataclass(frozen=True, slots=True)
class _Bench:
    """Times the engine's own benchmark with prompts of this length."""

    binaries: Path
    prompt: int

    def decode_seconds(self, model: Path, batch: int) -> float:
        """Processor seconds of one pass that decodes `batch` sequences: of two lengths, the difference."""
        short, long = (
            min(self._bench(model, batch, self.prompt, length) for _ in range(_REPEATS))
            for length in (_SHORT, _LONG)
        )
        return (long - short) / (_LONG - _SHORT)

    def prefill_flops(self, model: Path, shape: Llama) -> float:
        """FLOP/s of the engine's own prefill."""
        short, long = (
            min(self._bench(model, 1, tokens, 1) for _ in range(_REPEATS))
            for tokens in (_PREFILL, 3 * _PREFILL)
        )
        return 2 * _PREFILL * linear_flop_per_token(shape.description()) / (long - short)

    def _bench(self, model: Path, batch: int, prompt: int, answer: int) -> float:
        context = batch * (prompt + answer) + 64
        return _run(
            self.binaries,
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
    """Bytes per second that one thread reads: the C library searches for an absent byte."""
    memory = bytearray(_READ_BYTES)
    best = float("inf")
    for _ in range(8):
        started = time.thread_time()
        memory.find(1)
        best = min(best, time.thread_time() - started)
    return _READ_BYTES / best
