"""Reads the GPUs' holders outside the scrape path: one thread, three sources, frozen snapshots."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from exporter.attribution.jobs import (
    JobFiles,
    ProcessOwners,
    device_processes,
    merged,
    sees_host_processes,
    slurm_jobs,
)
from exporter.attribution.pod_resources import list_allocations
from exporter.attribution.settings import HolderSettings
from exporter.attribution.snapshot import (
    HoldersSnapshot,
    SourceState,
)
from exporter.errors import HolderSourceError
from exporter.state import State
from flopwatch.threads import ThreadGuard


log = structlog.get_logger(__name__)

# How often to check for changes: a stat of the socket, a directory listing, a look at the last
# snapshot.
_LOOK_SECONDS = 1.0
POD_RESOURCES, JOB_MAPPING, JOB_PROCESSES = "pod_resources", "job_mapping", "job_processes"
# An answer is valid for this many intervals: a kubelet restart does not change its pods' devices,
# but after a long outage they may have changed.
KEEP_INTERVALS = 3

_Clock = Callable[[], float]


class HolderSource:
    """One source of holders: read when due, with its health and its last answer while valid.

    Used only by the service's thread, except `state` and `items`, which are replaced whole.

    `quiet` holds reasons that are no error before the first success: a socket or directory that
    does not exist on other kinds of hosts.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], tuple[Any, ...]],
        mark: Callable[[], object],
        *,
        quiet: frozenset[str] = frozenset(),
        clock: _Clock = time.monotonic,
        wall_clock: _Clock = time.time,
    ) -> None:
        self.name = name
        self.state: SourceState | None = None
        self.items: tuple[Any, ...] = ()
        self._read = read
        self._mark = mark
        self._quiet = quiet
        self._clock = clock
        self._wall_clock = wall_clock
        self._seen_mark: object = None
        self._read_at: float | None = None
        self._answered_at: float | None = None

    def poll(self, interval_seconds: float) -> None:
        """Read if the interval has passed or something has changed; drop outdated answers."""
        mark = self._mark()
        now = self._clock()
        due = self._read_at is None or now - self._read_at >= interval_seconds
        if due or mark != self._seen_mark:
            self._seen_mark = mark
            self._read_at = now
            self._try()
        answered = self._answered_at
        if answered is not None and now - answered > KEEP_INTERVALS * interval_seconds:
            self.items = ()
            self._answered_at = None

    def _try(self) -> None:
        before = self.state
        try:
            self.items = self._read()
        except HolderSourceError as error:
            if before is not None or error.reason not in self._quiet:
                self._fail(before, error)
            return
        self._answered_at = self._clock()
        errors = before.errors if before is not None else {}
        self.state = SourceState(True, self._wall_clock(), errors)
        if before is None or not before.up:
            log.info("holder_source_up", source=self.name, holders=len(self.items))

    def _fail(self, before: SourceState | None, error: HolderSourceError) -> None:
        errors = dict(before.errors) if before is not None else {}
        errors[error.reason] = errors.get(error.reason, 0) + 1
        last = before.last_success_unix_seconds if before is not None else None
        self.state = SourceState(False, last, errors)
        if before is None or before.up:
            log.warning(
                "holder_source_down", source=self.name, reason=error.reason, error=error.detail
            )


class HolderService:
    """Owns the reading thread. `snapshot` is cheap and may be called from any thread."""

    def __init__(
        self,
        settings: HolderSettings,
        state: Callable[[], State],
        *,
        clock: _Clock = time.monotonic,
        wall_clock: _Clock = time.time,
    ) -> None:
        self._settings = settings
        self._state = state
        self._clock = clock
        self._wall_clock = wall_clock
        self._snapshot = HoldersSnapshot()
        self._version = 0
        self._sources = self._build(settings)
        self._built_for = settings
        self._process_owners = ProcessOwners()
        self._host_processes = sees_host_processes()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._guard = ThreadGuard()

    def start(self) -> None:
        """Start reading."""
        self._stopping = False
        self._guard = ThreadGuard()
        self._thread = threading.Thread(
            target=self._guard.run, args=(self._run,), name="holders", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_seconds: float = 0.5) -> None:
        """Stop the thread; if it waits for a kubelet, it ends at its own time limit."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            self._thread = None

    def configure(self, settings: HolderSettings) -> None:
        """Use these settings from now on; answers of changed sources are dropped."""
        self._settings = settings
        self._wake.set()

    def stalled(self, now: float) -> tuple[str, ...]:
        """The thread's name, if it has died or is stuck because of a bug in flopwatch."""
        return ("holders",) if self._guard.stalled(now) else ()

    @property
    def version(self) -> int:
        """A number that increases whenever the snapshot would be exposed differently."""
        return self._version

    def snapshot(self) -> HoldersSnapshot:
        """The holders as last read."""
        return self._snapshot

    def poll(self) -> None:
        """Read the sources that are due. Called by the service's thread, or directly by tests."""
        if self._settings != self._built_for:
            self._built_for = self._settings
            self._sources = self._build(self._built_for)
        for source in self._sources:
            with self._guard.waiting():  # for the kubelet, for file systems
                source.poll(self._built_for.interval_seconds)
        pids = tuple(self._pids())
        with self._guard.waiting():
            processes = self._process_owners.find(pids)
        items = {source.name: source.items for source in self._sources}
        snapshot = HoldersSnapshot(
            allocations=items.get(POD_RESOURCES, ()),
            jobs=merged(items.get(JOB_MAPPING, ()), items.get(JOB_PROCESSES, ())),
            sources={s.name: s.state for s in self._sources if s.state is not None},
            processes=processes,
            host_processes=self._host_processes,
        )
        if snapshot != self._snapshot:
            self._snapshot = snapshot
            self._version += 1

    def _pids(self) -> Iterator[int]:
        """Processes whose owners are needed: those on devices with several holders or none."""
        for device in self._state().devices:
            listed = () if device.slow is None else device.slow.processes or ()
            sampled = () if device.fast is None else device.fast.process_sm_seconds or ()
            pids = dict.fromkeys([*(process.pid for process in listed), *sampled])
            if len(pids) > 1 or self._settings.by_process:
                yield from pids

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.poll()
            except Exception as error:
                log.exception("holders_failed", error=repr(error))
            with self._guard.waiting():
                self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()

    def _build(self, settings: HolderSettings) -> tuple[HolderSource, ...]:
        source = partial(HolderSource, clock=self._clock, wall_clock=self._wall_clock)
        sources: list[HolderSource] = []
        if settings.pod_resources != "off":
            quiet = frozenset({"absent"}) if settings.pod_resources == "auto" else frozenset()
            sources.append(
                source(
                    POD_RESOURCES,
                    lambda: list_allocations(settings.socket, settings.timeout_seconds),
                    lambda: (_identity_of(settings.socket), device_processes(self._state())),
                    quiet=quiet,
                )
            )
        if settings.job_mapping_dir is not None:
            files = JobFiles(settings.job_mapping_dir)
            sources.append(source(JOB_MAPPING, files.read, files.mark, quiet=frozenset({"absent"})))
        if settings.job_processes:
            sources.append(
                source(
                    JOB_PROCESSES,
                    lambda: slurm_jobs(device_processes(self._state())),
                    lambda: device_processes(self._state()),
                )
            )
        return tuple(sources)


def _identity_of(socket: Path) -> object:
    """Changes when the kubelet restarts; None without a socket."""
    try:
        status = socket.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns
