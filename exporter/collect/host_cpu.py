"""The host processor, sampled like a GPU."""

import time
from collections.abc import Callable
from dataclasses import replace

from exporter.accounting.device import Counters, DeviceAccounts
from exporter.collect.cpu import CpuSource
from exporter.collect.nvml.errors import NvmlError
from exporter.collect.perf import PerfCounters, open_counters
from exporter.collect.sampler import TickStatistics
from exporter.collect.settings import SamplingSettings
from exporter.readings import DeviceIdentity
from exporter.state import DeviceState, SourceHealth


class SampledCpu:
    """The processor of this host under the name `cpu0`."""

    key = "cpu0"
    clock_samples = 1

    def __init__(self, settings: Callable[[], SamplingSettings], source: CpuSource) -> None:
        self._settings = settings
        self._source = source
        self.identity: DeviceIdentity = source.identity()
        self._peaks = source.peaks(self.identity)
        self._accounts = DeviceAccounts(self.identity, self._peaks)
        self._perf: PerfCounters | None = None

    def open(self) -> None:
        """A processor is always present; its counters only where the kernel exposes them."""
        if self._perf is None:
            mode = self._settings().modes["perf"]
            self._perf = open_counters(self._source.processor, mode)

    def sample_clock(self) -> None:
        """One more sample of the clock."""
        self._accounts.observe_clock(self._source.read_clock())

    def skip_gap(self) -> None:
        """Count nothing of the time since the last tick."""
        self._accounts.forget_open_spans()

    def tick(self, ticks: TickStatistics) -> DeviceState:
        """Read and account."""
        fast = self._source.read()
        self.sample_clock()
        last = self._accounts.observe(
            fast, None, precision=None, max_window_seconds=self._settings().max_window
        )
        sources = {"cpu": SourceHealth(up=True, last_success_unix_seconds=time.time())}
        return replace(
            self.failed(None, ticks),
            up=True,
            at_seconds=fast.at_seconds,
            peaks=self._peaks,
            precision=self._peaks.default_precision,
            fast=fast,
            last=last,
            counters=self._counters(sources),
            sources=sources,
        )

    def _counters(self, sources: dict[str, SourceHealth]) -> Counters:
        """The counters, including what the processor counted itself."""
        counters = self._accounts.counters()
        if self._perf is None:
            return counters
        counted = self._perf.read()
        sources["perf"] = SourceHealth(
            up=counted is not None,
            last_success_unix_seconds=None if counted is None else time.time(),
        )
        if counted is None:
            return counters
        flop = {(work, "perf"): value for work, value in counted.items()}
        return replace(counters, flop={**counters.flop, **flop})

    def revived(self) -> bool:
        """It needs no driver."""
        return False

    def failed(self, error: NvmlError | None, ticks: TickStatistics) -> DeviceState:
        """What is known without a reading."""
        return DeviceState(
            identity=self.identity,
            at_seconds=time.monotonic(),
            up=False,
            max_age_seconds=self._settings().max_age,
            sources={"cpu": SourceHealth(up=False)},
            tick_duration=ticks.durations,
            ticks_missed=ticks.missed,
        )
