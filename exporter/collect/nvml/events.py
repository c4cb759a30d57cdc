"""XID events: waited for on a separate thread, counted by device and code."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog

from exporter.collect.nvml.errors import NvmlError
from exporter.collect.nvml.event_sets import EventSet
from exporter.state import XidCounts
from flopwatch.threads import BoundedThread


log = structlog.get_logger(__name__)

_WAIT_MILLISECONDS = 1000
_RETRY_SECONDS = 5.0
# Codes are small integers; a driver that invents new ones must not grow the exposition without
# bound.
_CODES_MAX = 64


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
