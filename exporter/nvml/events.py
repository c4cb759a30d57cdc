"""XID events: waited for on a thread of their own, counted by device and code."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pynvml
import structlog

from exporter.nvml.errors import NvmlError
from exporter.nvml.library import call, handle_address
from exporter.snapshot import XidCounts
from probes.threads import BoundedThread


log = structlog.get_logger(__name__)

_WAIT_MILLISECONDS = 1000
_RETRY_SECONDS = 5.0
# Codes are small integers; a driver that invents new ones must not grow the exposition for ever.
_CODES_MAX = 64


class XidWatcher:
    """Collects XID events of all devices of one initialisation of the library."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[int]] = {}
        self._last: dict[str, dict[int, float]] = {}
        self._stop = threading.Event()
        self._generation = 0

    def watch(self, handles: Mapping[str, Any]) -> None:
        """Watch these devices, by UUID, in place of those watched so far."""
        with self._lock:
            self._generation += 1
            generation = self._generation
        if handles:
            with suppress(RuntimeError):  # no thread left: as if the driver told of no events
                BoundedThread(
                    target=self._run, args=(dict(handles), generation), name="xid-events"
                ).start()

    def stop(self) -> None:
        """End within one wait, or never if the driver does not return."""
        self._stop.set()

    def counts(self, uuid: str) -> XidCounts:
        """What was seen of one device."""
        with self._lock:
            return XidCounts(dict(self._counts.get(uuid, {})), dict(self._last.get(uuid, {})))

    def _current(self, generation: int) -> bool:
        return not self._stop.is_set() and self._generation == generation

    def _run(self, handles: Mapping[str, Any], generation: int) -> None:
        while self._current(generation):
            try:
                self._collect(handles, generation)
                return
            except NvmlError as error:
                log.debug("xid_events_interrupted", reason=error.reason)
            self._stop.wait(_RETRY_SECONDS)

    def _collect(self, handles: Mapping[str, Any], generation: int) -> None:
        events = call("nvmlEventSetCreate")
        try:
            addresses = {}
            for uuid, handle in handles.items():
                try:
                    call(
                        "nvmlDeviceRegisterEvents",
                        handle,
                        pynvml.nvmlEventTypeXidCriticalError,
                        events,
                    )
                except NvmlError as error:
                    log.info("xid_events_not_available", uuid=uuid, reason=error.reason)
                    continue
                addresses[handle_address(handle)] = uuid
            while addresses and self._current(generation):
                self._wait(events, addresses)
        finally:
            try:
                call("nvmlEventSetFree", events)
            except NvmlError as error:
                log.debug("xid_event_set_not_freed", reason=error.reason)

    def _wait(self, events: Any, addresses: Mapping[int, str]) -> None:
        try:
            event = call("nvmlEventSetWait", events, _WAIT_MILLISECONDS)
        except NvmlError as error:
            if error.reason == "timeout":
                return
            raise
        if event.eventType & pynvml.nvmlEventTypeXidCriticalError:
            uuid = addresses.get(handle_address(event.device))
            if uuid is not None:
                self._count(uuid, int(event.eventData))

    def _count(self, uuid: str, xid: int) -> None:
        with self._lock:
            counts = self._counts.setdefault(uuid, Counter())
            if xid not in counts and len(counts) >= _CODES_MAX:
                return
            counts[xid] += 1
            self._last.setdefault(uuid, {})[xid] = time.time()
        log.warning("xid_event", uuid=uuid, xid=xid)
