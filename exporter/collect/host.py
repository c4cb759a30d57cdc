"""The host: its boot, its GPUs on the PCI bus, and its devices, found and sampled.

GPUs are counted on the bus whether or not a driver is loaded.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from exporter.collect.cpu import CpuSource, SampledCpu
from exporter.collect.dcgm import DcgmSource
from exporter.collect.device import GpuContext
from exporter.collect.discovery import DeviceDiscovery
from exporter.collect.gpu import SampledGpu
from exporter.collect.nvml.events import XidWatcher
from exporter.collect.nvml.library import DriverLibrary, DriverMismatch, NvmlError, running_call
from exporter.collect.sampler import (
    BACKOFF_FIRST_SECONDS,
    BACKOFF_LAST_SECONDS,
    DRIVER_BACKOFF_SECONDS,
    Sampler,
)
from exporter.collect.settings import SamplingSettings
from exporter.device_state import UNKNOWN, DeviceName, DeviceState, SampledHost
from exporter.readings import DeviceIdentity, HostFacts
from flopwatch.threads import BoundedThread


if TYPE_CHECKING:
    from exporter.state import State  # loaded while sampling has begun


log = structlog.get_logger(__name__)

# How often the finder checks whether the library was initialised again (XID events must then be
# registered again, and GPUs may have come or gone).
_WATCH_SECONDS = 0.5
# nvmlShutdown takes milliseconds; a process that ends does not wait longer for it.
_CLOSE_SECONDS = 0.2
# Reasons for which there is no GPU and the processor is sampled instead, unless the PCI bus lists
# GPUs. Any other reason means that there are GPUs that this process cannot reach.
_NO_GPU = frozenset({"turned_off", "no_devices", "library_not_found", "driver_not_loaded"})

_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"
# GPUs are rarely plugged in or handed over.
_BUS_SECONDS = 60.0


class HostSampling:
    """Owns the samplers, and the last DeviceState that each has published."""

    def __init__(
        self,
        settings: Callable[[], SamplingSettings],
        state: "Callable[[], State]",
        *,
        on_device: Callable[[DeviceState], None] = lambda _device: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """`settings` and `state` return the current value without waiting. `on_device` gets each tick.

        `on_tick` is called when every device that is up has ticked, by the thread of the last one. A
        device that is late is waited for until the next tick begins.
        """
        self._settings = settings
        self._state = state
        self._on_device = on_device
        self._on_tick = on_tick
        self._library = DriverLibrary()
        self._xids = XidWatcher()
        self._dcgm = DcgmSource(lambda: settings().dcgm_url, lambda: settings().modes["dcgm"])
        self._lock = threading.Lock()
        self._ticked = threading.Condition(self._lock)
        self._samplers: dict[str, Sampler] = {}
        self._owners: dict[str, SampledGpu] = {}
        self._published: dict[str, DeviceState] = {}
        # The number of the tick, its interval, and the devices that are still to tick.
        self._tick = (0, 0.0)
        self._due: set[str] = set()
        self._version = 0
        self._stop = threading.Event()
        self._found = threading.Event()
        self._finding_since: float | None = None
        self._finding_reported: float | None = None
        self._driver_error: str | None = None
        self._started_at = time.monotonic()
        self._mismatch = threading.Event()
        self._finder = threading.Thread(target=self._find, name="device-finder", daemon=True)

    def start(self) -> None:
        """Begin to find and sample devices."""
        self._finder.start()

    def wait_for_devices(self, timeout_seconds: float) -> bool:
        """Wait until the driver has listed its devices, and each device has ticked once."""
        deadline = time.monotonic() + timeout_seconds
        if not self._found.wait(timeout_seconds):
            return False
        with self._ticked:
            return self._ticked.wait_for(
                lambda: self._published.keys() >= self._samplers.keys(),
                max(0.0, deadline - time.monotonic()),
            )

    @property
    def mismatched(self) -> bool:
        """Whether library and kernel module differ: only a new process can fix that."""
        return self._mismatch.is_set()

    @property
    def barred(self) -> bool:
        """Whether the driver works, but no longer for this process."""
        return self._library.barred

    def stalled(self, now: float) -> tuple[str, ...]:
        """Devices whose sampler has ended or is stuck because of a bug in flopwatch, not in the driver."""
        with self._lock:
            samplers = tuple(self._samplers.items())
        return tuple(key for key, sampler in samplers if sampler.stalled(now))

    def mark(self, now: float) -> object:
        """Cheap to read; changes whenever `published` would return something else."""
        with self._lock:
            samplers = tuple(self._samplers.items())
        hung = tuple(key for key, sampler in samplers if sampler.hung(now))
        found = self._found.is_set()
        return self._version, hung, self._driver_hung(now), found, self._driver_error

    def report_hangs(self, now: float) -> None:
        """Log each driver call that has passed its deadline, once. Makes no driver call itself."""
        with self._lock:
            samplers = tuple(self._samplers.values())
        for sampler in samplers:
            sampler.report_hang(now)
        since = self._finding_since
        if since is not None and since != self._finding_reported and self._driver_hung(now):
            self._finding_reported = since
            function = running_call(self._finder.ident) or "unknown"
            log.warning("driver_call_hung", function=function, seconds=round(now - since, 1))

    def _driver_hung(self, now: float) -> bool:
        """Whether the driver has not listed its devices within the deadline."""
        since = self._finding_since
        return since is not None and now - since > self._settings().deadline

    def published(self, now: float) -> SampledHost:
        """What the samplers last published; a device that has not ticked yet is listed as not up."""
        with self._lock:
            devices = dict(self._published)
            samplers = tuple(self._samplers.items())
        hung: set[DeviceName] = set()
        for key, sampler in samplers:
            if key not in devices:
                devices[key] = _not_yet(key.partition("/")[0], now)
            if sampler.hung(now):
                device = devices[key]
                hung.update(each.identity.key for each in (device, *device.instances))
        return SampledHost(
            devices=tuple(sorted(devices.values(), key=_order)),
            hung=frozenset(hung),
            pending=not self._found.is_set(),
            driver_hung=self._driver_hung(now),
            driver_error=self._driver_error,
        )

    def stop(self, timeout_seconds: float) -> None:
        """End all threads that can end; shut the library down only if all have ended."""
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
        """Shut it down, unless the call hangs, or an initialisation does."""
        closer = BoundedThread(target=self._library.close, name="library-closer")
        with contextlib.suppress(RuntimeError):  # no thread can start: the process ends without
            closer.start()
            closer.join(timeout_seconds)

    def _publish(self, device: SampledGpu | SampledCpu, state: DeviceState) -> None:
        with self._lock:
            sampler = self._samplers.get(device.key)
            if sampler is None or sampler.device is not device:
                return  # it was removed during its last tick
            self._published[device.key] = state
            self._version += 1
            self._ticked.notify_all()
            is_last = self._ends_tick(device.key, state)
        for each in (state, *state.instances):
            self._on_device(each)
        if is_last:
            self._on_tick()

    def _ends_tick(self, key: str, state: DeviceState) -> bool:
        """Whether this device was the last to tick at its instant. With the lock."""
        interval = self._settings().interval
        number = int((state.at_seconds - self._started_at) / interval)
        last, last_interval = self._tick
        if interval != last_interval or number > last:
            self._tick = (number, interval)
            self._due = {other for other, each in self._published.items() if each.up}
        elif (number < last and state.up) or key not in self._due:
            return False
        self._due.discard(key)
        return not self._due

    def _find(self) -> None:
        """Find the devices; where a thread cannot start, try again later."""
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
        logged: object = None
        while not self._stop.is_set():
            modes = self._settings().modes
            if modes["cpu"] == "on":
                self._start_cpu()
            expected = expected_gpus() or 0
            count, reason = self._count_gpus() if modes["nvml"] != "off" else (0, "turned_off")
            if count:
                self._start_gpus(count)
                self._found.set()
                self._watch()
                return
            if self._mismatch.is_set():
                return  # the GPUs exist, but this process has no access
            absent = reason == "turned_off" or (reason in _NO_GPU and not expected)
            if modes["cpu"] == "auto":
                # With the processor in place of unreachable GPUs, the host would look healthy.
                if absent and modes["nvml"] != "on":
                    self._start_cpu()
                elif not absent:
                    self._remove(SampledCpu.key)
            if logged != (reason, expected):
                logged = (reason, expected)
                report = log.info if absent else log.warning
                report(
                    "no_gpu_found",
                    reason=reason,
                    expected=expected,
                    sampled=sorted(self._samplers),
                )
            self._found.set()
            self._stop.wait(backoff)
            longest = BACKOFF_LAST_SECONDS if absent else DRIVER_BACKOFF_SECONDS
            if reason == "driver_not_loaded":
                longest = DRIVER_BACKOFF_SECONDS
            backoff = min(2 * backoff, longest)

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
            self._start(SampledCpu(self._settings, CpuSource(time.monotonic)))

    def _start_gpus(self, count: int) -> None:
        if self._settings().modes["cpu"] != "on":
            self._remove(SampledCpu.key)
        for index in range(count):
            if str(index) not in self._samplers:
                self._start(SampledGpu(index, self._context()))
        discovery = DeviceDiscovery(
            self._library,
            gpus=self._gpus,
            add=self._add_gpu,
            forget=self._forget_gpu,
            hung=lambda: self.published(time.monotonic()).hung,
        )
        BoundedThread(
            target=discovery.run,
            args=(self._stop, lambda: self._settings().slow_interval),
            name="device-discovery",
        ).start()

    def _add_gpu(self, index: int, uuid: str) -> None:
        """Start to sample a GPU that appeared while the daemon runs."""
        key = str(index)
        if key in self._samplers:  # the GPU that was found there has moved or disappeared
            key = f"{index}/{uuid}"
        gpu = SampledGpu(index, self._context(), uuid=uuid, key=key)
        if not self._claim(uuid, gpu):
            return  # an existing sampler has just found it
        log.info("gpu_found", gpu=index, uuid=uuid)
        try:
            self._start(gpu)
        except RuntimeError:
            self._release(gpu)
            raise

    def _forget_gpu(self, gpu: SampledGpu) -> None:
        """Stop showing a GPU that is permanently gone."""
        self._remove(gpu.key)
        self._release(gpu)
        self._xids.forget(gpu.uuid)
        self._dcgm.forget_gpu(gpu.uuid)

    def _claim(self, uuid: str, gpu: SampledGpu) -> bool:
        """Whether this sampler may sample the GPU with this UUID: no two may account for one GPU."""
        with self._lock:
            return self._owners.setdefault(uuid, gpu) is gpu

    def _release(self, gpu: SampledGpu) -> None:
        with self._lock:
            self._owners = {uuid: owner for uuid, owner in self._owners.items() if owner is not gpu}

    def _context(self) -> GpuContext:
        return GpuContext(
            library=self._library,
            settings=self._settings,
            state=self._state,
            xids=self._xids.counts,
            on_mismatch=self._mismatch.set,
            claim=self._claim,
            dcgm=self._dcgm,
        )

    def _start(self, device: SampledGpu | SampledCpu) -> None:
        sampler = Sampler(
            device,
            self._settings,
            partial(self._publish, device),
            started_at=self._started_at,
        )
        with self._lock:
            self._samplers[device.key] = sampler
            self._version += 1
        try:
            sampler.start()
        except RuntimeError:  # no thread available: the finder tries again
            with self._lock:
                del self._samplers[device.key]
            raise

    def _remove(self, key: str) -> None:
        with self._lock:
            sampler = self._samplers.pop(key, None)
            self._published.pop(key, None)
            self._due.discard(key)
            self._version += 1
        if sampler is not None:
            sampler.stop()

    def _watch(self) -> None:
        """Register XID events whenever the set of open handles changes."""
        watched: dict[str, int] = {}
        while not self._stop.is_set():
            handles = {gpu.uuid: gpu.handle for gpu in self._gpus() if gpu.handle is not None}
            state = {uuid: id(handle) for uuid, handle in handles.items()}
            if state != watched:
                watched = state
                self._xids.watch(handles)
            self._stop.wait(_WATCH_SECONDS)

    def _gpus(self) -> list[SampledGpu]:
        with self._lock:
            devices = [sampler.device for sampler in self._samplers.values()]
        return [device for device in devices if isinstance(device, SampledGpu)]


def _order(device: DeviceState) -> tuple[bool, int, str]:
    index = device.identity.index
    return (not index.isdigit(), int(index) if index.isdigit() else 0, index)


def _not_yet(key: str, now: float) -> DeviceState:
    return DeviceState(
        identity=DeviceIdentity(index=key, uuid=UNKNOWN, name=UNKNOWN),
        at_seconds=now,
        up=False,
        max_age_seconds=0.0,
    )


def boot_time_seconds(proc: Path = Path("/proc")) -> float | None:
    """Unix time of the host's boot (`btime` in /proc/stat); None where it cannot be read."""
    try:
        for line in (proc / "stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "btime":
                return float(value)
    except (OSError, ValueError):
        pass
    return None


def boot_id(proc: Path = Path("/proc")) -> str | None:
    """The kernel's random identity of this boot; None where it cannot be read."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def expected_gpus(sys: Path = Path("/sys")) -> int | None:
    """NVIDIA display controllers on the PCI bus; None where there is no bus to read.

    Virtual functions and devices handed to a virtual machine (vfio-pci) are not counted.
    """
    try:
        devices = list((sys / "bus/pci/devices").iterdir())
    except OSError:
        return None
    return sum(_is_gpu(device) for device in devices)


def _is_gpu(device: Path) -> bool:
    try:
        vendor = (device / "vendor").read_text().strip()
        kind = (device / "class").read_text().strip()
        if vendor != _NVIDIA or not kind.startswith(_DISPLAY_CLASS) or (device / "physfn").exists():
            return False
        driver = device / "driver"
        return not (driver.exists() and driver.resolve().name.startswith("vfio"))
    except OSError:
        return False


class Machine:
    """The host's facts, the bus read again every minute. Any thread may ask."""

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc, self._sys, self._clock = proc, sys, clock
        self._read_at = float("-inf")
        self._facts = HostFacts()

    def facts(self) -> HostFacts:
        """What the host reports about itself."""
        now = self._clock()
        if now - self._read_at >= _BUS_SECONDS:
            self._facts = HostFacts(expected_gpus(self._sys), boot_time_seconds(self._proc))
            self._read_at = now
        return self._facts
