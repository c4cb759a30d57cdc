"""The probe service of the daemon: one thread that runs a cycle every interval."""

import socket
import threading
from pathlib import Path
from typing import Final

import structlog

from flopwatch.state_file import StateFile
from flopwatch.threads import BoundedThread, ThreadGuard
from probes.config import ProbeConfig
from probes.environment import torch_is_installed
from probes.records import ProbesSnapshot
from probes.schedule import Clock, SystemClock, first_delay, host_fraction, next_delay
from probes.scheduler import FactsSource, Scheduler
from probes.worker_pool import WorkerFactory, real_worker


# How often to check that the workers are still alive.
WATCH_SECONDS: Final = 3.0

log = structlog.get_logger(__name__)


class ProbeService:
    """Probes every device listed by `facts` while started, enabled and not paused.

    All methods may be called from any thread. Without torch, or if not enabled, it has no thread
    and no process, and `snapshot` shows that.
    """

    def __init__(
        self,
        config: ProbeConfig,
        facts: FactsSource,
        *,
        state_path: Path,
        clock: Clock | None = None,
        worker_factory: WorkerFactory = real_worker,
        hostname: str | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._scheduler = Scheduler(
            config, facts, StateFile(state_path), self._clock, worker_factory
        )
        self._fraction = host_fraction(hostname or socket.gethostname())
        self._thread: BoundedThread | None = None
        self._guard = ThreadGuard()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start probing; does nothing if not enabled or already started."""
        with self._lock:
            if not self._scheduler.config.enabled or self._thread is not None:
                return
            if not torch_is_installed():
                self._scheduler.note_torch_missing()
                return
            self._scheduler.stopping.clear()
            self._guard = ThreadGuard()
            thread = BoundedThread(target=self._guard.run, args=(self._loop,), name="probes")
            thread.start()
            self._thread = thread

    def stop(self, deadline_seconds: float = 10.0) -> None:
        """Stop probing and end the workers; returns after `deadline_seconds` at the latest."""
        with self._lock:
            thread = self._thread
            self._scheduler.interrupt()
            if thread is None:
                return
            thread.join(deadline_seconds)
            if thread.is_alive():
                # Only a driver call of `facts` can hang that long; the thread ends when it returns.
                log.warning("probes_not_stopped", after_seconds=deadline_seconds)
                return
            self._thread = None

    def pause(self) -> None:
        """Pause the probes; a running kernel finishes first. Workers stay as they are."""
        self._scheduler.paused_by_operator = True
        log.info("probes_paused")

    def resume(self) -> None:
        """Resume the probes, unless the pause file still pauses them."""
        self._scheduler.paused_by_operator = False
        log.info("probes_resumed")

    def configure(self, config: ProbeConfig) -> None:
        """Use another configuration from now on; results and baselines stay."""
        if config != self._scheduler.config:
            self.stop()
            self._scheduler.reconfigure(config)
        self.start()

    def stalled(self, now: float) -> tuple[str, ...]:
        """The thread's name, if it has died or is stuck because of a bug in flopwatch."""
        return ("probes",) if self._guard.stalled(now) else ()

    def snapshot(self) -> ProbesSnapshot:
        """The current results."""
        return self._scheduler.snapshot(running=self._thread is not None)

    def _loop(self) -> None:
        scheduler, clock = self._scheduler, self._clock
        delay = first_delay(scheduler.config.interval_seconds, self._fraction)
        while not self._wait(delay):
            try:
                with self._guard.waiting():  # for workers and drivers, which have deadlines
                    scheduler.cycle()
            except Exception:  # the daemon continues, whatever is wrong with the probes
                log.exception("probe_cycle_failed")
            delay = next_delay(clock.time(), scheduler.config.interval_seconds, self._fraction)
        scheduler.close()

    def _wait(self, seconds: float) -> bool:
        """Wait for the next cycle and check on the workers meanwhile. Returns True to stop."""
        clock, scheduler = self._clock, self._scheduler
        until = clock.monotonic() + seconds
        while True:
            left = until - clock.monotonic()
            with self._guard.waiting():
                stopping = clock.wait(scheduler.stopping, min(left, WATCH_SECONDS))
            if stopping:
                return True
            if left <= WATCH_SECONDS:
                return False
            try:
                with self._guard.waiting():
                    scheduler.revive()
            except Exception:  # as above
                log.exception("probe_worker_watch_failed")
