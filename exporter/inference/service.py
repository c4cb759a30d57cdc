"""Served models: scrapes the inference engines of this host and turns tokens into FLOPs."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from exporter import procfs
from exporter.device_state import DeviceState
from exporter.http_client import without_credentials
from exporter.inference.account import (
    Account,
    Locate,
    ModelTotals,
    missing_gpus,
    precision_of,
    present,
)
from exporter.inference.config import DiscoveryConfig, WorkloadConfig, check_names
from exporter.inference.discovery import (
    ContainerDiscovery,
    Endpoint,
    discover_pods,
    discover_ports,
    engine_processes,
    place,
    serving_processes,
)
from exporter.inference.engines import ENGINES
from exporter.inference.launch import Launch, launch_of, locate_config, locate_in_process
from exporter.inference.models import ModelDescription
from exporter.inference.reading import EngineReading
from exporter.inference.scraper import Fetch, Scraper, fetch_text
from exporter.inference.snapshot import GpuRef, ModelSnapshot, WorkloadSnapshot, WorkloadsSnapshot
from exporter.state import State
from flopwatch.threads import ThreadGuard


# The limit of scraped engines: a host serves a few; more come from a runaway discovery.
LARGEST_WORKLOAD_COUNT = 64
# A discovered engine that has not answered for this long is removed permanently.
FORGET_SECONDS = 600.0
# How long stopping may take: a hung engine must not delay the daemon's exit.
STOP_SECONDS = 2.0
# The processes behind an address are looked up this often: it walks all of /proc.
PROCESSES_SECONDS = 15.0
# Discovery runs this often until the driver has listed the processes that hold GPUs.
FIRST_DISCOVERY_SECONDS = 5.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Workload:
    config: WorkloadConfig
    scraper: Scraper
    account: Account
    found: bool  # by discovery
    # Its processes, if it was found through them.
    found_processes: frozenset[int]
    added_seconds: float
    # The processes behind the address and their settings; refreshed periodically.
    processes: frozenset[int] = frozenset()
    process_gpus: tuple[GpuRef, ...] = ()
    launch: Launch = field(default_factory=Launch)
    refreshed_seconds: float | None = None
    refreshed_restarts: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """One model that an engine currently serves.

    `passes` and `prompts` are cumulative like the counts of `shown`; `passes_missed` counts the
    scrapes whose passes were not known. `gpu_count` includes GPUs on other hosts.
    """

    workload: str
    engine: str
    shown: ModelSnapshot
    gpus: tuple[GpuRef, ...]
    gpu_count: int
    tensor_parallel: int
    description: ModelDescription | None = None
    passes: float = 0.0
    passes_missed: int = 0
    prompts: float = 0.0


class WorkloadService:
    """Owns one scraper per workload, and the discovery. Methods may be called from any thread."""

    def __init__(
        self,
        config: Sequence[WorkloadConfig] = (),
        *,
        state: Callable[[], State] = lambda: State(at_seconds=0.0),
        discovery: DiscoveryConfig | None = None,
        fetch: Fetch = fetch_text,
        locate: Locate = locate_config,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = tuple(config)
        self._state = state
        self._discovery = discovery or DiscoveryConfig()
        self._fetch = fetch
        self._locate = locate
        self._clock = clock
        self._wall_clock = wall_clock
        self._workloads: dict[str, _Workload] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._finder: threading.Thread | None = None
        self._finder_guard = ThreadGuard()
        self._containers = ContainerDiscovery(fetch=fetch)
        self._unavailable: str | None = None

    def start(self) -> None:
        """Start scraping the configured engines and, if enabled, discovering others."""
        self._stop.clear()
        self.configure(self._config)
        discovery = self._discovery
        if discovery.ports or discovery.list_pods or discovery.processes != "off":
            self._finder_guard = ThreadGuard()
            self._finder = threading.Thread(
                target=self._finder_guard.run,
                args=(self._discover,),
                name="engine-discovery",
                daemon=True,
            )
            self._finder.start()

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """End all scraping; scrapes still running after the timeout end by themselves."""
        self._stop.set()
        with self._lock:
            workloads = tuple(self._workloads.values())
            self._workloads.clear()
        for workload in workloads:
            workload.scraper.stop()
        deadline = time.monotonic() + timeout_seconds
        for workload in workloads:
            workload.scraper.join(max(0.0, deadline - time.monotonic()))
        if self._finder is not None:
            self._finder.join(max(0.0, deadline - time.monotonic()))
            self._finder = None

    def configure(self, config: Sequence[WorkloadConfig]) -> None:
        """Scrape the engines in `config` from now on. Unchanged ones continue undisturbed.

        Raises ConfigError, and changes nothing, if two workloads have the same name.
        """
        check_names(config)
        with self._lock:
            self._config = tuple(config)
            wanted = {entry.name: entry for entry in self._config}
            for name, workload in tuple(self._workloads.items()):
                if not workload.found and wanted.get(name) != workload.config:
                    self._remove(name)
            for entry in self._config:
                present = self._workloads.get(entry.name)
                if present is not None and present.found:
                    self._remove(entry.name)
                if entry.name not in self._workloads:
                    self._add(entry, found=False)

    def stalled(self, now: float) -> tuple[str, ...]:
        """Names of the threads that have died or are stuck because of a bug of ours."""
        guards = {f"engine-{w.scraper.name}": w.scraper.guard for w in self._by_name()}
        guards["engine-discovery"] = self._finder_guard
        return tuple(name for name, guard in guards.items() if guard.stalled(now))

    def snapshot(self, state: State | None = None) -> WorkloadsSnapshot:
        """Return all workloads as of now. Ratios divide by the peaks of the devices in `state`."""
        state = state or self._state()
        return WorkloadsSnapshot(
            tuple(self._workload(workload, state) for workload in self._by_name())
        )

    def served(self, state: State) -> tuple[Served, ...]:
        """Return the facts that advice needs, for every model that currently answers."""
        return tuple(
            self._served(workload, totals, state)
            for workload in self._by_name()
            if workload.scraper.state().up
            for totals in workload.account.models()
        )

    def precisions(self, state: State | None = None) -> Mapping[str, str]:
        """Return the precision served on each GPU by its UUID, according to engines and models.

        It is kept when an engine fails: the value of past work does not change.
        """
        served: dict[str, str] = {}
        state = state or self._state()
        for workload in self._by_name():
            gpus = self._gpus_of(workload, state)
            for totals in workload.account.models():
                precision = precision_of(workload.config, totals, gpus, state)
                if precision is not None:
                    for gpu in gpus:
                        served.setdefault(gpu.uuid, precision)
        return served

    def _by_name(self) -> list[_Workload]:
        with self._lock:
            return [workload for _name, workload in sorted(self._workloads.items())]

    def _add(
        self, config: WorkloadConfig, *, found: bool, processes: frozenset[int] = frozenset()
    ) -> None:
        if len(self._workloads) >= LARGEST_WORKLOAD_COUNT:
            log.warning("workload_limit_reached", workload=config.name, limit=len(self._workloads))
            return

        def locate(name: str) -> Path | None:
            launch = workload.launch
            found = self._locate(name)
            if found is None and launch.pid is not None and launch.model is not None:
                found = locate_in_process(launch.pid, launch.model)
            return found

        account = Account(config, locate=locate)

        def on_reading(reading: EngineReading) -> None:
            self._refresh_processes(workload, reading)
            account.add(reading, self._tensor_parallel(workload), workload.launch)

        def on_failure() -> None:
            """An engine that has ended holds no GPU: what others do there is not charged to it."""
            if workload.processes and not any(map(procfs.process, workload.processes)):
                workload.processes, workload.process_gpus = frozenset(), ()
                workload.refreshed_seconds = None  # to be looked up as soon as it answers again

        scraper = Scraper(
            config.name,
            ENGINES[config.engine],
            config.url,
            on_reading,
            on_failure=on_failure,
            interval_seconds=config.interval_seconds,
            timeout_seconds=config.timeout_seconds,
            fetch=self._fetch,
            clock=self._clock,
            wall_clock=self._wall_clock,
        )
        workload = _Workload(config, scraper, account, found, processes, self._wall_clock())
        scraper.start()  # without a thread there is no workload either
        self._workloads[config.name] = workload

    def _remove(self, name: str) -> None:
        self._workloads.pop(name).scraper.stop()

    def _workload(self, workload: _Workload, state: State) -> WorkloadSnapshot:
        scrape = workload.scraper.state()
        gpus = self._gpus_of(workload, state)
        return WorkloadSnapshot(
            name=workload.config.name,
            engine=workload.config.engine,
            up=scrape.up,
            reason=scrape.reason.value if scrape.reason else None,
            gpus=gpus,
            processes=workload.processes,
            models=tuple(
                self._shown(workload, totals, state) for totals in workload.account.models()
            )
            if scrape.up
            else (),
            errors=scrape.errors,
            malformed_lines=scrape.malformed_lines,
            last_success_timestamp_seconds=scrape.last_success_timestamp_seconds,
        )

    def _shown(self, workload: _Workload, totals: ModelTotals, state: State) -> ModelSnapshot:
        pipeline_parallel = workload.config.pipeline_parallel
        return present(
            workload.config,
            totals,
            self._gpus_of(workload, state),
            state,
            launch=workload.launch,
            gpus_per_replica=self._tensor_parallel(workload) * pipeline_parallel,
        )

    def _served(self, workload: _Workload, totals: ModelTotals, state: State) -> Served:
        gpus = self._gpus_of(workload, state)
        reported = totals.reading.gpus or workload.launch.gpus
        return Served(
            workload=workload.config.name,
            engine=workload.config.engine,
            shown=self._shown(workload, totals, state),
            gpus=gpus,
            gpu_count=workload.config.gpus_total
            or reported
            or len(gpus) + len(missing_gpus(workload.config, state)),
            tensor_parallel=totals.reading.tensor_parallel or self._tensor_parallel(workload),
            description=totals.description,
            passes=totals.passes,
            passes_missed=totals.passes_missed,
            prompts=totals.prompts,
        )

    def _gpus_of(self, workload: _Workload, state: State) -> tuple[GpuRef, ...]:
        if not workload.config.gpus:
            return workload.process_gpus
        found = (state.find(key) for key in workload.config.gpus)
        return tuple(dict.fromkeys(_reference(device) for device in found if device is not None))

    def _refresh_processes(self, workload: _Workload, reading: EngineReading) -> None:
        """Find the processes behind the address again, after a restart and periodically."""
        refreshed = workload.refreshed_seconds
        due = refreshed is None or reading.seconds - refreshed >= PROCESSES_SECONDS
        if not due and reading.restarts == workload.refreshed_restarts:
            return
        workload.refreshed_seconds, workload.refreshed_restarts = reading.seconds, reading.restarts
        workload.processes = workload.found_processes or serving_processes(workload.config.url)
        workload.launch = launch_of(workload.processes)
        workload.process_gpus = self._process_gpus(workload.processes)

    def _gpu_processes(self) -> dict[GpuRef, set[int]]:
        return {
            _reference(device): {process.pid for process in device.slow.processes or ()}
            for device in self._state().devices
            if device.slow is not None
        }

    def _process_gpus(self, processes: frozenset[int]) -> tuple[GpuRef, ...]:
        if not processes:
            return ()
        if self._on_processor():
            return tuple(_reference(device) for device in self._state().devices)
        found = (gpu for gpu, pids in self._gpu_processes().items() if pids & processes)
        return tuple(sorted(found, key=lambda gpu: (gpu.gpu, gpu.uuid)))

    def _on_processor(self) -> bool:
        """Whether this host computes on its processor, without a GPU."""
        devices = self._state().devices
        return bool(devices) and all(device.is_processor for device in devices)

    def _tensor_parallel(self, workload: _Workload) -> int:
        """As configured or started; else all GPUs of the workload count as one group."""
        config = workload.config
        size = config.tensor_parallel or workload.launch.tensor_parallel
        if size:
            return size
        state = self._state()
        count = len(self._gpus_of(workload, state)) + len(missing_gpus(config, state))
        return max(1, count // config.pipeline_parallel)

    def _discover(self) -> None:
        while not self._stop.is_set():
            on_processor = self._on_processor()
            try:
                with self._finder_guard.waiting():  # for engines, and files of other processes
                    found = tuple(self._found())
                self._adopt(found)
            except Exception as error:  # noqa: BLE001 - a caller's hook must not end the thread
                log.warning("workload_discovery_failed", error=f"{type(error).__name__}: {error}")
            soon = (
                self._discovery.processes != "off"
                and not self._gpu_processes()
                and not on_processor
            )
            with self._finder_guard.waiting():
                self._stop.wait(
                    FIRST_DISCOVERY_SECONDS if soon else self._discovery.interval_seconds
                )

    def _found(self) -> Iterable[Endpoint]:
        if self._discovery.ports:
            yield from discover_ports(self._discovery.ports, fetch=self._fetch)
        if self._discovery.processes != "off":
            holding = frozenset().union(*self._gpu_processes().values())
            yield from self._containers.discover(
                engine_processes() if self._on_processor() else holding
            )
            self._log_unavailable(self._containers.unavailable)
        if self._discovery.list_pods is not None:
            yield from discover_pods(self._discovery.list_pods, fetch=self._fetch)

    def _log_unavailable(self, reason: str | None) -> None:
        """Log once why engines cannot be found by their processes."""
        if reason == self._unavailable:
            return
        self._unavailable = reason
        if reason is not None:
            write = log.warning if self._discovery.processes == "on" else log.info
            write("process_discovery_unavailable", reason=reason)

    def _adopt(self, endpoints: Iterable[Endpoint]) -> None:
        """Scrape newly found engines; forget those that have long been silent."""
        for endpoint in tuple(endpoints):
            with self._lock:
                if self._stop.is_set():
                    return
                present = self._workloads.get(endpoint.name)
                if present is not None and present.config.url == endpoint.url:
                    present.found_processes = endpoint.processes
                if endpoint.name not in self._workloads and not self._is_known(endpoint):
                    log.info(
                        "workload_found",
                        workload=endpoint.name,
                        url=without_credentials(endpoint.url),
                    )
                    self._add(
                        WorkloadConfig(endpoint.name, endpoint.engine, endpoint.url),
                        found=True,
                        processes=endpoint.processes,
                    )
        with self._lock:
            for name, workload in tuple(self._workloads.items()):
                state = workload.scraper.state()
                seen = state.last_success_timestamp_seconds or workload.added_seconds
                if workload.found and not state.up and self._wall_clock() - seen > FORGET_SECONDS:
                    log.info("workload_forgotten", workload=name)
                    self._remove(name)

    def _is_known(self, endpoint: Endpoint) -> bool:
        """Whether a workload already scrapes this engine, under any address: it must count once."""
        return any(
            place(workload.config.url) == place(endpoint.url)
            or bool(workload.processes & endpoint.processes)
            for workload in self._workloads.values()
        )


def _reference(device: DeviceState) -> GpuRef:
    identity = device.identity
    return GpuRef(identity.index, identity.uuid, identity.mig)
