"""Sources `cpu` and `perf`: the host processor, sampled like a GPU where there is none.

Utilization, clock, memory and energy come from /proc and /sys. The micro-probes measure its
reachable rates. Its own counters (`perf`, Linux perf events) count floating-point operations on every
logical CPU that the daemon may use, over all programs. That requires a processor whose counters are
not hidden by the kernel or the hypervisor, and the permission to read them: CAP_PERFMON, or
kernel.perf_event_paranoid at 0 or below. `exporter/accounting/processor.py` has the events.

If there are more events than counters, the kernel multiplexes them and reports for how long each
counted: the value is scaled up by that, as in `perf stat`.
"""

import ctypes
import errno
import os
import platform
import re
import resource
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from exporter.accounting.device import PERF_SOURCE, Counters, DeviceAccounts
from exporter.accounting.flop import PipeWork
from exporter.accounting.peaks import Peaks
from exporter.accounting.processor import (
    Event,
    PerfUnavailableError,
    events_of,
    processor_peaks,
)
from exporter.collect.nvml.library import NvmlError
from exporter.collect.settings import SamplingSettings
from exporter.device_state import DeviceState, SourceHealth
from exporter.readings import ClockSample, DeviceIdentity, FastReading
from flopwatch.processor import Processor, clock_hertz, read_processor


log = structlog.get_logger(__name__)

_ROOT = Path("/")
_CLOCKS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
_KILO = 1e3
_MEGA = 1e6

# struct perf_event_attr up to PERF_ATTR_SIZE_VER0: type, size, config, sample_period, sample_type,
# read_format, flags, wakeup_events, bp_type, bp_addr (include/uapi/linux/perf_event.h).
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQ")
_READ_FORMAT = 1 | 2  # PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING
_READING = struct.Struct("=QQQ")
_EXCLUDE_KERNEL = 1 << 5
_CLOSE_ON_EXEC = 8  # PERF_FLAG_FD_CLOEXEC
# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h.
_SYSTEM_CALL = {"x86_64": 298, "aarch64": 241}
# The kernel's names for a processor's counters. Arm's include the core's name, or a number.
_UNITS = ("cpu", "armv8_*", "armv9_*")
# Eight events on each: beyond this a tick would spend milliseconds on reading them.
_CPUS_MAX = 256
# What the rest of the daemon may need: 64 connections, and files, sockets and pipes of its sources.
_OTHER_DESCRIPTORS = 512


