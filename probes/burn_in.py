"""Runs all kernels once at full length: for bringing up a node, not beside a server."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from probes.config import ProbeConfig
from probes.facts import DeviceFacts
from probes.gates import other_processes
from probes.judgement import Baseline, Judgement, judge
from probes.protocol import Described, KernelInfo, Outcome, Result, Run
from probes.supervisor import RunReport, Worker, WorkerFailedError, outcome_of
from probes.thresholds import Row, grade, peak_of
from probes.worker_pool import WorkerFactory, real_worker


# One request's runs; requests repeat until the time is over, and the last one counts: by then
# clocks and power have settled.
TIMED_RUNS: Final = 100
CHUNK_SECONDS: Final = 0.02
# An allowance of half a minute ends only hung requests.
ALLOWANCE_SECONDS: Final = 30.0
CHUNK_DEADLINE_SECONDS: Final = 10.0
REQUEST_DEADLINE_SECONDS: Final = 120.0

# Shown in the table if no kernel could be run.
OPENING: Final = KernelInfo(name="open", quantity="latency", label="")

Baselines = Mapping[str, Mapping[str, Baseline]]


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel on one device is about to be measured."""

    gpu: str
    kernel: str
    position: int
    count: int
    """Kernels of this device."""


class BurnIn:
    """Measures kernel after kernel on device after device, in one worker."""

    def __init__(
        self,
        devices: Sequence[DeviceFacts],
        config: ProbeConfig,
        baselines: Baselines,
        seconds_per_kernel: float,
        *,
        factory: WorkerFactory = real_worker,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices = tuple(devices)
        self._config = replace(
            config,
            chunk_deadline_seconds=CHUNK_DEADLINE_SECONDS,
            request_deadline_seconds=REQUEST_DEADLINE_SECONDS,
        )
        self._baselines = baselines
        self._seconds = seconds_per_kernel
        self._factory = factory
        self._monotonic = monotonic
        self._identifier = 0

    def rows(
        self, wanted: Callable[[KernelInfo], bool], on_step: Callable[[Step], None]
    ) -> Iterator[Row]:
        """One graded row for each kernel that `wanted` accepts; a worker that dies is restarted.

        A device that cannot be opened or reopened has one row with the reason; the others are still
        measured. Raises WorkerFailedError when no worker can be started.
        """
        worker = self._factory(self._devices, self._config)
        try:
            worker.start()
            for index in range(len(self._devices)):
                yield from self._device_rows(worker, index, wanted, on_step)
        finally:
            worker.close()

    def _device_rows(
        self,
        worker: Worker,
        index: int,
        wanted: Callable[[KernelInfo], bool],
        on_step: Callable[[Step], None],
    ) -> Iterator[Row]:
        facts = self._devices[index]
        try:
            described = self._open(worker, index)
            kernels = [kernel for kernel in described.kernels if wanted(kernel)]
            for position, kernel in enumerate(kernels):
                on_step(Step(facts.key, kernel.name, position, len(kernels)))
                if not worker.alive:
                    described = self._open(worker, index)
                yield self._row(worker, index, described, kernel)
        except WorkerFailedError as error:
            yield _row(facts, OPENING, outcome=outcome_of(error.outcome), peak=None, why=error.text)

    def _open(self, worker: Worker, index: int) -> Described:
        if not worker.alive:
            worker.start()
        return worker.describe(index)

    def _row(self, worker: Worker, index: int, described: Described, kernel: KernelInfo) -> Row:
        facts = self._devices[index]
        peer = (index + 1) % len(self._devices) if kernel.name == "copy_peer" else None
        versions = described.versions
        if facts.instance is not None:
            versions += f" on {facts.name}"
        if peer is not None:
            versions += f" peer {self._devices[peer].uuid}"
        baseline = self._baselines.get(facts.uuid, {}).get(kernel.name)
        if baseline is not None and baseline.versions != versions:
            baseline = None
        peak = peak_of(kernel, facts, described.units)
        report = self._measured(worker, index, peer, kernel, baseline)
        others = other_processes(facts.processes, worker.pid, worker.age_seconds)
        if report.result is None:
            return _row(
                facts, kernel, outcome=report.failure or "error", peak=peak, why=report.text
            )
        if baseline is not None and baseline.shape != report.result.shape:
            baseline = None
        judgement = judge(
            kernel,
            report.result,
            facts,
            units=described.units,
            baseline=None if baseline is None else baseline.value,
            expected_digest=None if baseline is None else baseline.digest or None,
            shared=bool(others),
        )
        return _judged(facts, kernel, report.result, judgement, baseline=baseline, peak=peak)

    def _measured(
        self,
        worker: Worker,
        index: int,
        peer: int | None,
        kernel: KernelInfo,
        baseline: Baseline | None,
    ) -> RunReport:
        """The last report of requests repeated until the time is over, all with the same shape."""
        shape = () if baseline is None else baseline.shape
        if not shape:
            # The size is chosen as in the daemon, so that the figures are comparable.
            first = worker.run(
                self._request(index, peer, kernel, (), self._config.max_chunk_seconds)
            )
            if first.result is None:
                return first
            shape = first.result.shape
        until = self._monotonic() + self._seconds
        while True:
            report = worker.run(self._request(index, peer, kernel, shape, CHUNK_SECONDS))
            if report.result is None or self._monotonic() >= until:
                return report
            # The worker chose another shape because the requested one no longer fits the memory.
            shape = report.result.shape

    def _request(
        self,
        index: int,
        peer: int | None,
        kernel: KernelInfo,
        shape: tuple[int, ...],
        chunk_seconds: float,
    ) -> Run:
        self._identifier += 1
        return Run(
            identifier=self._identifier,
            kernel=kernel.name,
            device=index,
            allowance_seconds=ALLOWANCE_SECONDS,
            max_chunk_seconds=chunk_seconds,
            gap_seconds=0.0,
            timed_runs=TIMED_RUNS,
            shape=shape,
            peer=peer,
        )


def _judged(
    facts: DeviceFacts,
    kernel: KernelInfo,
    result: Result,
    judgement: Judgement,
    *,
    baseline: Baseline | None,
    peak: float | None,
) -> Row:
    ratio = None
    if baseline is not None and baseline.established and judgement.normalised is not None:
        ratio = baseline.ratio(judgement.normalised)
    mark, why = grade(kernel, facts, judgement, ratio, peak)
    return replace(
        _row(facts, kernel, outcome=judgement.outcome, peak=peak, why=why),
        value=judgement.value,
        efficiency_ratio=judgement.efficiency,
        baseline_ratio=ratio,
        sm_clock_hertz=result.clock_hertz,
        grade=mark,
    )


def _row(
    facts: DeviceFacts, kernel: KernelInfo, *, outcome: Outcome, peak: float | None, why: str
) -> Row:
    return Row(
        gpu=facts.key,
        uuid=facts.uuid,
        name=facts.name,
        kernel=kernel.name,
        quantity=kernel.quantity,
        outcome=outcome,
        value=None,
        peak=peak,
        efficiency_ratio=None,
        baseline_ratio=None,
        sm_clock_hertz=None,
        grade="failed",
        why=why,
    )
