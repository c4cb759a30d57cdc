"""Probes one device in a cycle: kernel after kernel, until all have run or the budget is spent."""

import math
import threading
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from probes.config import ProbeConfig
from probes.device_states import DeviceStates, ProbedDevice
from probes.facts import DeviceFacts, ModelGemm
from probes.judgement import Baseline, Contention, Judgement, judge, too_short
from probes.protocol import Described, KernelInfo, Result, Run
from probes.sizing import MODEL_PRODUCTS_MAX, Shape, model_kernel, model_shape
from probes.supervisor import RunReport, WorkerFailedError
from probes.worker_pool import PooledWorker


TIMED_RUNS: Final = 7
# A kernel gets this many times the device time that it took before.
ALLOWANCE_FACTOR: Final = 1.5
# A kernel that was never measured must first find its size. It starts only if this share of the
# interval's budget is left.
NEW_KERNEL_SHARE: Final = 0.45
# After that, a run takes about this share of the time of the first one.
FIRST_RUN_SHARE: Final = 0.6
# The headline GEMM and this copy are due every interval, the others every third.
HEADLINE_COPY: Final = "copy_device"
OTHERS_PERIOD: Final = 3.0
# On the host processor, the first headline figures may spend this many intervals' budget at once,
# because a user waits for them. The limit per hour still holds.
FIRST_CREDIT_INTERVALS: Final = 4.0
# A kernel is left out after a whole interval's budget was too small for it this many times.
MISFITS_MAX: Final = 2
WHOLE_SHARE: Final = 0.8
OTHERS_RANK: Final = 2
# The factor by which an allowance that was too small is raised.
RAISE_FACTOR: Final = 1.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a measurement: one kernel on one device, with a peer if it needs two."""

    facts: DeviceFacts
    described: Described
    kernel: KernelInfo
    shared: bool
    """Other processes use the device."""
    peer: int | None = None
    """Index in the worker's devices."""
    peer_key: str = ""
    peer_uuid: str = ""
    gemm: ModelGemm | None = None
    """The served model's product, of a kernel that is one."""
    shape: Shape = ()
    """The shape to measure a model's product with."""

    @property
    def versions(self) -> str:
        """The versions that its baseline is valid for."""
        peer = f" peer {self.peer_uuid}" if self.peer_uuid else ""
        # A MIG instance's UUID can return for an instance of another size; its name shows the size.
        size = f" on {self.facts.name}" if self.facts.instance is not None else ""
        return self.described.versions + size + peer


