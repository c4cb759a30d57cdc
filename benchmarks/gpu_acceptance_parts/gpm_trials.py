"""What GPM's values mean, determined by sampling: one device, raw calls, no accounting."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pynvml

from exporter.collect.nvml import gpm
from exporter.collect.nvml.library import NvmlError, call


Values = dict[int, float]


class Samples:
    """A few GPM samples of one device, by number. Use it as a context manager. Raises NvmlError."""

    def __init__(self, handle: Any, count: int) -> None:
        self._handle = handle
        self._samples: list[Any] = []
        self._count = count
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION

    def __enter__(self) -> Self:
        self._samples = [call("nvmlGpmSampleAlloc") for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        for sample in self._samples:
            try:
                call("nvmlGpmSampleFree", sample)
            except NvmlError:
                return

    def take(self, number: int) -> float:
        """Take sample `number`; the instant, monotonic, halfway through the call."""
        before = time.monotonic()
        call("nvmlGpmSampleGet", self._handle, self._samples[number])
        return (before + time.monotonic()) / 2

    def values(self, first: int, second: int, ids: Sequence[int]) -> Values:
        """Those metrics between two samples that the driver gives, in one call."""
        request = self._request
        request.sample1, request.sample2 = self._samples[first], self._samples[second]
        request.numMetrics = len(ids)
        for position, metric in enumerate(ids):
            request.metrics[position].metricId = metric
        call("nvmlGpmMetricsGet", request)
        answers = list(zip(ids, request.metrics[: len(ids)], strict=True))
        return {
            metric: float(answer.value)
            for metric, answer in answers
            if answer.nvmlReturn == 0 and math.isfinite(answer.value)
        }

    def single(self, first: int, second: int, ids: Iterable[int]) -> Values:
        """The same with a call for each metric."""
        found: Values = {}
        for metric in ids:
            found |= self.values(first, second, [metric])
        return found


@dataclass(frozen=True, slots=True)
class MultiTrial:
    """Whether calls for many metrics equal calls for one each."""

    windows: int
    unequal: tuple[int, ...]
    """Metrics that differed in any window."""


def multi_equals_single(handle: Any, windows: int, seconds: float) -> MultiTrial:
    """Ask the same pair of samples both ways, `windows` times. Raises NvmlError."""
    unequal: set[int] = set()
    with Samples(handle, 2) as samples:
        ids = _answering(samples, seconds)
        for _ in range(windows):
            samples.take(0)
            time.sleep(seconds)
            samples.take(1)
            alone, together = samples.single(0, 1, ids), samples.values(0, 1, ids)
            unequal |= {metric for metric in ids if alone.get(metric) != together.get(metric)}
    return MultiTrial(windows, tuple(sorted(unequal)))


@dataclass(frozen=True, slots=True)
class CycleTrial:
    """The cycle counters of three samples."""

    first: Values
    second: Values
    both: Values
    seconds: float
    """Between the second and the third sample."""
    hertz: float | None
    """The clock that NVML reported meanwhile, mean."""


def cycles(handle: Any, seconds: float, clock: Callable[[], float | None]) -> CycleTrial:
    """Three samples `seconds` apart, under whatever load there is. Raises NvmlError."""
    with Samples(handle, 3) as samples:
        samples.take(0)
        time.sleep(seconds)
        begin = samples.take(1)
        clocks = []
        while time.monotonic() - begin < seconds:
            clocks.append(clock())
            time.sleep(0.01)
        end = samples.take(2)
        pairs = ((0, 1), (1, 2), (0, 2))
        first, second, both = (samples.single(*pair, gpm.CYCLE_IDS) for pair in pairs)
    known = [hertz for hertz in clocks if hertz is not None]
    return CycleTrial(first, second, both, end - begin, statistics.fmean(known) if known else None)


def window_under(handle: Any, seconds: float) -> Values:
    """Percentages and cycle shares of one window under whatever load there is. Raises NvmlError."""
    with Samples(handle, 3) as samples:
        samples.take(0)
        time.sleep(0.15)
        samples.take(1)
        time.sleep(seconds)
        samples.take(2)
        found = samples.single(1, 2, (*gpm.PERCENT_IDS, *gpm.RATE_IDS))
        before = samples.single(0, 1, gpm.CYCLE_IDS)
        after = samples.single(1, 2, gpm.CYCLE_IDS)
    return found | cycle_percentages(before, after)


def cycle_percentages(before: Mapping[int, float], after: Mapping[int, float]) -> Values:
    """The growth of each cycle counter as a percentage of the elapsed cycles' growth."""
    elapsed = after.get(gpm.SM_CYCLES_ELAPSED, 0.0) - before.get(gpm.SM_CYCLES_ELAPSED, 0.0)
    if elapsed <= 0:
        return {}
    return {
        metric: 100 * (after[metric] - before[metric]) / elapsed
        for metric in after
        if metric in before and metric != gpm.SM_CYCLES_ELAPSED
    }


def moved(idle: Mapping[int, float], loaded: Mapping[int, float], points: float) -> list[int]:
    """Metrics in percent that a load raised by more than `points`."""
    percents = (*gpm.PERCENT_IDS, *gpm.CYCLE_IDS)
    return [
        metric
        for metric in percents
        if metric in loaded and loaded[metric] - idle.get(metric, 0.0) > points
    ]


def tick_cost(handle: Any, ids: Sequence[int], rounds: int) -> tuple[float, float, float]:
    """Median seconds of a sample, of its metrics in single calls, and in one call. Raises NvmlError."""
    taking, alone, together = [], [], []
    with Samples(handle, 2) as samples:
        samples.take(0)
        for number in range(rounds):
            time.sleep(0.11)
            began = time.perf_counter()
            samples.take((number + 1) % 2)
            taken = time.perf_counter()
            order = (number % 2, (number + 1) % 2)
            samples.single(*order, ids)
            asked = time.perf_counter()
            samples.values(*order, ids)
            done = time.perf_counter()
            taking.append(taken - began)
            alone.append(asked - taken)
            together.append(done - asked)
    return statistics.median(taking), statistics.median(alone), statistics.median(together)


def _answering(samples: Samples, seconds: float) -> list[int]:
    samples.take(0)
    time.sleep(seconds)
    samples.take(1)
    ids = (*gpm.PERCENT_IDS, *gpm.RATE_IDS, *gpm.CYCLE_IDS)
    return list(samples.single(0, 1, ids))
