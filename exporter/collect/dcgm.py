"""Source `dcgm`: activities of GPUs without GPM, from a dcgm-exporter on the node.

One thread scrapes it for all GPUs of the host, off the tick path, and only while a GPU asks. A
dcgm-exporter that is down costs one refused connection per half minute.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from exporter.accounting.device import NVML_TRAFFIC
from exporter.collect.dcgm_windows import (
    DcgmDevice,
    DcgmExposition,
    DeviceSample,
    DeviceWindows,
    Shares,
    parse,
    whole_gpu_sample,
)
from exporter.device_state import SourceHealth
from exporter.errors import Reason, ScrapeError
from exporter.http_client import fetch
from exporter.readings import ActivityWindow, FastReading
from flopwatch.threads import BoundedThread


log = structlog.get_logger(__name__)

# For the whole exchange. dcgm-exporter answers from memory, in milliseconds.
_TIMEOUT_SECONDS = 5.0
# 16 GPUs with seven instances and every field stay below 2 MB.
_LIMIT_BYTES = 8 * 2**20
_BACKOFF_FIRST_SECONDS = 1.0
_BACKOFF_LAST_SECONDS = 30.0
# No device has read it for this long: every GPU has GPM by now, or is gone.
_UNUSED_SECONDS = 30.0
# Windows wait here for the device's next tick; more than a few mean that it is not ticking.
_WINDOWS_MAX = 8

DEFAULT_INTERVAL_SECONDS = 30.0  # dcgm-exporter's --collect-interval
_INTERVALS_KEPT = 5
_INTERVALS_NEEDED = 2
# A sample that does not change for this many intervals is not being collected any more.
_STALE_INTERVALS = 2.5
# While the interval is not known, and around the expected change once it is.
_POLL_SECONDS = 1.0
_POLL_SECONDS_MIN = 0.5
_QUIET_POLL_SECONDS = 5.0  # nothing changes: all GPUs are idle
_EARLY_SECONDS = 1.5


class DcgmReader:
    """One device's view of the scrapes. Thread-safe: the device's thread reads, the scraper feeds."""

    def __init__(self, source: "DcgmSource", key: DcgmDevice) -> None:
        self.key = key
        # For a GPU in MIG mode: its instances' shares.
        self.shares: Shares = {}
        self._source = source
        self._lock = threading.Lock()
        # An instance may have so few SMs that cycles of one and of all cannot be distinguished by
        # the clock.
        self._windows = DeviceWindows(tells_clock=key.gpu_instance_id is None)
        self._closed: deque[ActivityWindow] = deque(maxlen=_WINDOWS_MAX)
        self._errors: Counter[str] = Counter()
        self._succeeded: float | None = None
        self._utilization: list[float] = []
        self._tells_flops = False
        self._missing: tuple[str, ...] = ()
        self._stands_still = False

    def take(self, fast: FastReading) -> tuple[ActivityWindow | None, float | None]:
        """The oldest window that was not read yet, and the start of the open one."""
        self._source.ask()
        with self._lock:
            if fast.gpu_utilization is not None and self._windows.open_since is not None:
                self._utilization.append(fast.gpu_utilization)
            if not self._closed:
                mean = None
                if self._utilization:
                    mean = sum(self._utilization) / len(self._utilization)
                expired = self._windows.expire(
                    fast.at_seconds, self._source.interval.stale_seconds, mean
                )
                if expired is None:
                    return None, self._windows.open_since
                self._utilization.clear()
                return expired, None
            self._utilization.clear()
            window = self._closed.popleft()
            # NVML's own byte counters are exact; rates of the last second of a window are not.
            own: dict[str, Any] = {
                name: None
                for name in NVML_TRAFFIC
                if getattr(fast, name) is not None and getattr(window, name) is not None
            }
            following = self._closed[0].start_seconds if self._closed else self._windows.open_since
            return (replace(window, **own) if own else window), following

    def reshape(self, shares: Shares) -> None:
        """Set the GPU's instances; a window that saw others is discarded."""
        with self._lock:
            if shares == self.shares:
                return
            self.shares = shares
            unknown = self._windows.abandon(time.monotonic())
            if unknown is not None:
                self._closed.append(unknown)

    def restart(self) -> None:
        """Count nothing of the time since the last window: it was not watched."""
        with self._lock:
            self._closed.clear()
            self._utilization.clear()
            self._windows.restart()

    def health(self, *, up: bool) -> SourceHealth:
        """The health of the source for this device."""
        with self._lock:
            fresh = self._windows.fresh(time.monotonic(), self._source.interval.stale_seconds)
            delivers = fresh and self._tells_flops
            return SourceHealth(up and delivers, self._succeeded, dict(self._errors), self._missing)

    @property
    def max_window_seconds(self) -> float:
        """The longest window that counts as watched."""
        return self._source.interval.stale_seconds + self._source.interval.seconds

    def fed(self, devices: Mapping[DcgmDevice, DeviceSample]) -> bool:
        """Take this device's sample of one scrape, if it has one; whether it was new."""
        with self._lock:
            sample = devices.get(self.key)
            if self.key.gpu_instance_id is None and self.shares:
                sample = whole_gpu_sample(self.key.uuid, devices, self.shares)
            self._missing = () if sample is None else sample.missing_fields
            if sample is not None and sample.malformed:
                self._errors["malformed"] += sample.malformed
            if sample is None or not sample.known:
                self._errors["no_device" if sample is None else "no_fields"] += 1
                self._tells_flops = False
                return False
            self._tells_flops = sample.tells_flops
            if not self._tells_flops:
                self._errors["no_fields"] += 1
            if sample.implausible:
                self._errors["implausible"] += sample.implausible
            # Now, and not when the scrape began: a tick in between has already accounted for its
            # time.
            new, windows = self._windows.observe(
                sample, time.monotonic(), self._source.interval.seconds
            )
            self._closed.extend(windows)
            if new or windows:
                self._succeeded = time.time()
            self._judge(sample)
            return new

    def _judge(self, sample: DeviceSample) -> None:
        """Count stuck activities: a busy GPU never shows the same ones for this long."""
        fresh = self._windows.fresh(time.monotonic(), self._source.interval.stale_seconds)
        stands_still = not fresh and not sample.idle
        if stands_still:
            self._errors["implausible"] += 1
        if stands_still != self._stands_still:
            self._stands_still = stands_still
            report = log.warning if stands_still else log.info
            report(
                "dcgm_stands_still" if stands_still else "dcgm_moves_again",
                uuid=self.key.uuid,
                mig=self.key.gpu_instance_id,
            )

    def failed(self, reason: str) -> None:
        """Count a scrape with lines or values that cannot be true."""
        with self._lock:
            self._errors[reason] += 1

    def lost(self, reason: str | None) -> None:
        """A scrape failed, which counts if there is a reason: the missing fields are unknown."""
        with self._lock:
            self._missing = ()
            if reason is not None:
                self._errors[reason] += 1


