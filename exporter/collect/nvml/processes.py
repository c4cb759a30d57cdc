"""The processes that use a device, by the newest call that the driver has.

nvmlDeviceGetComputeRunningProcesses_v3 came with driver 510; older ones have _v2, and those before
450 the call without a suffix, whose entries lack the MIG instance (nvml.h, nvmlProcessInfo_v1_t).
Drivers have also filled lists with entries of another size than they said, so that everything from
the second one on is garbage; each entry is checked before it is used.
"""

from collections.abc import Mapping
from ctypes import Structure, byref, c_uint, c_ulonglong
from functools import partial
from typing import Any

import pynvml

from exporter.collect.nvml.errors import error_for
from exporter.collect.nvml.library import DeviceCalls, call_symbol
from exporter.readings import ProcessUse


class _ProcessWithoutInstance(Structure):
    _fields_ = (("pid", c_uint), ("used_bytes", c_ulonglong))


class _Process(Structure):
    _fields_ = (
        *_ProcessWithoutInstance._fields_,
        ("gpu_instance_id", c_uint),
        ("compute_instance_id", c_uint),
    )


_SYMBOLS: tuple[tuple[str, type[Structure]], ...] = (
    ("nvmlDeviceGetComputeRunningProcesses_v3", _Process),
    ("nvmlDeviceGetComputeRunningProcesses_v2", _Process),
    ("nvmlDeviceGetComputeRunningProcesses", _ProcessWithoutInstance),
)
SYMBOLS = tuple(symbol for symbol, _entry in _SYMBOLS)
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
    for symbol, kind in _SYMBOLS:
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
