"""The cases: what is sent to which engine, and how flopwatch's accounting compares with the truth."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine_accuracy.llama_cases import llama_cpp, one_by_one, send
from benchmarks.engine_accuracy.load import Maker, Prompts, Request, Sent, send_all, send_for
from benchmarks.engine_accuracy.report import PAIRED_BOUND, Row
from benchmarks.engine_accuracy.servers import POOLING, Server, vllm
from benchmarks.engine_accuracy.truth import Truth, between, read_passes, sum_up
from exporter.inference.config import WorkloadConfig
from exporter.inference.service import WorkloadService
from exporter.inference.snapshot import ModelSnapshot


INTERVALS = (1.0, 15.0)
_POLL_SECONDS = 0.1

Load = Callable[[Server, Sent], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One load, and whether some of its requests are aborted."""

    name: str
    load: Load
    aborts: bool = False
    embeddings: bool = False
    # A bound of its own where the usual one cannot hold; the page says why.
    flop_bound: float | None = None


def _requests(*parts: tuple[int, int, int], seed: int, workers: int = 4, copies: int = 1) -> Load:
    """(how many, prompt, answer) requests, all at once."""

    def load(server: Server, sent: Sent) -> None:
        prompts = Prompts(seed)
        made = [
            Request(prompts.fresh(prompt), answer, copies)
            for count, prompt, answer in parts
            for _ in range(count)
        ]
        send_all(server, made, sent, workers)

    return load


def _embeddings(count: int, prompt: int, seed: int) -> Load:
    def load(server: Server, sent: Sent) -> None:
        prompts = Prompts(seed)
        made = [Request(prompts.fresh(prompt), 0, embedding=True) for _ in range(count)]
        send_all(server, made, sent, 4)

    return load


def _again(prompt: int, answer: int, seed: int) -> Load:
    """The same prompt twice: the second time, all but its last block is cached."""

    def load(server: Server, sent: Sent) -> None:
        request = Request(Prompts(seed).fresh(prompt), answer)
        send_all(server, [request], sent, 1)
        send_all(server, [request], sent, 1)

    return load


def _random(
    seed: int, seconds: float, prompts: tuple[int, int], answers: tuple[int, int], workers: int = 6
) -> Load:
    def load(server: Server, sent: Sent) -> None:
        send_for(server, Maker(seed, prompts, answers), sent, workers=workers, seconds=seconds)

    return load


def _aborted(seed: int) -> Load:
    """Aborted requests among others."""

    def load(server: Server, sent: Sent) -> None:
        prompts = Prompts(seed)
        # Answers far longer than the part that is generated before the client hangs up.
        gone = [Request(prompts.fresh(300), 3000, 1, 1.5) for _ in range(2)]
        stay = [Request(prompts.fresh(100), 60) for _ in range(6)]
        send_all(server, [*gone, *stay], sent, 4)

    return load