class DcgmSource:
    """Scrapes one dcgm-exporter for all readers."""

    def __init__(self, url: Callable[[], str], mode: Callable[[], str]) -> None:
        self.asked_at = -_UNUSED_SECONDS
        self._url = url
        self.mode = mode
        self._lock = threading.Lock()
        self._readers: dict[DcgmDevice, DcgmReader] = {}
        self.interval = CollectInterval(time.monotonic())
        self._stop = threading.Event()
        self._started = False
        self._start_after = 0.0
        self._reached = False
        self._failing: str | None = None
        self._missing: frozenset[str] = frozenset()
        self._malformed = False

    def reader(self, uuid: str, gpu_instance_id: str | None = None) -> DcgmReader:
        """The reader of a device; the same one for the same device."""
        key = DcgmDevice(uuid, gpu_instance_id)
        with self._lock:
            return self._readers.setdefault(key, DcgmReader(self, key))

    def ask(self) -> None:
        """Scrape for a waiting caller, and continue as long as this is called."""
        self.asked_at = now = time.monotonic()
        with self._lock:
            if self._started or now < self._start_after:
                return
            self._started = True
        # Outside of the lock: starting a thread waits when memory is short, which must cost one
        # device a tick now and then, not every device each tick.
        try:
            BoundedThread(target=self._run, name="dcgm").start()
        except RuntimeError:
            with self._lock:
                self._start_after = time.monotonic() + _BACKOFF_LAST_SECONDS
                self._started = False

    def forget(self, reader: DcgmReader) -> None:
        """Remove a device that is gone, or that has GPM after all."""
        with self._lock:
            self._readers.pop(reader.key, None)

    def forget_gpu(self, uuid: str) -> None:
        """Remove a GPU that is permanently gone, with its instances."""
        with self._lock:
            for key in [key for key in self._readers if key.uuid == uuid]:
                del self._readers[key]

    def stop(self) -> None:
        """End the thread within one scrape."""
        self._stop.set()

    def _run(self) -> None:
        backoff = _BACKOFF_FIRST_SECONDS
        while not self._stop.is_set():
            now = time.monotonic()
            if self.mode() == "off" or now - self.asked_at > _UNUSED_SECONDS:
                self._stop.wait(1.0)
                continue
            try:
                succeeded = self.scrape()
            except Exception:  # the top of the thread: a bug must not end the source
                log.exception("dcgm_scrape_fault")
                self._failed(Reason.INTERNAL.value)
                succeeded = False
            if succeeded:
                backoff = _BACKOFF_FIRST_SECONDS
                pause = self.interval.next_look(time.monotonic())
            else:
                pause = backoff
                backoff = min(2 * backoff, _BACKOFF_LAST_SECONDS)
            self._stop.wait(pause)

    def scrape(self) -> bool:
        """Scrape once and feed all readers; whether it succeeded."""
        try:
            text = fetch(
                self._url(),
                timeout_seconds=_TIMEOUT_SECONDS,
                limit_bytes=_LIMIT_BYTES,
                undecodable="replace",
            )
        except ScrapeError as error:
            self._failed(error.reason.value)
            return False
        devices = parse(text)
        del text  # up to 8 MiB
        if not devices:
            self._failed("malformed" if devices.malformed else "not_dcgm")
            return False
        self._note_success(devices)
        self._note_malformed(devices)
        changed = [reader.fed(devices) for reader in self._all_readers()]
        self.interval.looked(time.monotonic(), changed=any(changed))
        return True

    def _all_readers(self) -> tuple[DcgmReader, ...]:
        with self._lock:
            return tuple(self._readers.values())

    def _failed(self, reason: str) -> None:
        self.interval.forget()
        # With `auto`, there need not be a dcgm-exporter.
        absent = self.mode() == "auto" and not self._reached and reason == Reason.CONNECTION
        for reader in self._all_readers():
            reader.lost(None if absent else reason)
        if self._failing != reason:
            self._failing = reason
            report = log.info if absent else log.warning
            report(
                "dcgm_exporter_not_reached",
                url=self._url(),
                reason=reason,
                remedy="GPUs before Hopper need it for FLOPS: run dcgm-exporter, set dcgm.url, "
                "or set sources.dcgm to off"
                if reason == Reason.CONNECTION
                else "it answers, but with no usable metric: check its log and dcgm.url",
            )

    def _note_malformed(self, devices: DcgmExposition) -> None:
        """A malformed line costs only itself; one that names no device counts for all devices."""
        if devices.malformed:
            for reader in self._all_readers():
                reader.failed("malformed")
        malformed = devices.malformed + sum(sample.malformed for sample in devices.values())
        if bool(malformed) != self._malformed:
            self._malformed = bool(malformed)
            report = log.warning if malformed else log.info
            report(
                "dcgm_lines_malformed" if malformed else "dcgm_lines_well_formed",
                url=self._url(),
                lines=malformed,
            )

    def _note_success(self, devices: Mapping[DcgmDevice, DeviceSample]) -> None:
        self._failing = None
        if not self._reached:
            self._reached = True
            log.info("dcgm_exporter_found", url=self._url(), devices=len(devices))
        readers = [reader.key for reader in self._all_readers()]
        samples = [sample for key in readers if (sample := devices.get(key)) is not None]
        missing = frozenset(name for sample in samples for name in sample.missing_fields)
        if missing != self._missing:
            self._missing = missing
            if missing:
                log.warning(
                    "dcgm_fields_missing",
                    missing=sorted(missing),
                    remedy="add a line 'FIELD, gauge, help' for each to the counters file of "
                    "dcgm-exporter (-f, DCGM_EXPORTER_COLLECTORS) and restart it",
                )


