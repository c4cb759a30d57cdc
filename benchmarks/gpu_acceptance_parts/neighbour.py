"""Part 4: tokens per second of a decoding tenant with the daemon absent, passive and probing.

Blocks of the three conditions alternate while the tenant keeps running, so drift affects all of
them. In "absent" blocks the daemon is stopped (SIGSTOP) and makes no calls; two longer blocks
before its start and after its end show whether that equals its absence.
"""

import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_acceptance_parts.accuracy import MODEL, TINY_MODEL
from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.daemon import settings, start_daemon, wait_for_gpu
from benchmarks.gpu_acceptance_parts.schema import Goal
from benchmarks.gpu_acceptance_parts.statistics_of import (
    bootstrap_mean,
    interleaved,
    rate_between,
    relative_losses,
)
from benchmarks.gpu_acceptance_parts.tenant import Tenant
from probes.config import ProbeConfig
from tests.daemon.process import DaemonProcess


GOAL = Goal(high=0.001)
CONDITIONS = ("absent", "passive", "probing")
# Probes run so often that every block has its share; the loss is then scaled to the default.
PROBE_INTERVAL_SECONDS = 2.0
BLOCK_SECONDS, GUARD_SECONDS = 2.0, 0.7
OUTER_SECONDS = 3.0
# Tenant and daemon starting, the probes choosing their sizes, the end.
OVERHEAD_SECONDS = 45.0
ROUNDS_MIN, ROUNDS_MAX = 3, 30
_FOREVER = 3600.0  # the part ends long before


class Block(NamedTuple):
    """A span of time under one condition, monotonic seconds."""

    condition: str
    begin: float
    end: float


class Timing(NamedTuple):
    """How long each thing takes; a rehearsal is shorter."""

    block: float
    guard: float
    outer: float
    rounds: int

    @property
    def seconds(self) -> float:
        """All rounds and the outer blocks."""
        return self.rounds * len(CONDITIONS) * (self.block + self.guard) + 2 * self.outer


def run(context: Context) -> None:
    """As many rounds as fit."""
    report = context.report
    each = len(CONDITIONS) * (BLOCK_SECONDS + GUARD_SECONDS)
    room = report.box.left_seconds - OVERHEAD_SECONDS - 2 * OUTER_SECONDS
    rounds = min(ROUNDS_MAX, int(room / each))
    timing = Timing(BLOCK_SECONDS, GUARD_SECONDS, OUTER_SECONDS, rounds)
    if context.rehearsal:
        timing = Timing(0.6, 0.1, 0.6, ROUNDS_MIN)
    if timing.rounds < ROUNDS_MIN:
        report.left_out("tokens per second", f"needs {ROUNDS_MIN} rounds of {each:.0f} s")
        return
    report.step("tokens per second", timing.seconds, lambda: _measure(context, timing))


def _measure(context: Context, timing: Timing) -> None:
    pause = context.scratch / "pause"
    pause.touch()
    config = settings(
        probes={
            "interval": f"{PROBE_INTERVAL_SECONDS:g}s",
            "hold_off": "0s",
            "pause_file": str(pause),
        }
    ) | {"sources": {"cpu": "on"}}
    blocks: list[Block] = []
    gpu = "cpu0" if context.rehearsal else str(context.gpu)

    def outer() -> None:
        begin = time.monotonic()
        time.sleep(timing.outer)
        blocks.append(Block("outer", begin, time.monotonic()))

    with Tenant(context.device) as tenant:
        tenant.open()
        model = TINY_MODEL if context.rehearsal else MODEL
        stop = context.scratch / "stop"
        tenant.begin(
            "transformer", model=model, prefills=0, decodes=1, seconds=_FOREVER, stop=str(stop)
        )
        time.sleep(timing.guard + (0.5 if context.rehearsal else 4.0))
        outer()
        with start_daemon(context.scratch / "neighbour", config) as daemon:
            wait_for_gpu(daemon, context.gpu)
            pause.unlink()
            probed = daemon.wait_until(lambda s: s.total("flopwatch_probe_runs_total", gpu=gpu) > 0)
            before = probed.total("flopwatch_probe_gpu_seconds_total", gpu=gpu)
            blocks += _rounds(daemon, pause, timing)
            probed = daemon.scrape()
            spent = probed.total("flopwatch_probe_gpu_seconds_total", gpu=gpu) - before
        outer()
        stop.touch()
        steps = tenant.result(30)
    context.report.detail("blocks", [list(block) for block in blocks])
    _judge(context, blocks, steps, spent / (timing.rounds * (timing.block + timing.guard)))