class CpuSource:
    """Reads the host processor. `root` lets tests use a recorded /proc and /sys."""

    def __init__(self, clock: Callable[[], float], root: Path = _ROOT) -> None:
        self._clock = clock
        self._root = root
        self.processor = read_processor(root)
        self._times: tuple[float, float] | None = None  # busy and total, in clock ticks
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
        before, self._times = self._times, self._cpu_times()
        if self._times is None or before is None or self._times[1] <= before[1]:
            return None
        share = (self._times[0] - before[0]) / (self._times[1] - before[1])
        return min(1.0, max(0.0, share))

    def _cpu_times(self) -> tuple[float, float] | None:
        """Busy and total clock ticks of all usable processors together: columns user to steal of /proc/stat."""
        names = {f"cpu{number}" for number in self.processor.allowed}
        lines = [line.split() for line in (self._text("proc/stat") or "").splitlines()]
        rows = [line[1:9] for line in lines if line and line[0] in names and len(line) >= 6]
        if not rows:
            return None
        total = sum(float(value) for row in rows for value in row)
        idle = sum(float(row[3]) + float(row[4]) for row in rows)
        return total - idle, total

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
            self._perf = open_counters(self._source.processor, self._settings().modes["perf"])

    def sample_clock(self) -> None:
        """One more sample of the clock."""
        self._accounts.observe_clock(self._source.read_clock())

    def skip_gap(self) -> None:
        """Count nothing of the time since the last tick."""
        self._accounts.forget_open_spans()

    def tick(self) -> DeviceState:
        """Read and account."""
        fast = self._source.read()
        self.sample_clock()
        last = self._accounts.observe(
            fast, None, precision=None, max_window_seconds=self._settings().max_window
        )
        sources = {"cpu": SourceHealth(up=True, last_success_unix_seconds=time.time())}
        return replace(
            self.failed(None),
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

    def failed(self, error: NvmlError | None) -> DeviceState:
        """What is known without a reading."""
        return DeviceState(
            identity=self.identity,
            at_seconds=time.monotonic(),
            up=False,
            max_age_seconds=self._settings().max_age,
            sources={"cpu": SourceHealth(up=False)},
        )


class LinuxKernel:
    """perf_event_open(2), which the C library has no function for."""

    def __init__(self) -> None:
        self._syscall: Callable[..., int] = ctypes.CDLL(None, use_errno=True).syscall

    def open(self, attributes: bytes, cpu: int) -> int:
        """Open an event on a CPU, for all programs; returns a descriptor, raises OSError."""
        number = _SYSTEM_CALL.get(platform.machine())
        if number is None:
            raise OSError(errno.ENOSYS, "perf events are not supported on this architecture")
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        long = ctypes.c_long
        descriptor = self._syscall(
            long(number), buffer, long(-1), long(cpu), long(-1), long(_CLOSE_ON_EXEC)
        )
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return descriptor

    def read(self, descriptor: int) -> tuple[int, int, int]:
        """Count, nanoseconds enabled, nanoseconds running; raises OSError."""
        count, enabled, running = _READING.unpack(os.read(descriptor, _READING.size))
        return count, enabled, running

    def close(self, descriptor: int) -> None:
        """Close an event."""
        os.close(descriptor)


class PerfCounters:
    """FLOP of all programs since the events were opened. Used by one thread."""

    def __init__(self, processor: Processor, kernel: LinuxKernel, root: Path = Path("/")) -> None:
        """Open the events; raises PerfUnavailableError."""
        self._kernel = kernel
        self._opened: list[tuple[Event, int]] = []
        self._flop: dict[PipeWork, float] = {}
        events = events_of(processor)
        number = _unit(root)
        if len(processor.allowed) > _CPUS_MAX:
            raise PerfUnavailableError(f"more than {_CPUS_MAX} CPUs to count on")
        _make_room(len(processor.allowed) * len(events))
        try:
            for cpu in processor.allowed:
                for event in events:
                    self._opened.append((event, kernel.open(attributes(number, event.config), cpu)))
        except OSError as error:
            self.close()
            raise _refused(error, root) from error

    def read(self) -> dict[PipeWork, float] | None:
        """FLOP by pipe and precision; None while an event was not counted at all."""
        flop: dict[PipeWork, float] = {}
        try:
            for event, descriptor in self._opened:
                count, enabled, running = self._kernel.read(descriptor)
                if not running:
                    return None
                value = event.flop * count * max(1.0, enabled / running)
                flop[event.work] = flop.get(event.work, 0.0) + value
        except OSError:
            return None
        # Scaled counts are estimates and may decrease, which a counter must not.
        for work, value in flop.items():
            self._flop[work] = max(value, self._flop.get(work, 0.0))
        return dict(self._flop)

    def close(self) -> None:
        """Close all events."""
        for _, descriptor in self._opened:
            self._kernel.close(descriptor)
        self._opened.clear()


def open_counters(processor: Processor, mode: str) -> PerfCounters | None:
    """The counters that `sources.perf` requests; None if there are none, which is logged."""
    if mode == "off":
        return None
    try:
        return PerfCounters(processor, LinuxKernel())
    except PerfUnavailableError as error:
        say = log.warning if mode == "on" else log.info
        say("perf_counters_absent", why=str(error), remedy=error.remedy)
        return None


def attributes(unit: int, config: int) -> bytes:
    """The kernel's description of an event: counted in user space, on one CPU, over all programs."""
    return _ATTRIBUTES.pack(
        unit, _ATTRIBUTES.size, config, 0, 0, _READ_FORMAT, _EXCLUDE_KERNEL, 0, 0, 0
    )


def _make_room(descriptors: int) -> None:
    """Raise the limit of open files, so that scrapes and engines keep what they have.

    Raises PerfUnavailableError where that is not allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = descriptors + _OTHER_DESCRIPTORS
    if soft == unlimited or wanted <= soft:
        return
    if hard != unlimited and wanted > hard:
        raise _too_few_descriptors()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        raise _too_few_descriptors() from None


def _too_few_descriptors() -> PerfUnavailableError:
    return PerfUnavailableError(
        "too few file descriptors for all events and processors",
        "raise the limit of open files: LimitNOFILE=8192 in the unit, --ulimit nofile=8192 for a container",
    )


def _unit(root: Path) -> int:
    """The kernel's number of the processor's counters; raises PerfUnavailableError."""
    devices = root / "sys/bus/event_source/devices"
    for path in (path for name in _UNITS for path in sorted(devices.glob(f"{name}/type"))):
        try:
            return int(path.read_text().strip())
        except (OSError, ValueError):
            continue
    raise PerfUnavailableError(
        "the kernel shows no hardware counters: the virtual machine hides them"
    )


def _refused(error: OSError, root: Path) -> PerfUnavailableError:
    if error.errno in (errno.EACCES, errno.EPERM):
        try:
            level = (root / "proc/sys/kernel/perf_event_paranoid").read_text().strip()
        except OSError:
            level = "not readable"
        return PerfUnavailableError(
            f"the kernel refuses its counters (kernel.perf_event_paranoid is {level})",
            "for the service: install.sh --perf, or with a package its perf.conf (docs/install.md); for a container: --cap-add PERFMON --user 0 and a seccomp profile that allows perf_event_open",
        )
    if error.errno == errno.EMFILE:
        return _too_few_descriptors()
    return PerfUnavailableError(f"the kernel refuses the events: {error.strerror}")
