"""The product's worker, used directly with the same requests as the daemon makes."""

from dataclasses import replace
from types import TracebackType
from typing import Self

from benchmarks.gpu_acceptance_parts.statistics_of import spread
from probes.config import ProbeConfig
from probes.facts import DeviceFacts
from probes.judgement import Contention, contention
from probes.prober import TIMED_RUNS
from probes.protocol import Described, Result, Run
from probes.worker_pool import real_worker


# More than a probe takes: what it takes is measured.
ALLOWANCE_SECONDS = 1.0


class ProbeError(Exception):
    """A probe run ended without a result."""


def run_request(
    kernel: str, identifier: int, config: ProbeConfig | None = None, shape: tuple[int, ...] = ()
) -> Run:
    """A run as the daemon requests it, except for the allowance."""
    config = config or ProbeConfig()
    return Run(
        identifier=identifier,
        kernel=kernel,
        device=0,
        allowance_seconds=ALLOWANCE_SECONDS,
        max_chunk_seconds=config.max_chunk_seconds,
        gap_seconds=config.gap_seconds,
        timed_runs=TIMED_RUNS,
        shape=shape,
    )


class DirectProbe:
    """One worker on one device. Use it as a context manager."""

    def __init__(self, facts: DeviceFacts, config: ProbeConfig | None = None) -> None:
        self._config = replace(config or ProbeConfig(), chunk_deadline_seconds=5.0)
        self._worker = real_worker((facts,), self._config)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._identifier = 0

    def __enter__(self) -> Self:
        self._worker.start()
        self.described: Described = self._worker.describe(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.close()

    def measure(self, kernel: str) -> tuple[Result, float]:
        """One probe of a kernel, and the device time it took. Raises ProbeError."""
        self._identifier += 1
        report = self._worker.run(
            run_request(kernel, self._identifier, self._config, self._shapes.get(kernel, ()))
        )
        if report.result is None:
            raise ProbeError(f"{kernel}: {report.failure} {report.text}")
        self._shapes[kernel] = report.result.shape
        return report.result, report.device_seconds


def median_run(result: Result) -> float:
    """The median of the timed runs, seconds."""
    runs = sorted(result.run_seconds)
    return runs[len(runs) // 2]


def per_clock(result: Result) -> float:
    """FLOP per clock at the clock measured in the probe; FLOP/s where none was."""
    return result.work_per_run / median_run(result) / (result.clock_hertz or 1.0)


def spread_per_clock(results: list[Result]) -> float:
    """Standard deviation over mean of several probes, the clock divided out."""
    return spread([per_clock(result) for result in results])


def busy_bracket(results: list[Result], alone: list[Result]) -> tuple[float, float]:
    """Mean low and high estimate of the tenant's busy share, relative to baselines measured alone.

    All runs are put together, as the daemon does over the kernels of a cycle.
    """
    baseline = min(min(result.run_seconds) for result in alone)
    parts = [contention(result.run_seconds, baseline, shared=True) for result in results]
    total = Contention(
        sum(part.intrinsic_seconds for part in parts), sum(part.observed_seconds for part in parts)
    )
    return total.low, total.high