def _rounds(daemon: DaemonProcess, pause: Path, timing: Timing) -> list[Block]:
    apply: Mapping[str, Callable[[], None]] = {
        "absent": lambda: daemon.process.send_signal(signal.SIGSTOP),
        "passive": pause.touch,
        "probing": lambda: pause.unlink(missing_ok=True),
    }
    blocks = []
    try:
        for order in interleaved(CONDITIONS, timing.rounds):
            for condition in order:
                daemon.process.send_signal(signal.SIGCONT)
                apply[condition]()
                time.sleep(timing.guard)
                begin = time.monotonic()
                time.sleep(timing.block)
                blocks.append(Block(condition, begin, time.monotonic()))
    finally:
        daemon.process.send_signal(signal.SIGCONT)
        pause.unlink(missing_ok=True)
    return blocks


def rates(blocks: Sequence[Block], ends: Sequence[float], tokens: float) -> dict[str, list[float]]:
    """Tokens per second by condition, of the rounds in which every block has two steps at least.

    Raises ValueError when there are no two such rounds.
    """
    found: dict[str, list[float | None]] = {}
    for block in blocks:
        rate = rate_between(ends, tokens, block.begin, block.end)
        found.setdefault(block.condition, []).append(rate)
    rounds = zip(*(found[condition] for condition in CONDITIONS), strict=True)
    whole = [round_ for round_ in rounds if None not in round_]
    if len(whole) < 2:
        raise ValueError("the tenant was held up: no two rounds have steps in all their blocks")
    by_condition = dict(zip(CONDITIONS, zip(*whole, strict=True), strict=True))
    by_condition["outer"] = tuple(found.get("outer", ()))
    return {
        name: [rate for rate in values if rate is not None] for name, values in by_condition.items()
    }


def at_default_schedule(
    passive: Sequence[float], probing: Sequence[float], interval_seconds: float
) -> list[float]:
    """Losses of each round at the default interval: the passive loss, and the probes' own share of it."""
    share = interval_seconds / ProbeConfig().interval_seconds
    return [p + (q - p) * share for p, q in zip(passive, probing, strict=True)]


def _judge(
    context: Context, blocks: list[Block], steps: dict[str, Any], probe_share: float
) -> None:
    report = context.report
    by_condition = rates(blocks, steps["ends"], steps["tokens_per_step"])
    for condition in CONDITIONS:
        values = by_condition[condition]
        interval = bootstrap_mean(values)
        report.figure(
            f"tokens per second, daemon {condition}",
            interval.mean,
            "tokens/s",
            low=interval.low,
            high=interval.high,
            note=f"{len(values)} blocks",
        )
    passive = relative_losses(by_condition["absent"], by_condition["passive"])
    probing = relative_losses(by_condition["absent"], by_condition["probing"])
    scaled = at_default_schedule(passive, probing, PROBE_INTERVAL_SECONDS)
    for name, losses, goal in (
        ("loss, passive", passive, GOAL),
        (f"loss, probing every {PROBE_INTERVAL_SECONDS:g} s", probing, None),
        ("loss, probing at the default schedule (scaled)", scaled, GOAL),
    ):
        interval = bootstrap_mean(losses)
        report.figure(name, interval.mean, "ratio", low=interval.low, high=interval.high, goal=goal)
    if by_condition["outer"]:
        outer = statistics.fmean(by_condition["outer"])
        stopped = statistics.fmean(by_condition["absent"])
        report.figure("not started at all over stopped", outer / stopped, "ratio")
    report.figure("probes' GPU time in the blocks with probes", probe_share, "ratio")
