"""All devices of a host: found, sampled, and found again when the driver comes back."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import structlog

from exporter.accounting.peaks import Peaks
from exporter.collect.context import GpuContext
from exporter.collect.cpu import CpuSource
from exporter.collect.dcgm.source import DcgmSource
from exporter.collect.device import SampledGpu
from exporter.collect.discovery import DeviceLookout
from exporter.collect.host_cpu import SampledCpu
from exporter.collect.nvml.errors import DriverMismatch, NvmlError
from exporter.collect.nvml.events import XidWatcher
from exporter.collect.nvml.library import DriverLibrary
from exporter.collect.sampler import BACKOFF_FIRST_SECONDS, BACKOFF_LAST_SECONDS, Sampler
from exporter.collect.settings import SamplingSettings
from exporter.readings import DeviceIdentity
from exporter.state import UNKNOWN, UNKNOWN_KEY, DeviceSnapshot, HostSnapshot
from flopwatch.threads import BoundedThread


log = structlog.get_logger(__name__)

# How often the finder looks whether the library was initialised anew (XID events must then be
# registered again, and GPUs may have come or gone).
_WATCH_SECONDS = 0.5
# nvmlShutdown takes milliseconds; a process that ends does not wait longer for it.
_CLOSE_SECONDS = 0.2
# Why there is no GPU to watch, so that the processor stands in. Any other reason says that there are
# GPUs, and that something keeps this process from them: that must be seen.
_NO_GPU = frozenset({"turned_off", "no_devices", "library_not_found", "driver_not_loaded"})


@dataclass(frozen=True, slots=True)
class HostCallbacks:
    """What the sampling threads ask of the daemon. Each is cheap and thread-safe."""

    settings: Callable[[], SamplingSettings]
    source_modes: Callable[[], Mapping[str, str]]
    precision: Callable[[DeviceIdentity, Peaks], tuple[str | None, str]]
    reachable_bandwidth: Callable[[DeviceIdentity], float | None]
    dcgm_url: Callable[[], str] = lambda: "http://127.0.0.1:9400/metrics"


class HostSampling:
    """Owns the samplers and the last snapshot of each device."""

    def __init__(self, callbacks: HostCallbacks) -> None:
        self._callbacks = callbacks
        self._library = DriverLibrary()
        self._xids = XidWatcher()
        self._dcgm = DcgmSource(callbacks.dcgm_url, lambda: callbacks.source_modes()["dcgm"])
        self._lock = threading.Lock()
        self._samplers: dict[str, Sampler] = {}
        self._owners: dict[str, SampledGpu] = {}
        self._snapshots: dict[str, DeviceSnapshot] = {}
        self._version = 0
        self._stop = threading.Event()
        self._found = threading.Event()
        self._finding_since: float | None = None
        self._driver_error: str | None = None
        self._started_at = time.monotonic()
        self._mismatch = threading.Event()
        self._finder = threading.Thread(target=self._find, name="device-finder", daemon=True)

    def start(self) -> None:
        """Begin to look for devices and to sample them."""
        self._finder.start()

    def wait_for_devices(self, timeout_seconds: float) -> bool:
        """Wait until the driver has said what there is, and each device has ticked once."""
        deadline = time.monotonic() + timeout_seconds
        if not self._found.wait(timeout_seconds):
            return False
        while time.monotonic() < deadline:
            with self._lock:
                if self._snapshots.keys() >= self._samplers.keys():
                    return True
            time.sleep(0.01)
        return False

    @property
    def mismatched(self) -> bool:
        """Whether library and kernel module differ: only a new process can heal that."""
        return self._mismatch.is_set()

    @property
    def barred(self) -> bool:
        """Whether the driver is there, but no longer for this process."""
        return self._library.barred

    @property
    def version(self) -> int:
        """Grows with every new snapshot."""
        return self._version

    def view(self) -> HostSnapshot:
        """All devices as of now; one that has not ticked yet stands there as not up."""
        now = time.monotonic()
        with self._lock:
            snapshots = dict(self._snapshots)
            samplers = tuple(self._samplers.items())
        hung: set[tuple[str, str]] = set()
        for key, sampler in samplers:
            snapshot = snapshots.setdefault(key, _not_yet(key.partition("/")[0], now))
            if sampler.hung(now):
                hung.update(device.identity.key for device in (snapshot, *snapshot.instances))
        finding = self._finding_since
        if finding is not None and now - finding > self._callbacks.settings().deadline:
            hung.add(UNKNOWN_KEY)
        return HostSnapshot(
            devices=tuple(
                device
                for snapshot in sorted(snapshots.values(), key=_order)
                for device in (snapshot, *snapshot.instances)
            ),
            hung=frozenset(hung),
            pending=not self._found.is_set(),
            now_seconds=now,
            driver_error=self._driver_error,
        )

    def has_fresh_device(self) -> bool:
        """Whether any device is shown as up, by the same rule: what readiness means."""
        view = self.view()
        return any(
            device.up
            and device.identity.key not in view.hung
            and view.now_seconds - device.at_seconds <= device.max_age_seconds
            for device in view.devices
        )

    def stop(self, timeout_seconds: float) -> None:
        """End all threads that can end; shut the library down only if all of them could."""
        self._stop.set()
        self._xids.stop()
        self._dcgm.stop()
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            samplers = tuple(self._samplers.values())
        for sampler in samplers:
            sampler.stop()
        ended = [sampler.join(max(0.0, deadline - time.monotonic())) for sampler in samplers]
        if all(ended) and not self._mismatch.is_set():
            self._close_library(max(_CLOSE_SECONDS, deadline - time.monotonic()))

    def _close_library(self, timeout_seconds: float) -> None:
        """Shut it down, unless it hangs in that, too, or still in its initialisation."""
        closer = BoundedThread(target=self._library.close, name="library-closer")
        with contextlib.suppress(RuntimeError):  # no thread can start: the process ends without
            closer.start()
            closer.join(timeout_seconds)

    def _publish(self, device: SampledGpu | SampledCpu, snapshot: DeviceSnapshot) -> None:
        with self._lock:
            sampler = self._samplers.get(device.key)
            if sampler is None or sampler.device is not device:
                return  # the last words of one that was removed
            self._snapshots[device.key] = snapshot
            self._version += 1

    def _find(self) -> None:
        """Find the devices; where a thread for one cannot start, later."""
        while not self._stop.is_set():
            try:
                self._look()
            except RuntimeError as error:
                log.warning("sampling_not_started", error=str(error))
                self._stop.wait(BACKOFF_FIRST_SECONDS)
            else:
                return

    def _look(self) -> None:
        """Look for GPUs until there are some, with backoff; then keep their events registered."""
        backoff = BACKOFF_FIRST_SECONDS
        absent_logged = False
        while not self._stop.is_set():
            modes = self._callbacks.source_modes()
            if modes["cpu"] == "on":
                self._start_cpu()
            count, reason = self._count_gpus() if modes["nvml"] != "off" else (0, "turned_off")
            if count:
                self._start_gpus(count)
                self._found.set()
                self._watch()
                return
            if self._mismatch.is_set():
                return  # the GPUs are there, but not for this process
            if modes["cpu"] == "auto" and modes["nvml"] != "on" and reason in _NO_GPU:
                self._start_cpu()
            if not absent_logged:
                log.info("no_gpu_found", reason=reason, sampled=sorted(self._samplers))
                absent_logged = True
            self._found.set()
            self._stop.wait(backoff)
            backoff = min(2 * backoff, BACKOFF_LAST_SECONDS)

    def _count_gpus(self) -> tuple[int, str]:
        self._finding_since = time.monotonic()
        try:
            self._library.open()
            return self._library.device_count(), "no_devices"
        except NvmlError as error:
            self._driver_error = error.reason
            if isinstance(error, DriverMismatch):
                self._mismatch.set()
            return 0, error.reason
        finally:
            self._finding_since = None

    def _start_cpu(self) -> None:
        if SampledCpu.key not in self._samplers:
            self._start(SampledCpu(self._callbacks.settings, CpuSource(time.monotonic)))

    def _start_gpus(self, count: int) -> None:
        if self._callbacks.source_modes()["cpu"] != "on":
            self._remove(SampledCpu.key)
        for index in range(count):
            if str(index) not in self._samplers:
                self._start(SampledGpu(index, self._context()))
        lookout = DeviceLookout(
            self._library,
            gpus=self._gpus,
            add=self._add_gpu,
            forget=self._forget_gpu,
            hung=lambda: self.view().hung,
        )
        BoundedThread(
            target=lookout.run,
            args=(self._stop, lambda: self._callbacks.settings().slow_interval),
            name="device-lookout",
        ).start()

    def _add_gpu(self, index: int, uuid: str) -> None:
        """Begin to sample a GPU that came while the daemon runs."""
        key = str(index)
        if key in self._samplers:  # the GPU that was found there has moved, or left
            key = f"{index}/{uuid}"
        gpu = SampledGpu(index, self._context(), uuid=uuid, key=key)
        if not self._claim(uuid, gpu):
            return  # one of those that are there has just found it
        log.info("gpu_found", gpu=index, uuid=uuid)
        try:
            self._start(gpu)
        except RuntimeError:
            self._release(gpu)
            raise

    def _forget_gpu(self, gpu: SampledGpu) -> None:
        """Show nothing any more of a GPU that is gone for good."""
        self._remove(gpu.key)
        self._release(gpu)
        self._xids.forget(gpu.uuid)
        self._dcgm.forget_gpu(gpu.uuid)

    def _claim(self, uuid: str, gpu: SampledGpu) -> bool:
        """Whether the GPU of this UUID is this one's to sample: no two may keep books of one."""
        with self._lock:
            return self._owners.setdefault(uuid, gpu) is gpu

    def _release(self, gpu: SampledGpu) -> None:
        with self._lock:
            self._owners = {uuid: owner for uuid, owner in self._owners.items() if owner is not gpu}

    def _context(self) -> GpuContext:
        return GpuContext(
            library=self._library,
            settings=self._callbacks.settings,
            precision=self._callbacks.precision,
            reachable_bandwidth=self._callbacks.reachable_bandwidth,
            xids=self._xids.counts,
            gpm_mode=lambda: self._callbacks.source_modes()["gpm"],
            on_mismatch=self._mismatch.set,
            claim=self._claim,
            dcgm=self._dcgm,
        )

    def _start(self, device: SampledGpu | SampledCpu) -> None:
        sampler = Sampler(
            device,
            self._callbacks.settings,
            partial(self._publish, device),
            started_at=self._started_at,
        )
        with self._lock:
            self._samplers[device.key] = sampler
        try:
            sampler.start()
        except RuntimeError:  # no thread left: the finder tries again
            with self._lock:
                del self._samplers[device.key]
            raise

    def _remove(self, key: str) -> None:
        with self._lock:
            sampler = self._samplers.pop(key, None)
            self._snapshots.pop(key, None)
            self._version += 1
        if sampler is not None:
            sampler.stop()

    def _watch(self) -> None:
        """Register XID events whenever the set of open handles changes."""
        watched: dict[str, int] = {}
        while not self._stop.is_set():
            handles = self._handles()
            state = {uuid: id(handle) for uuid, handle in handles.items()}
            if state != watched:
                watched = state
                self._xids.watch(handles)
            self._stop.wait(_WATCH_SECONDS)

    def _handles(self) -> dict[str, object]:
        return {gpu.uuid: gpu.handle for gpu in self._gpus() if gpu.handle is not None}

    def _gpus(self) -> list[SampledGpu]:
        with self._lock:
            devices = [sampler.device for sampler in self._samplers.values()]
        return [device for device in devices if isinstance(device, SampledGpu)]


def _order(snapshot: DeviceSnapshot) -> tuple[bool, int, str]:
    index = snapshot.identity.index
    return (not index.isdigit(), int(index) if index.isdigit() else 0, index)


def _not_yet(key: str, now: float) -> DeviceSnapshot:
    return DeviceSnapshot(
        identity=DeviceIdentity(index=key, uuid=UNKNOWN, name=UNKNOWN),
        at_seconds=now,
        up=False,
        max_age_seconds=0.0,
    )
