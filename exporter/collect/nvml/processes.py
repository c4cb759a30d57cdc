"""The processes that use a device, and their SM time, by the newest call that the driver has.

nvmlDeviceGetComputeRunningProcesses_v3 came with driver 510; older ones have _v2, and those before
450 the call without a suffix, whose entries lack the MIG instance (nvml.h, nvmlProcessInfo_v1_t).
Drivers have also filled lists with entries of another size than they said, so that everything from
the second one on is garbage; each entry is checked before it is used.

For SM time, the driver samples each process a few times a second and keeps some seconds of it; an idle
process has no samples, and an idle device answers NOT_FOUND. A sample is the share of the SMs' time
that a process had since its last one, and counts once, by its timestamp (nvml.h,
nvmlProcessUtilizationSample_t and nvmlProcessUtilizationInfo_v1_t).
"""

from collections.abc import Mapping
from ctypes import Structure, addressof, byref, c_uint, c_ulonglong, c_void_p, sizeof
from functools import partial
from typing import Any

import pynvml

from exporter.collect.nvml.library import DeviceCalls, call_symbol, error_for
from exporter.readings import ProcessUse


_UTILIZATION_SYMBOLS = ("nvmlDeviceGetProcessesUtilizationInfo", "nvmlDeviceGetProcessUtilization")
_NOT_FOUND = 6
_MICROSECONDS = 1e6
# Drivers sample at 1 Hz or faster. A longer span between two samples means that the process was
# idle: there are none for idle time.
_SAMPLE_SECONDS_MAX = 1.0
_PERCENT_MAX = 100
# Processes of the last hours; the least recently seen are dropped first.
_REMEMBERED_MAX = 1024


class _ProcessWithoutInstance(Structure):
    _fields_ = (("pid", c_uint), ("used_bytes", c_ulonglong))


class _Process(Structure):
    _fields_ = (
        *_ProcessWithoutInstance._fields_,
        ("gpu_instance_id", c_uint),
        ("compute_instance_id", c_uint),
    )


_LISTS: tuple[tuple[str, type[Structure]], ...] = (
    ("nvmlDeviceGetComputeRunningProcesses_v3", _Process),
    ("nvmlDeviceGetComputeRunningProcesses_v2", _Process),
    ("nvmlDeviceGetComputeRunningProcesses", _ProcessWithoutInstance),
)
LIST_SYMBOLS = tuple(symbol for symbol, _entry in _LISTS)
# No GPU has more: 48 MPS clients, or 64 replicas of seven instances. A bound for a count of garbage.
_PROCESSES_MAX = 1024
_ROOM = 16  # for processes that start between the two calls
_PID_MAX = 2**22  # PID_MAX_LIMIT of Linux on 64-bit machines
_MEMORY_MAX = 2**50  # when the device does not report its memory size
_NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


def read_processes(calls: DeviceCalls) -> Mapping[str, Any]:
    """Processes with a compute context: None where the driver does not list them.

    An entry with an impossible pid is left out, and the list marked as incomplete; a process that
    claims more memory than the device has is listed without it. Both are counted as implausible.
    """
    entries: list[Any] | None = None
    for symbol, kind in _LISTS:
        entries = calls.ask_by((symbol,), partial(_list, calls.handle, symbol, kind))
        if entries is not None or not calls.unsupported(symbol):
            break  # older calls replace one that is missing, not one that fails
    if entries is None:
        return {"processes": None, "processes_incomplete": False}
    incomplete = False
    found: list[ProcessUse] = []
    for entry in entries:
        pid = int(entry.pid)
        if not 0 < pid <= _PID_MAX:
            calls.implausible("process id")
            incomplete = True
            continue
        found.append(ProcessUse(pid=pid, used_bytes=_memory(calls, int(entry.used_bytes))))
    return {"processes": tuple(found), "processes_incomplete": incomplete}


def _memory(calls: DeviceCalls, used_bytes: int) -> int | None:
    if used_bytes == _NOT_AVAILABLE:
        return None
    if used_bytes > (calls.memory_total_bytes or _MEMORY_MAX):
        calls.implausible("process memory")
        return None
    return used_bytes


def _list(handle: Any, symbol: str, kind: type[Structure]) -> list[Any]:
    """The entries of one call. Raises NvmlError."""
    count = c_uint(0)
    code = call_symbol(symbol, handle, byref(count), None)
    if code == pynvml.NVML_SUCCESS:
        return []
    if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
        raise error_for(symbol, code)
    room = min(int(count.value) + _ROOM, _PROCESSES_MAX)
    entries = (kind * room)()
    count.value = room
    code = call_symbol(symbol, handle, byref(count), entries)
    if code != pynvml.NVML_SUCCESS:
        raise error_for(symbol, code)
    return list(entries[: min(int(count.value), room)])


