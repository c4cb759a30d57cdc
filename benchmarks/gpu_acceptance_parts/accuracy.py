"""Part 2: the daemon's counters against work of known FLOP and bytes, precision by precision."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.daemon import (
    Counters,
    grown,
    reconfigure,
    settings,
    settled,
    start_daemon,
    wait_for_gpu,
)
from benchmarks.gpu_acceptance_parts.schema import Goal
from benchmarks.gpu_acceptance_parts.survey import identity_and_peaks
from benchmarks.gpu_acceptance_parts.tenant import Tenant
from benchmarks.gpu_acceptance_parts.truth import (
    GEMM_PRECISIONS,
    error_outside,
    error_ratio,
    pipe_of,
    tensor_seconds,
)
from tests.daemon.process import DaemonProcess


GEMM_GOAL = Goal(-0.02, 0.02)
TRANSFORMER_GOAL = Goal(-0.05, 0.05)
# From a tick to a tick, by the time that the daemon gives its readings.
STATES_GOAL_SECONDS = 0.2
WORK_SECONDS = 3.0
# Ticks, operands made, and now and then a reload.
OVERHEAD_SECONDS = 4.5
LARGE, MEDIUM, SMALL, TINY = [8192, 8192, 8192], [4096, 4096, 4096], [1024, 1024, 1024], [64] * 3
COPY_BYTES = 1 << 30
MODEL = {
    "shape": {
        "layers": 4,
        "hidden": 4096,
        "heads": 32,
        "head_width": 128,
        "intermediate": 14336,
        "vocabulary": 32000,
    },
    "batch": 128,
    "context_tokens": 256,
    "prompt_tokens": 2048,
}
TINY_MODEL = {
    "shape": {
        "layers": 2,
        "hidden": 64,
        "heads": 4,
        "head_width": 16,
        "intermediate": 128,
        "vocabulary": 256,
    },
    "batch": 4,
    "context_tokens": 16,
    "prompt_tokens": 32,
}


@dataclass(frozen=True, slots=True)
class GemmCase:
    """A GEMM at a size, busy for a share of the time. fp32 and fp64 take smaller ones: they are slow."""

    precision: str
    shape: tuple[int, int, int]
    duty: float

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.precision} {'x'.join(map(str, self.shape))} at {self.duty:.0%}"


def gemm_cases(*, rehearsal: bool) -> list[GemmCase]:
    """Every precision once first, so a short time still covers all; then sizes and duty cycles."""
    if rehearsal:
        return [GemmCase(precision, (64, 64, 64), 1.0) for precision in ("bf16", "fp32")]
    first = [GemmCase(p, _shape(MEDIUM), 1.0) for p in GEMM_PRECISIONS]
    more = [
        GemmCase(precision, _shape(shape), duty)
        for shape, duty in ((LARGE, 1.0), (MEDIUM, 0.5), (SMALL, 1.0), (MEDIUM, 0.25))
        for precision in ("bf16", "fp8", "int8", "tf32", "fp16")
    ]
    return first + more


class Comparison:
    """One daemon, one tenant, and the counters between pieces of work."""

    def __init__(self, context: Context, daemon: DaemonProcess, tenant: Tenant) -> None:
        self.context = context
        self._daemon = daemon
        self._tenant = tenant
        self._identity, self._peaks = identity_and_peaks(context.gpu)
        self._headline: str | None = None
        self.before = settled(daemon, context.gpu)
        self.values: list[dict[str, Any]] = []

    def value_tensor_work_in(self, precision: str) -> None:
        """Make `precision` the daemon's headline, which its counter of HMMA time needs to know."""
        if precision in ("fp64", "fp32", "int8") or precision == self._headline:
            return  # they have their own pipes: the headline does not matter
        reconfigure(self._daemon, settings(precision=precision))
        self._headline = precision
        self.before = settled(self._daemon, self.context.gpu)

    def work(self, request: str, **arguments: Any) -> tuple[dict[str, Any], Counters, Counters]:
        """Make the tenant work; its answer, and the counters before and after."""
        done = self._tenant.ask(request, **arguments)
        before, self.before = self.before, settled(self._daemon, self.context.gpu)
        return done, before, self.before

    def gemm(self, case: GemmCase) -> None:
        """One row: FLOP counted against FLOP done, and the tensor state against its seconds."""
        self.value_tensor_work_in(case.precision)
        seconds = 0.3 if self.context.rehearsal else WORK_SECONDS
        done, before, after = self.work(
            "gemm",
            precision=case.precision,
            shape=list(case.shape),
            seconds=seconds,
            duty=case.duty,
            period=0.02,
        )
        pipe = pipe_of(case.precision)
        counted = grown(before.flop(pipe, case.precision), after.flop(pipe, case.precision))
        self._flop_figure(f"FLOP, {case.name}", counted, done["flop"], done["flop"], GEMM_GOAL)
        if pipe == "tensor":
            self._tensor_state(case, done["flop"], before, after)
        self.states(case.name, before, after)
        self.keep(case.name, done, before, after)

    def states(self, name: str, before: Counters, after: Counters) -> None:
        """Whether the states' seconds sum to the time between the readings."""
        summed = sum(after.states().values()) - sum(before.states().values())
        passed = after.at - before.at
        self.context.report.figure(
            f"states minus elapsed time, {name}",
            summed - passed,
            "seconds",
            goal=Goal(-STATES_GOAL_SECONDS, STATES_GOAL_SECONDS),
        )

    def keep(self, name: str, done: dict[str, Any], before: Counters, after: Counters) -> None:
        """The raw growth of every counter, for the JSON."""
        old, old_states = before.pipes(), before.states()
        self.values.append(
            {
                "name": name,
                "done": {key: value for key, value in done.items() if key != "ends"},
                "flop": {key: value - old.get(key, 0.0) for key, value in after.pipes().items()},
                "dram_bytes": grown(before.dram_bytes(), after.dram_bytes()),
                "states": {
                    key: value - old_states.get(key, 0.0) for key, value in after.states().items()
                },
            }
        )

    def copy(self) -> None:
        """DRAM bytes of copies."""
        rehearsal = self.context.rehearsal
        done, before, after = self.work(
            "copy",
            size_bytes=1 << 20 if rehearsal else COPY_BYTES,
            seconds=0.3 if rehearsal else WORK_SECONDS,
            duty=1.0,
            period=0.02,
        )
        counted = grown(before.dram_bytes(), after.dram_bytes())
        self._flop_figure("DRAM bytes, copies", counted, done["bytes"], done["bytes"], GEMM_GOAL)
        self.states("copies", before, after)
        self.keep("copies", done, before, after)

    def transformer(self, name: str, prefills: int, decodes: int) -> None:
        """FLOP of a decoder; of pure decoding also its DRAM bytes.

        The lowest truth is the linear layers, the highest has attention too, which for one token a
        sequence may run on the plain pipes instead.
        """
        self.value_tensor_work_in("bf16")
        done, before, after = self.work(
            "transformer",
            model=TINY_MODEL if self.context.rehearsal else MODEL,
            prefills=prefills,
            decodes=decodes,
            seconds=0.3 if self.context.rehearsal else WORK_SECONDS,
        )
        counted = grown(before.flop("tensor", "bf16"), after.flop("tensor", "bf16"))
        highest = done["linear_flop"] + done["attention_flop"]
        lowest = done["linear_flop"] if decodes else highest
        self._flop_figure(f"FLOP, transformer {name}", counted, lowest, highest, TRANSFORMER_GOAL)
        if done["bytes"]:
            moved = grown(before.dram_bytes(), after.dram_bytes())
            self._flop_figure(
                f"DRAM bytes, transformer {name}",
                moved,
                done["bytes"],
                done["bytes"],
                TRANSFORMER_GOAL,
            )
        self.states(f"transformer {name}", before, after)
        self.keep(f"transformer {name}", done, before, after)

    def _flop_figure(
        self, name: str, counted: float | None, lowest: float, highest: float, goal: Goal
    ) -> None:
        if counted is None:
            self.context.report.figure(
                f"error of {name}", None, "ratio", goal=goal, note="the daemon counts none of it"
            )
            return
        error = error_outside(counted, lowest, highest)
        note = f"{counted:.4g} counted, {lowest:.4g}"
        note += f" to {highest:.4g} done" if highest != lowest else " done"
        self.context.report.figure(f"error of {name}", error, "ratio", goal=goal, note=note)

    def _tensor_state(self, case: GemmCase, flop: float, before: Counters, after: Counters) -> None:
        rate = self._peaks.tensor_rate.get(case.precision)
        sms, hertz = self._peaks.sm_count, self._identity.sm_clock_max_hertz
        if not rate or not sms or not hertz:
            return
        true = tensor_seconds(flop, rate, sms, hertz)
        counted = after.states().get("tensor", 0.0) - before.states().get("tensor", 0.0)
        self.context.report.figure(
            f"error of the state tensor, {case.name}",
            error_ratio(counted, true),
            "ratio",
            goal=GEMM_GOAL,
            note=f"{counted:.3f} s counted, {true:.3f} s by the FLOP",
        )