class Prober:
    """Probes the devices of one worker. Each worker has its own thread."""

    def __init__(
        self,
        config: ProbeConfig,
        states: DeviceStates,
        stopping: threading.Event,
        paused: Callable[[], bool],
        identifiers: Callable[[], int],
    ) -> None:
        self._config = config
        self._states = states
        self._stopping = stopping
        self._paused = paused
        self._next_identifier = identifiers

    def turn(
        self, pooled: PooledWorker, index: int, ready: Mapping[str, DeviceFacts], *, shared: bool
    ) -> None:
        """Probe device `index` of a running worker. `ready` are the devices of this cycle."""
        uuid = pooled.uuids[index]
        state = self._states[uuid]
        described = self._describe(pooled, index)
        if described is None:
            return
        if ready[uuid].kind == "cuda":
            self._check_memory(state, described)
        total = Contention(0.0, 0.0)
        order = self._order(state, described, ready[uuid])
        for position, kernel in enumerate(order):
            if self._stopping.is_set():
                return
            untried = sum(each not in order[:position] for each in order[position:])
            if self._paused():
                self._states.skip(uuid, "paused", untried)
                break
            subject = self._subject(pooled, index, ready, described, kernel, shared=shared)
            if subject is None:
                continue
            if state.holds_back(kernel.name, self._states.clock.monotonic()):
                self._states.skip(uuid, "backoff")
                continue
            baseline = state.baselines.get(kernel.name)
            if baseline is not None and baseline.versions != subject.versions:
                baseline = None
            allowance = self._allowance(state, subject, baseline)
            if not allowance:
                self._states.skip(uuid, "budget", untried)
                break
            state.attempted[kernel.name] = self._states.clock.monotonic()
            disturbed = state.record.runs[kernel.name, "contended"]
            report = self._run(pooled, index, subject, baseline, allowance)
            total = _plus(total, self._settle(subject, baseline, report, allowance))
            if (
                state.record.runs[kernel.name, "contended"] > disturbed
                and subject.facts.kind == "cpu"
                and _headline_rank(kernel, subject.facts) < OTHERS_RANK
                and order.count(kernel) == 1
            ):
                order.append(kernel)  # other programs come and go: once more, after the others
            if not pooled.worker.alive:
                pooled.note_end()
                if not self._stopping.is_set():
                    self._states.back_off(uuid, kernel.name, report.text)
                    # A kernel that always ends the worker must not block the others.
                    state.hold_back(kernel.name, self._states.clock.monotonic())
                break
        if total.observed_seconds > 0:
            with self._states.lock:
                state.record.contended(total, self._states.clock.monotonic())

    def _describe(self, pooled: PooledWorker, index: int) -> Described | None:
        uuid = pooled.uuids[index]
        known = pooled.described.get(uuid)
        if known is not None:
            return known
        state = self._states[uuid]
        now = self._states.clock.monotonic()
        if not state.ledger.allowance(now):
            self._states.skip(uuid, "budget")
            return None
        charge = state.ledger.precharge(now, 0.0)
        try:
            described = pooled.worker.describe(index)
        except WorkerFailedError as error:
            pooled.note_end()
            self._states.settle(uuid, charge, error.device_seconds)
            if not self._stopping.is_set():
                self._states.never_ran(uuid, self._config, error.outcome)
                self._states.back_off(uuid, "open", error.text)
            return None
        self._states.settle(uuid, charge, described.device_seconds)
        pooled.described[uuid] = described
        with self._states.lock:
            state.record.worker_memory_bytes = described.memory_bytes
            state.record.worker_pid = pooled.worker.pid
        return described

    def _check_memory(self, state: ProbedDevice, described: Described) -> None:
        """Warn once if CUDA itself takes so much memory that the limit is passed."""
        limit = self._config.memory_limit_bytes
        if described.memory_bytes > limit and not state.memory_logged:
            log.warning(
                "probe_memory_over_limit",
                gpu=state.record.device,
                memory_bytes=described.memory_bytes,
                limit_bytes=limit,
                remedy="raise probes.memory_limit",
            )
            state.memory_logged = True

    def _order(
        self, state: ProbedDevice, described: Described, facts: DeviceFacts
    ) -> list[KernelInfo]:
        """The kernels in the order in which they are due: time since the last try over the period.

        Kernels that were never tried come first. Ties go to the headline GEMM, then to the copy.
        """
        kernels = list(described.kernels)
        if self._config.kernels is not None:
            wanted = self._config.kernels
            kernels = sorted(
                (kernel for kernel in kernels if kernel.name in wanted),
                key=lambda kernel: wanted.index(kernel.name),
            )
            missing = set(wanted) - {kernel.name for kernel in kernels}
            if missing and not state.missing_logged:
                log.info("probe_kernels_absent", gpu=state.record.device, kernels=sorted(missing))
            state.missing_logged = True
        kernels += _model_kernels(state, facts, {kernel.name for kernel in kernels})
        kernels = [kernel for kernel in kernels if state.misfits[kernel.name] < MISFITS_MAX]
        now = self._states.clock.monotonic()

        def need(kernel: KernelInfo) -> tuple[float, int]:
            # An operator who names the kernels also gives their order.
            named = self._config.kernels is not None
            rank = OTHERS_RANK if named else _headline_rank(kernel, facts)
            age = now - state.attempted.get(kernel.name, -math.inf)
            return (-age if rank < OTHERS_RANK else -age / OTHERS_PERIOD, rank)

        return sorted(kernels, key=need)

    def _allowance(self, state: ProbedDevice, subject: Subject, baseline: Baseline | None) -> float:
        """The device time that the next run may take; 0 if it must wait for the budget."""
        credit = self._credit(state, subject)
        left = state.ledger.allowance(self._states.clock.monotonic(), credit)
        usable = state.ledger.limits.usable_seconds + min(0.0, credit)
        if baseline is None or baseline.device_seconds is None:
            return left if left >= NEW_KERNEL_SHARE * usable else 0.0
        wanted = ALLOWANCE_FACTOR * baseline.device_seconds + self._config.max_chunk_seconds
        # A kernel that wants more than an interval's budget gets all of it.
        wanted = min(wanted, usable)
        return wanted if left >= wanted else 0.0

    def _credit(self, state: ProbedDevice, subject: Subject) -> float:
        """Device time on top of the interval's budget; negative while an advance is paid back."""
        if subject.facts.kind != "cpu":
            return 0.0
        limits = state.ledger.limits
        whole = FIRST_CREDIT_INTERVALS * limits.usable_seconds
        first = (
            _headline_rank(subject.kernel, subject.facts) < OTHERS_RANK
            and subject.kernel.name not in state.record.last_success
        )
        if first and state.credit_taken < whole:
            # Half of it each: a preempted GEMM must not take the copy's share.
            return min(whole - state.credit_taken, whole / 2)
        # Paid back over an hour, so that its last intervals still have a budget.
        return -(whole + limits.usable_seconds) * limits.interval_seconds / limits.horizon_seconds

    def _run(
        self,
        pooled: PooledWorker,
        index: int,
        subject: Subject,
        baseline: Baseline | None,
        allowance: float,
    ) -> RunReport:
        uuid = pooled.uuids[index]
        request = Run(
            identifier=self._next_identifier(),
            kernel=subject.kernel.name if subject.gemm is None else subject.gemm.base,
            device=index,
            allowance_seconds=allowance,
            max_chunk_seconds=self._config.max_chunk_seconds,
            gap_seconds=self._config.gap_seconds,
            timed_runs=TIMED_RUNS,
            shape=subject.shape if baseline is None else baseline.shape,
            peer=subject.peer,
        )
        charge = self._states[uuid].ledger.precharge(self._states.clock.monotonic(), allowance)
        report = pooled.worker.run(request)
        if self._credit(self._states[uuid], subject) > 0:
            self._states[uuid].credit_taken += report.device_seconds
        self._states.settle(uuid, charge, report.device_seconds)
        return report

    def _settle(
        self, subject: Subject, baseline: Baseline | None, report: RunReport, allowance: float
    ) -> Contention | None:
        """Record how a run ended: one outcome, or a skip if the allowance was too small."""
        facts, kernel = subject.facts, subject.kernel
        state = self._states[facts.uuid]
        if report.result is not None:
            if subject.gemm is not None and report.result.shape[2] != subject.gemm.k:
                # The worker took the kernel's own shape: the model's did not fit the memory.
                self._leave_out(state, kernel, "its operands do not fit", "probes.memory_limit")
                self._states.skip(facts.uuid, "free_memory")
                return None
            return self._judge(subject, baseline, report.result, report.device_seconds)
        if report.short_of_allowance:
            if facts.kind == "cpu":
                # The kernels of a processor fit, so other programs must have interrupted the runs.
                with self._states.lock:
                    state.record.ended(kernel.name, "contended")
            else:
                self._states.skip(facts.uuid, "budget")
                self._note_misfit(state, kernel, allowance)
            if baseline is not None:
                cost = max(baseline.device_seconds or 0.0, report.device_seconds) * RAISE_FACTOR
                state.baselines[kernel.name] = msgspec.structs.replace(
                    baseline, device_seconds=cost
                )
            log.debug("probe_short_of_budget", gpu=facts.key, kernel=kernel.name, why=report.text)
        elif not self._stopping.is_set():
            outcome = report.failure or "error"
            with self._states.lock:
                state.record.ended(kernel.name, outcome)
            log.warning(
                "probe_failed",
                gpu=facts.key,
                kernel=kernel.name,
                outcome=outcome,
                error=report.text,
            )
        return None

    def _note_misfit(self, state: ProbedDevice, kernel: KernelInfo, allowance: float) -> None:
        """Leave out a kernel that does not fit into an interval's budget, and log it once."""
        if allowance < WHOLE_SHARE * state.ledger.limits.usable_seconds:
            return
        state.misfits[kernel.name] += 1
        if state.misfits[kernel.name] == MISFITS_MAX:
            self._leave_out(
                state, kernel, "it does not fit the budget of an interval", "probes.budget"
            )

    def _leave_out(self, state: ProbedDevice, kernel: KernelInfo, why: str, option: str) -> None:
        state.misfits[kernel.name] = MISFITS_MAX
        log.warning(
            "probe_kernel_left_out",
            gpu=state.record.device,
            kernel=kernel.name,
            why=why,
            remedy=f"raise {option}",
        )

    def _subject(
        self,
        pooled: PooledWorker,
        index: int,
        ready: Mapping[str, DeviceFacts],
        described: Described,
        kernel: KernelInfo,
        *,
        shared: bool,
    ) -> Subject | None:
        """The kernel on one of the worker's devices; None for a peer copy without a peer now."""
        facts = ready[pooled.uuids[index]]
        if kernel.name != "copy_peer":
            gemm = next((each for each in facts.model_gemms if each.name == kernel.name), None)
            shape = () if gemm is None else model_shape(gemm, facts, self._config.max_chunk_seconds)
            return Subject(facts, described, kernel, shared, gemm=gemm, shape=shape)
        # In a ring: not every link of a fully connected node is probed, but every GPU's port.
        peer = (index + 1) % len(pooled.uuids)
        other = ready.get(pooled.uuids[peer])
        if peer == index or other is None:
            return None
        return Subject(facts, described, kernel, shared, peer, other.key, other.uuid)

    def _judge(
        self, subject: Subject, baseline: Baseline | None, result: Result, device_seconds: float
    ) -> Contention | None:
        facts, kernel = subject.facts, subject.kernel
        state = self._states[facts.uuid]
        state.backoff.succeeded()
        state.held_back.pop(kernel.name, None)
        if baseline is not None and baseline.shape != result.shape:
            baseline = None  # the old size no longer fits the memory, and this is another one
        verdict = judge(
            kernel,
            result,
            facts,
            units=subject.described.units,
            baseline=None if baseline is None else baseline.value,
            expected_digest=None if baseline is None else baseline.digest or None,
            shared=subject.shared,
        )
        if verdict.outcome == "mismatch":
            _log_mismatch(subject, baseline, result)
        elif baseline is None and not (facts.kind == "cpu" and verdict.outcome == "contended"):
            # A size that was chosen on a busy processor may be a bad one: choose again.
            baseline = Baseline(
                versions=subject.versions,
                shape=result.shape,
                digest=result.digest,
                higher_is_better=kernel.quantity != "latency",
            )
        ratio = None
        if too_short(kernel, result, facts):
            state.baselines.pop(kernel.name, None)  # the next run chooses a size again
        elif baseline is not None:
            baseline, ratio = _measured(baseline, verdict, device_seconds)
            state.baselines[kernel.name] = baseline
        clock = self._states.clock
        now = clock.monotonic()
        with self._states.lock:
            record = state.record
            record.ended(kernel.name, verdict.outcome)
            record.worker_memory_bytes = result.memory_bytes
            if result.clock_hertz is not None:
                record.clocked(result.clock_hertz, now)
            record.judged(kernel, verdict, ratio, subject.peer_key, now=now, unix_time=clock.time())
        # A processor's GEMM runs do not include the time that others take.
        silent = kernel.quantity == "latency" or (
            facts.kind == "cpu" and kernel.quantity == "flops"
        )
        return None if silent else verdict.contention