GROUPS: dict[str, tuple[tuple[str, ...], tuple[Case, ...]]] = {
    "vllm": (
        ("--max-num-batched-tokens=2048",),
        (
            Case("prompt 100, answer 50", _requests((1, 100, 50), seed=1)),
            Case("prompt 700, answer 200", _requests((1, 700, 200), seed=2)),
            Case("the same prompt of 700 again", _again(700, 100, seed=3)),
            Case("n=4, prompt 200", _requests((2, 200, 60), seed=4, copies=4)),
            Case("24 prompts of 30, 4 of 900", _requests((24, 30, 20), (4, 900, 20), seed=5)),
            Case(
                "long answers to long prompts: 2 of 300 and 600, 6 of 100 and 60",
                _requests((2, 300, 600), (6, 100, 60), seed=8),
                flop_bound=PAIRED_BOUND,
            ),
            Case("random requests, one minute", _random(6, 62, (10, 1500), (5, 150))),
            Case("aborted requests", _aborted(seed=7), aborts=True),
        ),
    ),
    "vllm-chunked": (
        ("--max-num-batched-tokens=128",),
        (
            Case("chunks of 128: prompt 900, answer 1", _requests((1, 900, 1), seed=11)),
            Case("chunks of 128: prompt 900, answer 50", _requests((1, 900, 50), seed=12)),
            Case("chunks of 128: random", _random(13, 20, (10, 1500), (5, 100))),
        ),
    ),
    "vllm-preemption": (
        ("--max-num-batched-tokens=2048", "--num-gpu-blocks-override=14", "--max-model-len=1024"),
        (Case("preemption", _requests((12, 200, 180), seed=21, workers=8)),),
    ),
    "vllm-speculation": (
        (
            "--max-num-batched-tokens=2048",
            '--speculative-config={"method":"ngram","num_speculative_tokens":4,"prompt_lookup_max":3}',
        ),
        (Case("n-gram speculation", _requests((6, 160, 120), seed=31)),),
    ),
    "vllm-api-servers": (
        ("--max-num-batched-tokens=2048", "--api-server-count=2"),
        (
            Case("two API servers, 16 at once", _requests((16, 100, 200), seed=41, workers=16)),
            Case("two API servers, random, one minute", _random(42, 62, (10, 800), (5, 100))),
        ),
    ),
    "vllm-data-parallel": (
        ("--max-num-batched-tokens=2048", "--data-parallel-size=2"),
        (
            Case("two data-parallel ranks", _requests((16, 100, 200), seed=51, workers=16)),
            Case("two ranks, random, one minute", _random(52, 62, (10, 800), (5, 100))),
        ),
    ),
    "vllm-embeddings": (
        ("--max-num-batched-tokens=2048", POOLING, "--convert=embed"),
        (
            Case("embeddings, one of 300", _embeddings(1, 300, seed=71), embeddings=True),
            Case("embeddings, 40 of 200", _embeddings(40, 200, seed=72), embeddings=True),
        ),
    ),
}
_RESTART_OPTIONS = ("--max-num-batched-tokens=2048",)
# Before the engine is stopped, and after it was started again on the same port.
_RESTART_LOADS = (
    _requests((4, 300, 100), seed=81),
    _requests((4, 500, 60), seed=82),
)


LLAMA_CASES = {
    "prompt 100, answer 50": (lambda: [Request(Prompts(61).fresh(100), 50)], 1),
    "prompt 700, answer 400": (lambda: [Request(Prompts(62).fresh(700), 400)], 1),
    "one after the other": (lambda: one_by_one(63, 12), 1),
    "four at once": (lambda: [Request(Prompts(64 + n).fresh(400), 500) for n in range(4)], 4),
}


def names() -> list[str]:
    """All groups."""
    return [*GROUPS, "vllm-restart", "llama.cpp"]


def run_group(name: str, folder: Path) -> Iterator[Row]:
    """Serve once, run the group's cases, and yield a row for each and each interval."""
    if name == "llama.cpp":
        yield from _run_llama(folder / name)
        return
    if name == "vllm-restart":
        yield from _run_restart(folder / name)
        return
    options, cases = GROUPS[name]
    with vllm(folder / name, *options) as server, _watched(server, "vllm") as watch:
        for case in cases:
            yield from _run(case, server, watch)


def _run_restart(folder: Path) -> Iterator[Row]:
    """One load before the engine restarts and one after it, seen by the same two workloads.

    What a process did after its last scrape is lost with it: so all is scraped before it ends.
    """
    sent, seconds = Sent(), 0.0
    with ExitStack() as watching:
        watch: Watch | None = None
        before: dict[float, ModelSnapshot] = {}
        port = None
        for load in _RESTART_LOADS:
            with vllm(folder, *_RESTART_OPTIONS, port=port) as server:
                if watch is None:
                    port = server.port
                    watch = watching.enter_context(_watched(server, "vllm"))
                    before = watch.after(time.time())
                started = time.monotonic()
                load(server, sent)
                seconds += time.monotonic() - started
                after = watch.after(time.time() + 1.0)
                passes = read_passes(server.folder)
        if sent.failures:
            raise RuntimeError(f"restart: {sent.failures[0]}")
        truth = sum_up(passes, sent.lengths)
        for interval in INTERVALS:
            snapshots = (before[interval], after[interval])
            yield _row(
                "vLLM", "the engine restarts between loads", interval, seconds, snapshots, truth
            )