def run(context: Context) -> None:
    """A daemon and a tenant; GEMMs, copies and the transformer, as far as time permits."""
    report = context.report
    with (
        start_daemon(context.scratch, settings(precision="bf16")) as daemon,
        Tenant(context.device) as tenant,
    ):
        wait_for_gpu(daemon, context.gpu)
        tenant.open()
        comparison = Comparison(context, daemon, tenant)
        work = 0.3 if context.rehearsal else WORK_SECONDS
        needed = work + OVERHEAD_SECONDS
        cases = gemm_cases(rehearsal=context.rehearsal)
        steps: list[tuple[str, Callable[[], None]]] = [
            (case.name, partial(comparison.gemm, case)) for case in cases[: len(GEMM_PRECISIONS)]
        ]
        steps.append(("copies", comparison.copy))
        steps += [
            (f"transformer {name}", partial(comparison.transformer, name, prefills, decodes))
            for name, prefills, decodes in (
                ("prefill", 1, 0),
                ("decode", 0, 1),
                ("mixed", 1, 16),
            )
        ]
        steps += [
            (case.name, partial(comparison.gemm, case)) for case in cases[len(GEMM_PRECISIONS) :]
        ]
        for name, task in steps:
            if not report.step(name, needed, task) and report.box.fits(needed):
                # What a failed piece of work left behind must not affect the next one.
                comparison.before = settled(daemon, context.gpu)
        report.detail("growth of the counters", comparison.values)


def _shape(values: list[int]) -> tuple[int, int, int]:
    m, n, k = values
    return m, n, k