def _headline_rank(kernel: KernelInfo, facts: DeviceFacts) -> int:
    """0 for the GEMM of the headline precision, 1 for the memory copy, else OTHERS_RANK."""
    if kernel.name == f"gemm_{facts.headline_precision}":
        return 0
    return 1 if kernel.name == HEADLINE_COPY else OTHERS_RANK


def _model_kernels(
    state: ProbedDevice, facts: DeviceFacts, present: Container[str]
) -> list[KernelInfo]:
    """The products of the served models that a kernel of the device can measure."""
    shown = sum("x" in name for name in state.attempted)
    return [
        model_kernel(gemm)
        for gemm in facts.model_gemms
        if gemm.base in present and (gemm.name in state.attempted or shown < MODEL_PRODUCTS_MAX)
    ]


def _measured(
    baseline: Baseline, verdict: Judgement, device_seconds: float
) -> tuple[Baseline, float | None]:
    """The baseline after a run, and the run's ratio to it if it was accepted."""
    before = baseline.device_seconds
    # The first run also searched for its size.
    cost = device_seconds * FIRST_RUN_SHARE if before is None else (before + device_seconds) / 2
    baseline = msgspec.structs.replace(baseline, device_seconds=cost)
    if verdict.normalised is None:
        return baseline, None
    baseline = baseline.with_measurement(verdict.normalised)
    return baseline, baseline.ratio(verdict.normalised)


def _plus(total: Contention, more: Contention | None) -> Contention:
    if more is None:
        return total
    return Contention(
        total.intrinsic_seconds + more.intrinsic_seconds,
        total.observed_seconds + more.observed_seconds,
    )


def _log_mismatch(subject: Subject, baseline: Baseline | None, result: Result) -> None:
    log.error(
        "probe_mismatch",
        gpu=subject.facts.key,
        uuid=subject.facts.uuid,
        kernel=subject.kernel.name,
        digest=result.digest,
        expected="" if baseline is None else baseline.digest,
        repeats_agree=result.repeats_agree,
        exact=result.exact,
    )