def _run_llama(folder: Path) -> Iterator[Row]:
    with llama_cpp(folder) as server, _watched(server, "llama_cpp") as watch:
        for name, (requests, workers) in LLAMA_CASES.items():
            before = watch.after(time.time())
            started = time.monotonic()
            truth = send(server, requests(), workers)
            seconds = time.monotonic() - started
            after = watch.after(time.time() + 1.0)
            for interval in INTERVALS:
                yield _row(
                    "llama.cpp", name, interval, seconds, (before[interval], after[interval]), truth
                )


class Watch:
    """The workloads of flopwatch that watch one server."""

    def __init__(self, service: WorkloadService) -> None:
        self._service = service

    def now(self) -> dict[float, tuple[float, ModelSnapshot | None]]:
        """By interval: when the workload was last scraped, and its model."""
        found = {}
        for workload in self._service.snapshot().workloads:
            model = workload.models[0] if workload.models else None
            at = workload.last_success_timestamp_seconds or 0.0
            found[float(workload.name)] = (at, model)
        return found

    def after(self, moment: float) -> dict[float, ModelSnapshot]:
        """Wait until every workload was scraped after `moment`."""
        while True:
            found = self.now()
            if all(at > moment and model is not None for at, model in found.values()):
                return {key: model for key, (_at, model) in found.items() if model is not None}
            time.sleep(_POLL_SECONDS)


@contextmanager
def _watched(server: Server, engine: str) -> Iterator[Watch]:
    service = WorkloadService(
        [
            WorkloadConfig(
                f"{interval:g}",
                engine,
                server.url,
                Path(server.model),
                interval_seconds=interval,
            )
            for interval in INTERVALS
        ]
    )
    service.start()
    try:
        yield Watch(service)
    finally:
        service.stop()


def _run(case: Case, server: Server, watch: Watch) -> Iterator[Row]:
    before = watch.after(time.time())
    passes = len(read_passes(server.folder))
    sent = Sent()
    started = time.monotonic()
    case.load(server, sent)
    seconds = time.monotonic() - started
    if sent.failures:
        raise RuntimeError(f"{case.name}: {sent.failures[0]}")
    after = watch.after(time.time() + 1.0)
    made = read_passes(server.folder)[passes:]
    truth = sum_up(made, sent.lengths, embeddings=case.embeddings)
    endless = sent.lengths | dict.fromkeys(sent.aborted, sys.maxsize)
    for interval in INTERVALS:
        snapshots = (before[interval], after[interval])
        if sent.aborted:
            counted = sum(
                (getattr(snapshots[1], name) or 0.0) - (getattr(snapshots[0], name) or 0.0)
                for name in ("prefill_tokens", "decode_tokens")
            )
            truth = between(sum_up(made, sent.lengths), sum_up(made, endless), counted)
        yield _row("vLLM", case.name, interval, seconds, snapshots, truth, case)


def _row(  # noqa: PLR0917 - the columns of a row
    engine: str,
    case: str,
    interval: float,
    seconds: float,
    snapshots: tuple[ModelSnapshot, ModelSnapshot],
    truth: Truth,
    kind: Case | None = None,
) -> Row:
    def grown(name: str) -> float | None:
        first, last = (getattr(snapshot, name) for snapshot in snapshots)
        return None if last is None else last - (first or 0.0)

    def error(name: str, right: float) -> float | None:
        value = grown(name)
        return None if value is None or not right else value / right - 1

    tokens = (grown("prefill_tokens") or 0.0) + (grown("decode_tokens") or 0.0)
    return Row(
        engine,
        case,
        interval,
        seconds,
        tokens - truth.prefill_tokens - truth.decode_tokens,
        error("prefill_flop", truth.prefill_flop),
        error("decode_flop", truth.decode_flop),
        error("dram_bytes", truth.dram_bytes),
        kind is not None and kind.aborts,
        kind.flop_bound if kind else None,
    )