class _Sample(Structure):
    """nvmlProcessUtilizationInfo_v1_t."""

    _fields_ = (
        ("at_us", c_ulonglong),
        ("pid", c_uint),
        ("sm_percent", c_uint),
        ("others", c_uint * 5),
    )


class _OlderSample(Structure):
    """nvmlProcessUtilizationSample_t."""

    _fields_ = (
        ("pid", c_uint),
        ("at_us", c_ulonglong),
        ("sm_percent", c_uint),
        ("others", c_uint * 3),
    )


class _Request(Structure):
    """nvmlProcessesUtilizationInfo_t."""

    _fields_ = (
        ("version", c_uint),
        ("count", c_uint),
        ("seen_us", c_ulonglong),
        ("samples", c_void_p),
    )


_REQUEST_VERSION = sizeof(_Request) | 1 << 24
# A garbled count must not allocate memory: a sample for each of the most processes and some seconds.
_SAMPLES_MAX = 16 * _PROCESSES_MAX


class ProcessUtilization:
    """Adds up the samples of one device. One thread owns it."""

    def __init__(self) -> None:
        self._room: Any = None  # for the driver's answer; kept, so that one call is enough
        self._seen_us = 0
        self._sampled_us: dict[int, int] = {}
        self._seconds: dict[int, float] = {}

    def read(self, calls: DeviceCalls) -> Mapping[int, float] | None:
        """SM seconds by process id since this object was created; None if the driver reports none.

        A value never decreases. Raises DeviceLost, DriverGone or DriverMismatch.
        """
        for symbol in _UTILIZATION_SYMBOLS:
            question = partial(self._newest, symbol, calls.handle)
            samples = calls.ask_by((symbol,), question)
            if samples is not None:
                self._add(calls, samples)
                return dict(self._seconds)
            if not calls.unsupported(symbol):
                break  # the older call replaces one that is missing, not one that fails
        return dict(self._seconds) if self._seconds else None

    def _newest(self, symbol: str, handle: Any) -> list[Any]:
        """Samples newer than the last ones; none where no process was busy. Raises NvmlError."""
        kind = _Sample if symbol == _UTILIZATION_SYMBOLS[0] else _OlderSample
        if self._room is None or not isinstance(self._room[0], kind):
            self._room = (kind * _ROOM)()
        code, count = self._ask(symbol, handle)
        if code == pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
            self._room = (kind * min(count + _ROOM, _SAMPLES_MAX))()
            code, count = self._ask(symbol, handle)
        if code == _NOT_FOUND:
            return []
        if code != pynvml.NVML_SUCCESS:
            raise error_for(symbol, code)
        return list(self._room[: min(count, len(self._room))])

    def _ask(self, symbol: str, handle: Any) -> tuple[int, int]:
        """The return code, and how many samples there are."""
        room = self._room
        if symbol == _UTILIZATION_SYMBOLS[0]:
            request = _Request(_REQUEST_VERSION, len(room), self._seen_us, addressof(room))
            return call_symbol(symbol, handle, byref(request)), int(request.count)
        count = c_uint(len(room))
        code = call_symbol(symbol, handle, room, byref(count), c_ulonglong(self._seen_us))
        return code, int(count.value)

    def _add(self, calls: DeviceCalls, samples: list[Any]) -> None:
        newest = self._seen_us
        for at_us, pid, percent in sorted((s.at_us, s.pid, s.sm_percent) for s in samples):
            if at_us <= self._seen_us:
                continue  # the driver's buffer begins before the requested time
            if not 0 < pid <= _PID_MAX or percent > _PERCENT_MAX:
                calls.implausible("process utilization")
                continue
            before_us = self._sampled_us.pop(pid, self._seen_us)
            seconds = min((at_us - before_us) / _MICROSECONDS, _SAMPLE_SECONDS_MAX)
            self._sampled_us[pid] = at_us  # at the end: the order is that of the last sample
            self._seconds[pid] = self._seconds.get(pid, 0.0) + max(0.0, seconds) * percent / 100
            newest = max(newest, at_us)
        self._seen_us = newest
        while len(self._sampled_us) > _REMEMBERED_MAX:
            oldest = next(iter(self._sampled_us))
            del self._sampled_us[oldest]
            del self._seconds[oldest]
