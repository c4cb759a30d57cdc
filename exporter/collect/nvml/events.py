"""XID events: waited for on a separate thread, counted by device and code.

Event bits (`nvmlDeviceRegisterEvents`) are used where the device has them. Their successor, "GPU
operational events" (drivers R615 and newer), is used only for devices that refuse the event bits: a
driver may report one incident in both formats, and it must count once.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from ctypes import Structure, byref, c_char, c_ubyte, c_uint, c_ulonglong
from typing import Any

import pynvml
import structlog

from exporter.collect.nvml.library import (
    NotSupported,
    NvmlError,
    call,
    call_symbol,
    error_for,
    handle_address,
)
from exporter.device_state import XidCounts
from flopwatch.threads import BoundedThread


log = structlog.get_logger(__name__)

_WAIT_MILLISECONDS = 1000
_RETRY_SECONDS = 5.0
# Codes are small integers; a driver that invents new ones must not grow the exposition without
# bound.
_CODES_MAX = 64

_UUID_BYTES = 96
_STRUCTURED = 1
_LEGACY_XID = 1
# One event has no more contexts than this.
_CONTEXTS_MAX = 64
_SEEN_MAX = 4096


class XidWatcher:
    """Collects XID events of all devices.

    A device is watched as long as its handle is the same: registering it again would lose events in
    between, or count them twice. Devices registered together share an event set and a thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[int]] = {}
        self._last: dict[str, dict[int, float]] = {}
        self._stop = threading.Event()
        self._generation = 0
        # The handle of each device, and the generation that watches it. A lost device keeps both:
        # its last events may still come.
        self._watched: dict[str, tuple[Any, int]] = {}
        self._open: Mapping[str, Any] = {}

    def watch(self, handles: Mapping[str, Any]) -> None:
        """Watch these devices, by UUID; those already watched by the same handle stay as they are.

        A handle that is not among them is dead, and will not be used again.
        """
        with self._lock:
            self._open = dict(handles)
            new = {
                uuid: handle
                for uuid, handle in handles.items()
                if uuid not in self._watched or self._watched[uuid][0] is not handle
            }
            self._generation += 1
            generation = self._generation
            self._watched.update({uuid: (handle, generation) for uuid, handle in new.items()})
        if new:
            with suppress(RuntimeError):  # no thread available: as if the driver reported no events
                BoundedThread(target=self._run, args=(new, generation), name="xid-events").start()

    def stop(self) -> None:
        """End within one wait, or never if the driver does not return."""
        self._stop.set()

    def counts(self, uuid: str) -> XidCounts:
        """The events of one device."""
        with self._lock:
            return XidCounts(dict(self._counts.get(uuid, {})), dict(self._last.get(uuid, {})))

    def forget(self, uuid: str) -> None:
        """Forget a device that is permanently gone."""
        with self._lock:
            for kept in (self._counts, self._last, self._watched):
                kept.pop(uuid, None)

    def _watches(self, generation: int, uuid: str | None = None) -> bool:
        """Whether a generation still watches this device, or any."""
        if self._stop.is_set():
            return False
        with self._lock:
            watched = self._watched
            return any(
                by == generation
                for of, (_handle, by) in watched.items()
                if uuid is None or of == uuid
            )

    def _run(self, handles: Mapping[str, Any], generation: int) -> None:
        while self._watches(generation):
            try:
                self._collect(handles, generation)
                return
            except NvmlError as error:
                log.debug("xid_events_interrupted", reason=error.reason)
            self._stop.wait(_RETRY_SECONDS)

    def _collect(self, handles: Mapping[str, Any], generation: int) -> None:
        events = EventSet()
        try:
            for uuid, handle in handles.items():
                if self._open.get(uuid) is not handle:
                    continue
                try:
                    events.register(uuid, handle)
                except NvmlError as error:
                    log.info("xid_events_not_available", uuid=uuid, reason=error.reason)
            while events and self._watches(generation):
                for uuid, xid in events.wait(_WAIT_MILLISECONDS):
                    if self._watches(generation, uuid):
                        self._count(uuid, xid)
        finally:
            try:
                events.free()
            except NvmlError as error:
                log.debug("xid_event_set_not_freed", reason=error.reason)

    def _count(self, uuid: str, xid: int) -> None:
        with self._lock:
            counts = self._counts.setdefault(uuid, Counter())
            if xid not in counts and len(counts) >= _CODES_MAX:
                return
            counts[xid] += 1
            self._last.setdefault(uuid, {})[xid] = time.time()
        log.warning("xid_event", uuid=uuid, xid=xid)


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
        count = c_uint()  # nvmlEventSetGetContextCount_v1_t has nothing else
        with suppress(NvmlError):
            self._checked("nvmlEventSetGetContextCount_v1", byref(count))
        for index in range(min(count.value, _CONTEXTS_MAX)):
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
