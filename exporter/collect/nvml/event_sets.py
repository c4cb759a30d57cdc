"""XID events of several devices, by whichever calls the driver has.

Event bits (`nvmlDeviceRegisterEvents`) are used where the device has them. Their successor, "GPU
operational events" (drivers R615 and newer), is used only for devices that refuse the event bits: a
driver may report one incident in both formats, and it must count once.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import Structure, byref, c_char, c_ubyte, c_uint, c_ulonglong
from typing import Any

import pynvml

from exporter.collect.nvml.errors import NotSupported, NvmlError, error_for
from exporter.collect.nvml.library import call, call_symbol, handle_address


_UUID_BYTES = 96
_STRUCTURED = 1
_LEGACY_XID = 1
# One event has no more contexts than this.
_CONTEXTS_MAX = 64
_SEEN_MAX = 4096


class _Registration(Structure):
    """Layout of nvmlGpuOperationalEventConfig_v1_t."""

    _fields_ = (
        ("uuid", c_char * _UUID_BYTES),
        ("min_log_level", c_uint),
        ("min_severity", c_uint),
    )


class _Record(Structure):
    """Layout of nvmlEventSetWait_v3_t."""

    _fields_ = (
        ("timeout_ms", c_uint),
        ("data_type", c_uint),
        ("uuid", c_char * _UUID_BYTES),
        ("source_module", c_char * 16),
        ("event_type", c_ulonglong),
        ("event_data", c_ulonglong),
        ("group", c_ulonglong),
        ("instance", c_ulonglong),
        ("timestamp_usec", c_ulonglong),
        ("trace", c_ulonglong),
        ("numbers", c_uint * 13),
        ("group_size", c_ubyte),
        ("group_index", c_ubyte),
    )


class _ContextCount(Structure):
    """Layout of nvmlEventSetGetContextCount_v1_t."""

    _fields_ = (("count", c_uint),)


class _Context(Structure):
    """Layout of nvmlEventSetGetContextInfo_v1_t."""

    _fields_ = (
        ("index", c_uint),
        ("kind", c_uint),
        ("source_kind", c_uint),
        ("size", c_uint),
        ("version", c_ubyte * 2),
    )


class _LegacyXid(Structure):
    """Layout of nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1_t."""

    _fields_ = (("index", c_uint), ("xid", c_uint))


class EventSet:
    """A set of events. `wait` returns the XIDs that occurred, by UUID of the device."""

    def __init__(self) -> None:
        self._set = call("nvmlEventSetCreate")
        self._uuids: dict[int, str] = {}  # of devices with event bits, by the handle's address
        self._structured: set[str] = set()
        self._seen: dict[tuple[str, int], int] = {}  # the last group of records of each XID
        self._waits: list[Callable[[int], list[tuple[str, int]]]] = [
            self._wait_v2,
            self._wait_v3,
            self._wait_v1,
        ]

    def __bool__(self) -> bool:
        return bool(self._uuids or self._structured)

    def register(self, uuid: str, handle: Any) -> None:
        """Add a device. Raises the NvmlError of the event bits where the driver has neither format."""
        try:
            call(
                "nvmlDeviceRegisterEvents",
                handle,
                pynvml.nvmlEventTypeXidCriticalError,
                self._set,
            )
        except NotSupported:
            registration = _Registration(uuid=uuid.encode())
            if call_symbol(
                "nvmlEventSetRegisterGpuOperationalEvents_v1", self._set, byref(registration)
            ):
                raise
            self._structured.add(uuid)
            self._waits = [self._wait_v3]  # the others do not return structured records
        else:
            self._uuids[handle_address(handle)] = uuid

    def wait(self, timeout_ms: int) -> list[tuple[str, int]]:
        """Wait for the next event: UUID and code of each XID in it; empty when the time is up."""
        while True:
            try:
                return self._waits[0](timeout_ms)
            except NotSupported:
                if len(self._waits) == 1:
                    raise
                del self._waits[0]
            except NvmlError as error:
                if error.reason == "timeout":
                    return []
                raise

    def free(self) -> None:
        """Free the set."""
        call("nvmlEventSetFree", self._set)

    def _wait_v2(self, timeout_ms: int) -> list[tuple[str, int]]:
        return self._of_bits(call("nvmlEventSetWait", self._set, timeout_ms))

    def _wait_v1(self, timeout_ms: int) -> list[tuple[str, int]]:
        event = pynvml.c_nvmlEventData_t()  # begins with the fields of the first version
        self._checked("nvmlEventSetWait", byref(event), c_uint(timeout_ms))
        return self._of_bits(event)

    def _of_bits(self, event: Any) -> list[tuple[str, int]]:
        uuid = self._uuids.get(handle_address(event.device))
        if uuid is None or not event.eventType & pynvml.nvmlEventTypeXidCriticalError:
            return []
        return [(uuid, int(event.eventData))]

    def _wait_v3(self, timeout_ms: int) -> list[tuple[str, int]]:
        record = _Record(timeout_ms=timeout_ms)
        self._checked("nvmlEventSetWait_v3", byref(record))
        uuid = record.uuid.decode(errors="replace")
        if record.data_type != _STRUCTURED:
            is_xid = record.event_type & pynvml.nvmlEventTypeXidCriticalError
            known = uuid in self._uuids.values()
            return [(uuid, int(record.event_data))] if is_xid and known else []
        if uuid not in self._structured:
            return []
        # An incident may come as a group of records, each with the same XID.
        fresh = []
        for xid in set(self._legacy_xids()):
            if not record.group or self._seen.get((uuid, xid)) != record.group:
                fresh.append((uuid, xid))
            if len(self._seen) >= _SEEN_MAX:
                self._seen.clear()
            self._seen[uuid, xid] = record.group
        return fresh

    def _legacy_xids(self) -> Iterator[int]:
        """The XIDs among the contexts of the last record; what cannot be read is left out."""
        count = _ContextCount()
        with suppress(NvmlError):
            self._checked("nvmlEventSetGetContextCount_v1", byref(count))
        for index in range(min(count.count, _CONTEXTS_MAX)):
            context, legacy = _Context(index=index), _LegacyXid(index=index)
            with suppress(NvmlError):
                self._checked("nvmlEventSetGetContextInfo_v1", byref(context))
                if context.kind == _LEGACY_XID:
                    self._checked(
                        "nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1", byref(legacy)
                    )
                    yield int(legacy.xid)

    def _checked(self, symbol: str, *arguments: Any) -> None:
        code = call_symbol(symbol, self._set, *arguments)
        if code:
            raise error_for(symbol, code)
