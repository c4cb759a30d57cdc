"""Source `perf`: the processor's own count of floating-point operations (Linux perf events).

Counted on every logical CPU that the daemon may use, over all programs. That requires a processor
whose counters are not hidden by the kernel or the hypervisor, and the permission to read them:
CAP_PERFMON, or kernel.perf_event_paranoid at 0 or below.

The events are those of Linux (tools/perf/pmu-events/arch/…), which come from the vendors. What these
lists do not state is not counted.

- Intel (x86/*/floating-point.json): FP_ARITH_INST_RETIRED, by precision and width, a fused multiply-add
  as two. AMX_OPS_RETIRED was in the lists of Sapphire and Emerald Rapids, and Intel has withdrawn it.
- AMD (x86/amdzen1 to amdzen5/floating-point.json): fp_ret_sse_avx_ops counts operations, a fused
  multiply-add as two. Only Zen and Zen+ report the precision of all of them.
- Arm (arm64/arm/neoverse-v1 and neoverse-n2-v2/fp_operation.json, metrics.json): FP_FIXED_OPS_SPEC, and
  FP_SCALE_OPS_SPEC per 128 bits of an SVE vector, a fused multiply-add as two. They count executed
  operations, including those after a mispredicted branch. Neoverse N1 has neither.

If there are more events than counters, the kernel multiplexes them and reports for how long each
counted: the value is scaled up by that, as in `perf stat`.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from exporter.accounting.flop import PipeWork
from flopwatch.processor import Processor


log = structlog.get_logger(__name__)

# struct perf_event_attr up to PERF_ATTR_SIZE_VER0: type, size, config, sample_period, sample_type,
# read_format, flags, wakeup_events, bp_type, bp_addr (include/uapi/linux/perf_event.h).
_ATTRIBUTES: Final = struct.Struct("=IIQQQQQIIQ")
_READ_FORMAT: Final = 1 | 2  # PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING
_READING: Final = struct.Struct("=QQQ")
_EXCLUDE_KERNEL: Final = 1 << 5
_CLOSE_ON_EXEC: Final = 8  # PERF_FLAG_FD_CLOEXEC
# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h.
_SYSTEM_CALL: Final = {"x86_64": 298, "aarch64": 241}
# The kernel's names for a processor's counters. Arm's include the core's name, or a number.
_UNITS: Final = ("cpu", "armv8_*", "armv9_*")
# Eight events on each: beyond this a tick would spend milliseconds on reading them.
_CPUS_MAX: Final = 256
# What the rest of the daemon may need: 64 connections, and files, sockets and pipes of its sources.
_OTHER_DESCRIPTORS: Final = 512
_FP64, _FP32 = PipeWork("fp64", "fp64"), PipeWork("fp32", "fp32")
_ANY = PipeWork("any", "any")


@dataclass(frozen=True, slots=True)
class Event:
    """A hardware event, and how many FLOP each count of it stands for."""

    event: int
    mask: int
    work: PipeWork
    flop: float

    @property
    def config(self) -> int:
        """The kernel's format of raw events; Arm's have no mask."""
        return self.event | self.mask << 8


# Elements of a vector; the counter counts a fused multiply-add twice.
_INTEL: Final = (
    Event(0xC7, 0x01, _FP64, 1),
    Event(0xC7, 0x02, _FP32, 1),
    Event(0xC7, 0x04, _FP64, 2),
    Event(0xC7, 0x08, _FP32, 4),
    Event(0xC7, 0x10, _FP64, 4),
    Event(0xC7, 0x20, _FP32, 8),
)
_INTEL_512: Final = (Event(0xC7, 0x40, _FP64, 8), Event(0xC7, 0x80, _FP32, 16))
# The first family 6 model with FP_ARITH_INST_RETIRED is Broadwell (61).
_INTEL_FIRST_MODEL: Final = 61
_INTEL_WITHOUT: Final = frozenset({63, 69, 70})  # Haswell does not have it
# Zen and Zen+: four bits for each precision, one for each of add, multiply, divide, multiply-add.
_AMD_ZEN: Final = (Event(0x03, 0x0F, _FP32, 1), Event(0x03, 0xF0, _FP64, 1))
# From Zen 2 on the four bits are for all precisions. Zen 4 has a fifth one for bf16's multiply-adds; on
# Zen 5 the upper bits select a data type, and none is all of them.
_AMD_ZEN_2: Final = (Event(0x03, 0x0F, _ANY, 1),)
_AMD_ZEN_4: Final = (Event(0x03, 0x1F, _ANY, 1),)
_AMD_ZEN_5: Final = (Event(0x03, 0x0F, _ANY, 1),)
_ARM: Final = 0x41
# By part number, the width of the SVE vectors over 128 bits: V1, N2, V2.
_ARM_VECTORS: Final = {0xD40: 2, 0xD49: 1, 0xD4F: 1}


class Kernel(Protocol):
    """The system calls in use; tests substitute their own."""

    def open(self, attributes: bytes, cpu: int) -> int:
        """Open an event on a CPU, for all programs; returns a descriptor, raises OSError."""

    def read(self, descriptor: int) -> tuple[int, int, int]:
        """Count, nanoseconds enabled, nanoseconds running; raises OSError."""

    def close(self, descriptor: int) -> None:
        """Close an event."""


class LinuxKernel:
    """perf_event_open(2), which the C library has no function for."""

    def __init__(self) -> None:
        self._syscall: Callable[..., int] = ctypes.CDLL(None, use_errno=True).syscall

    def open(self, attributes: bytes, cpu: int) -> int:
        """As in Kernel."""
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
        """As in Kernel."""
        count, enabled, running = _READING.unpack(os.read(descriptor, _READING.size))
        return count, enabled, running

    def close(self, descriptor: int) -> None:
        """As in Kernel."""
        os.close(descriptor)


class PerfUnavailableError(Exception):
    """The operations cannot be counted; `remedy` says what to do, if there is a remedy."""

    def __init__(self, text: str, remedy: str | None = None) -> None:
        super().__init__(text)
        self.remedy = remedy


class PerfCounters:
    """FLOP of all programs since the events were opened. Used by one thread."""

    def __init__(self, processor: Processor, kernel: Kernel, root: Path = Path("/")) -> None:
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


def open_counters(
    processor: Processor, mode: str, kernel: Kernel | None = None
) -> PerfCounters | None:
    """The counters that `sources.perf` requests; None if there are none, which is logged."""
    if mode == "off":
        return None
    try:
        return PerfCounters(processor, kernel or LinuxKernel())
    except PerfUnavailableError as error:
        say = log.warning if mode == "on" else log.info
        say("perf_counters_absent", why=str(error), remedy=error.remedy)
        return None


def events_of(processor: Processor) -> Sequence[Event]:
    """The events that count its floating-point operations; raises PerfUnavailableError."""
    family, model = processor.family or 0, processor.model or 0
    if processor.vendor == "GenuineIntel" and family == 6:
        if "avx512f" not in processor.flags and (
            model < _INTEL_FIRST_MODEL or model in _INTEL_WITHOUT
        ):
            raise PerfUnavailableError("this processor has no counter of floating-point operations")
        return (*_INTEL, *_INTEL_512) if "avx512f" in processor.flags else _INTEL
    if processor.vendor == "AuthenticAMD" and family == 23:
        return _AMD_ZEN if model < 0x30 else _AMD_ZEN_2
    if processor.vendor == "AuthenticAMD" and family == 25:
        return _AMD_ZEN_4 if "avx512f" in processor.flags else _AMD_ZEN_2
    if processor.vendor == "AuthenticAMD" and family == 26:
        return _AMD_ZEN_5
    if processor.implementer == _ARM and processor.part in _ARM_VECTORS:
        vectors = _ARM_VECTORS[processor.part]
        return (Event(0x80C1, 0, _ANY, 1), Event(0x80C0, 0, _ANY, vectors))
    raise PerfUnavailableError(f"the counters of this processor are not known ({processor.name})")


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