class CollectInterval:
    """Learns how often samples change, and when to scrape next."""

    def __init__(self, began_seconds: float) -> None:
        self._seen: list[float] = []
        self._changed_at: float | None = None
        self._looked_since_change = False
        self._began = began_seconds

    @property
    def seconds(self) -> float:
        """The interval: dcgm-exporter's default until it is known."""
        if not self.known:
            return DEFAULT_INTERVAL_SECONDS
        import statistics  # noqa: PLC0415  1 MB, only for hosts with a dcgm-exporter

        return statistics.median(self._seen)

    @property
    def known(self) -> bool:
        """Whether enough changes were seen."""
        return len(self._seen) >= _INTERVALS_NEEDED

    @property
    def stale_seconds(self) -> float:
        """Age from which a sample counts as no longer collected."""
        return _STALE_INTERVALS * max(self.seconds, 2 * _POLL_SECONDS)

    def looked(self, at_seconds: float, *, changed: bool) -> None:
        """Record one scrape."""
        if not changed:
            self._looked_since_change = True
            return
        if self._changed_at is not None:
            if self.known and not self._looked_since_change and self.seconds > 2 * _POLL_SECONDS:
                # The change came earlier than expected: it may have happened long ago.
                self._seen.clear()
            else:
                self._seen = [*self._seen, at_seconds - self._changed_at][-_INTERVALS_KEPT:]
        self._changed_at = at_seconds
        self._looked_since_change = False

    def forget(self) -> None:
        """After an outage the next change does not show the interval."""
        self._changed_at = None

    def next_look(self, now: float) -> float:
        """Seconds to wait: until shortly before the next change, and then in short steps."""
        if not self.known or self._changed_at is None:
            waited = now - (self._changed_at if self._changed_at is not None else self._began)
            return _POLL_SECONDS if waited < 2 * self.seconds else _QUIET_POLL_SECONDS
        step = min(max(self.seconds / 10, _POLL_SECONDS_MIN), _POLL_SECONDS)
        expected = self._changed_at + self.seconds - _EARLY_SECONDS
        return max(step, expected - now)
