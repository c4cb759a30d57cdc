"""Source `cpu`: the host processor, sampled like a GPU where there is none.

Utilization, clock, memory and energy come from /proc and /sys. The micro-probes measure its
reachable rates; its own counters (`perf`) measure its work, where the kernel allows reading them.
"""

import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.accounting.device import PERF_SOURCE, Counters, DeviceAccounts
from exporter.accounting.peaks import Peaks
from exporter.accounting.processor_peaks import processor_peaks
from exporter.collect.nvml.library import NvmlError
from exporter.collect.perf import PerfCounters, open_counters
from exporter.collect.sampler import TickStatistics
from exporter.collect.settings import SamplingSettings
from exporter.device_state import DeviceState, SourceHealth
from exporter.readings import ClockSample, DeviceIdentity, FastReading
from flopwatch.processor import clock_hertz, read_processor


_ROOT = Path("/")
_CLOCKS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
_KILO = 1e3
_MEGA = 1e6


@dataclass(frozen=True, slots=True)
class _Times:
    busy: float
    total: float


class CpuSource:
    """Reads the host processor. `root` lets tests use a recorded /proc and /sys."""

    def __init__(self, clock: Callable[[], float], root: Path = _ROOT) -> None:
        self._clock = clock
        self._root = root
        self.processor = read_processor(root)
        self._times: _Times | None = None
        self._energy_paths = sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]/energy_uj"))

    def identity(self) -> DeviceIdentity:
        """The processor as a device: `cpu0`, with a UUID that is stable for this host."""
        machine = self._text("etc/machine-id") or socket.gethostname()
        import hashlib  # noqa: PLC0415  brings OpenSSL along, 4 MB that hosts with GPUs are spared

        digest = hashlib.sha256(f"flopwatch {machine}".encode()).hexdigest()
        return DeviceIdentity(
            index="cpu0",
            uuid=f"CPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}",
            name=self.processor.name or os.uname().machine,
            architecture=os.uname().machine,
            sm_count=self.processor.threads,
            sm_clock_max_hertz=self._max_hertz(),
            memory_size_bytes=int(self._memory().get("MemTotal", 0)) or None,
        )

    def peaks(self, identity: DeviceIdentity) -> Peaks:
        """Cores x FLOP per cycle x maximum clock, by processor family."""
        return processor_peaks(self.processor, identity.sm_clock_max_hertz)

    def read_clock(self) -> ClockSample:
        """Mean clock of the cores, now."""
        return ClockSample(self._clock(), self._hertz(), None)

    def read(self) -> FastReading:
        """Utilization since the previous reading, clock, memory, and energy where it is readable."""
        memory = self._memory()
        size, free = memory.get("MemTotal"), memory.get("MemAvailable")
        sample = self.read_clock()
        return FastReading(
            at_seconds=sample.at_seconds,
            sm_clock_hertz=sample.sm_clock_hertz,
            gpu_utilization=self._utilization(),
            memory_size_bytes=size,
            memory_free_bytes=free,
            memory_used_bytes=size - free if size is not None and free is not None else None,
            energy_joules=self._energy_joules(),
        )

    def _utilization(self) -> float | None:
        times = self._cpu_times()
        before, self._times = self._times, times
        if times is None or before is None or times.total <= before.total:
            return None
        share = (times.busy - before.busy) / (times.total - before.total)
        return min(1.0, max(0.0, share))

    def _cpu_times(self) -> _Times | None:
        """Clock ticks of all usable processors together: columns user to steal of /proc/stat."""
        names = {f"cpu{number}" for number in self.processor.allowed}
        lines = [line.split() for line in (self._text("proc/stat") or "").splitlines()]
        rows = [line[1:9] for line in lines if line and line[0] in names and len(line) >= 6]
        if not rows:
            return None
        total = sum(float(value) for row in rows for value in row)
        idle = sum(float(row[3]) + float(row[4]) for row in rows)
        return _Times(busy=total - idle, total=total)

    def _hertz(self) -> float | None:
        try:
            paths = list(self._root.glob(_CLOCKS))
        except OSError:  # no descriptor left
            paths = []
        clocks = [number * _KILO for path in paths if (number := _number(_read(path))) is not None]
        # A hypervisor shows the nominal clock there, not the actual one.
        if not clocks and "hypervisor" not in self.processor.flags:
            clocks = [
                float(value) * _MEGA
                for value in re.findall(
                    r"^cpu MHz\s*:\s*([\d.]+)", self._text("proc/cpuinfo") or "", re.MULTILINE
                )
            ]
        return sum(clocks) / len(clocks) if clocks else None

    def _max_hertz(self) -> float | None:
        """The maximum clock by the kernel or the processor's name, or as measured if that is higher.

        In a virtual machine, both may have no more than the nominal clock.
        """
        known = [self._named_hertz(), clock_hertz() if self._root == _ROOT else None]
        return max((hertz for hertz in known if hertz is not None), default=None)

    def _named_hertz(self) -> float | None:
        text = self._text("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
        if (number := _number(text)) is not None:
            return number * _KILO
        named = re.search(r"@\s*([\d.]+)\s*GHz", self.processor.name)
        return float(named[1]) * 1e9 if named else self._hertz()

    def _memory(self) -> dict[str, float]:
        """/proc/meminfo in bytes."""
        values: dict[str, float] = {}
        for line in (self._text("proc/meminfo") or "").splitlines():
            name, _colon, value = line.partition(":")
            amount = value.split()
            if amount and amount[0].isdigit():
                values[name] = float(amount[0]) * 1024
        return values

    def _energy_joules(self) -> float | None:
        """Sum over packages (Intel RAPL); readable for root only on most kernels.

        None while one of them does not answer: the sum would jump by its whole counter when it
        returned.
        """
        known = [_number(_read(path)) for path in self._energy_paths]
        numbers = [number for number in known if number is not None]
        return sum(numbers) * 1e-6 if numbers and len(numbers) == len(known) else None

    def _text(self, path: str) -> str | None:
        return _read(self._root / path)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def _number(text: str | None) -> float | None:
    """The number in a file of /sys; some kernels write '<unknown>' instead."""
    try:
        return float(text) if text else None
    except ValueError:
        return None


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
        """A processor is always present; its counters are, where the kernel exposes them."""
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
        sources[PERF_SOURCE] = SourceHealth(
            up=counted is not None,
            last_success_unix_seconds=None if counted is None else time.time(),
        )
        if counted is None:
            return counters
        flop = {(work, PERF_SOURCE): value for work, value in counted.items()}
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
