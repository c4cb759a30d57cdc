"""The daemon: assembles, starts, reloads and stops everything, and obeys signals and systemd."""

import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from exporter import VERSION
from exporter.advice.advise import ADVICE_PATH, AdviceSnapshot
from exporter.attribution.bill import HostLedger
from exporter.attribution.snapshot import Bill
from exporter.collect.host import Machine, boot_id
from exporter.config.load import ConfigOrigin, load_config
from exporter.config.model import Config, after_reload
from exporter.early_start import EarlyStart
from exporter.errors import EXIT_TRANSIENT, FlopwatchError
from exporter.metrics.catalogue import state_parts
from exporter.metrics.device import process_memory
from exporter.metrics.exporter import LOG_ROWS, OWN
from exporter.metrics.findings import CONFIGURATION_PROBLEMS, FINDINGS, HOST_FACTS
from exporter.metrics.holders import PRICES, holder_labels
from exporter.metrics.levers import LEVER_SAMPLES
from exporter.metrics.render import Exposition
from exporter.metrics.rows import Part
from exporter.procfs import process_name
from exporter.services import Services
from exporter.state import LiveState, Parts, ReloadStatus, State
from exporter.status.build import StatusSources
from exporter.status.history import Memory
from exporter.status.service import JSON, StatusService, security_headers
from exporter.web.connections import format_address
from exporter.web.http import Request, Response, Router
from exporter.web.routes import (
    CrossSiteGuard,
    add_health,
    add_lifecycle,
    metrics_handler,
)
from exporter.web.server import Server
from flopwatch.state_file import StateFile, usable_state_path


log = structlog.get_logger(__name__)

_Part = TypeVar("_Part")

# The first scrape should find the devices: connections wait this long for their first tick, and are
# answered anyway when the driver is slower.
_FIRST_TICK_SECONDS = 0.8
# SIGTERM ends the process within two seconds, split into these parts.
_SERVER_GRACE_SECONDS = 0.5
_SAMPLING_GRACE_SECONDS = 0.3
_SERVICES_GRACE_SECONDS = 0.3
# The main loop runs right after a tick, while what it reads is in the caches: at the earliest after the
# first of these times, and without a tick after the second.
_LOOP_SECONDS_MIN = 0.75
_LOOP_SECONDS_MAX = 1.25
# However many SIGHUPs come, the configuration is read once in this time.
_RELOAD_PAUSE_SECONDS = 1.0
_MICROSECONDS: Final = 1_000_000
_READ_BYTES: Final = 4096
_NO_SIGNAL: Final = b"\0"
_END_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
# A mismatch of library and kernel module is shown to one scrape, or for this long, before the
# process ends so that its supervisor starts one that loads the new library.
_MISMATCH_SECONDS = 60.0
# The driver works, but not for this process: its supervisor should start a new one.
EXIT_DRIVER = EXIT_TRANSIENT


class Daemon:
    """One run of `flopwatch serve`."""

    def __init__(
        self,
        config: Config,
        origin: ConfigOrigin,
        early: EarlyStart,
        *,
        log_lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        """`early` has begun to sample with this configuration."""
        self._log_lines_dropped = log_lines_dropped
        self._config = config
        self._origin = origin
        self._reload_lock = threading.Lock()
        self._reload_status = ReloadStatus(True, time.time())
        self._notifier = Notifier()
        self._failed_parts: set[str] = set()
        self._scraped_at = 0.0
        self._stalled_logged = False
        self._machine = Machine()
        self._missing: tuple[tuple[str, int | str], ...] = ()
        self._ledger = HostLedger(started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self._live = LiveState(self._parts, self._mark, complete=self._complete)
        self._process_memory = process_memory(process_name)
        self._exposition = Exposition(
            self._exposed,
            series_limit=lambda: self._config.series_limit,
            state=self._live.now,
            extra_labels=lambda state: holder_labels(state, self._config.holder_labels),
        )
        self._status = StatusService(
            StatusSources(
                state=self._live.now,
                configuration=lambda: self._config.values,
                interval_seconds=lambda: self._config.sampling.interval,
                # A pod's own name is of no use; the node's comes from the downward API.
                host_name=os.environ.get("NODE_NAME") or socket.gethostname(),
                telemetry_path=config.web.telemetry_path,
                facts=self._machine.facts,
                advice=self._advice,
                thresholds=lambda: self._config.thresholds,
            ),
            memory=Memory(StateFile(usable_state_path(config.state_file)), boot_id()),
        )
        # When the main loop last began to wait.
        self._waits_since = math.inf
        self._signals: SignalWaiter | None = None
        self._host = early.host
        self._listeners = early.listeners
        early.settings = lambda: self._config.sampling
        early.latest = lambda: self._live.latest
        early.on_device = self._status.observe
        early.on_tick = self._after_tick
        self._services = Services(config, now=self._live.now, latest=lambda: self._live.latest)
        self._server = Server(
            config.web.listen_address,
            self._router(),
            web_config=early.web_config,
        )

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code. Raises FlopwatchError at start."""
        self._signals = signals = SignalWaiter((*_END_SIGNALS, signal.SIGHUP))
        try:
            self._host.wait_for_devices(_FIRST_TICK_SECONDS)
            self._server.start(self._listeners)
            self._warn_of_missing_gpus()
            self._services.start()
            log.info(
                "serving",
                version=VERSION,
                addresses=[format_address(*address) for address in self._server.addresses],
                devices=len(self._live.now().devices),
            )
            return self._loop(signals)
        finally:
            self._stop()

    def reload(self) -> str:
        """Read configuration and web configuration again; returns the outcome as text.

        Raises FlopwatchError, and then nothing changes.
        """
        with self._reload_lock:
            try:
                config, waiting = after_reload(self._config, load_config(self._origin))
                self._server.reload_web_config()
            except FlopwatchError as error:
                self._reload_status = replace(self._reload_status, successful=False)
                log.error("configuration_refused", error=str(error))  # noqa: TRY400  no traceback for a user's mistake
                raise
            self._config = config
            self._services.configure(config)
            self._reload_status = ReloadStatus(True, time.time())
            if not waiting:
                log.info("configuration_reloaded")
                return "configuration reloaded"
            log.warning("configuration_reloaded", restart_needed_for=list(waiting))
            return f"configuration reloaded; restart to change {', '.join(waiting)}"

    def _after_tick(self) -> None:
        waited = time.monotonic() - self._waits_since
        if self._signals is not None and waited >= _LOOP_SECONDS_MIN:
            self._signals.wake()

    def _mark(self, now: float) -> object:
        """Changes whenever a part of the State has changed."""
        return self._host.mark(now), self._reload_status, self._config.sampling

    def _parts(self, now: float) -> Parts:
        """The published parts; a service that fails leaves only its own part empty."""
        services, nothing = self._services, Parts()
        return Parts(
            host=self._host.published(now),
            probes=self._part("probes", services.probes.snapshot, nothing.probes),
            holders=self._part("holders", services.holders.snapshot, nothing.holders),
            calibration=self._part("calibration", services.calibration.read, {}),
            reload=self._reload_status,
        )

    def _complete(self, state: State) -> State:
        """Add what depends on the devices, whose peaks divide MFU and MBU, and charge their work."""
        engines, nothing = self._services.workloads, Parts()
        by_process = self._config.holders.by_process
        served = replace(
            state,
            workloads=self._part("workloads", lambda: engines.snapshot(state), nothing.workloads),
            precisions=self._part("precisions", lambda: engines.precisions(state), {}),
        )
        # A bill that fails is empty, and affects nothing else.
        bill = self._part(
            "bill", lambda: self._ledger.charge(served, by_process=by_process), Bill()
        )
        return replace(served, bill=bill)

    def _advice(self) -> AdviceSnapshot:
        return self._services.advisor.snapshot()

    def _part(self, name: str, read: Callable[[], _Part], nothing: _Part) -> _Part:
        try:
            part = read()
        except Exception:
            if name not in self._failed_parts:
                log.exception("state_part_failed", part=name)
            self._failed_parts.add(name)
            return nothing
        self._failed_parts.discard(name)
        return part

    def _exposed(self, state: State) -> Iterator[Part]:
        """Everything that a scrape shows, in the order in which it counts towards the series limit."""
        yield OWN.of(state.reload)
        yield LOG_ROWS.of((), self._log_lines_dropped())
        yield HOST_FACTS.of((self._machine.facts(), time.time()))
        yield FINDINGS.of(self._status.findings())
        yield CONFIGURATION_PROBLEMS.of(
            [f"{place}: no GPU {index} on this host" for place, index in self._missing_gpus(state)]
        )
        yield from state_parts(state)
        yield PRICES.of((state, self._config.prices))
        yield LEVER_SAMPLES.of(self._advice())
        if self._config.process_memory:
            yield self._process_memory.of(state)

    def _router(self) -> Router:
        router = Router()
        serve_metrics = metrics_handler(self._exposition)

        def metrics(request: Request) -> Response:
            response = serve_metrics(request)
            self._scraped_at = time.monotonic()
            return response

        router.add(self._config.web.telemetry_path, "GET", metrics)
        self._status.add_routes(router)
        router.add(
            ADVICE_PATH,
            "GET",
            lambda _request: Response(
                200, self._services.advisor.document(), JSON, security_headers()
            ),
        )
        add_health(router, lambda: any(device.up for device in self._live.now().devices))
        add_lifecycle(
            router,
            CrossSiteGuard(lambda: self._server.authenticates, self._config.web.allowed_hosts),
            enabled=self._config.web.enable_lifecycle,
            reload=self.reload,
            pause_probes=self._services.probes.pause,
            resume_probes=self._services.probes.resume,
        )
        return router

    def _missing_gpus(self, state: State) -> Iterator[tuple[str, int | str]]:
        """Each GPU of the configuration that this host does not have, and where it stands.

        It may be a mistake, or a GPU that is not up yet: the others are watched anyway.
        """
        if state.pending or not (self._config.sampling.gpus or self._config.workloads):
            return  # the driver has not listed the GPUs yet, or nothing names one
        known = {device.identity.index for device in state.devices}
        known |= {device.identity.uuid for device in state.devices}
        yield from self._config.missing_gpus(known)

    def _warn_of_missing_gpus(self) -> None:
        """Log each once, including one that goes missing later."""
        state = self._live.now()
        known = ",".join(device.identity.index for device in state.devices)
        missing = tuple(self._missing_gpus(state))
        for place, index in missing:
            if (place, index) not in self._missing:
                log.warning("gpu_not_on_this_host", key=place, gpu=index, known=known)
        self._missing = missing

    def _loop(self, signals: "SignalWaiter") -> int:
        mismatched_at: float | None = None
        reload_wanted, reload_at = False, time.monotonic()
        self._notifier.ready()
        while True:
            self._waits_since = time.monotonic()
            came = signals.wait(_LOOP_SECONDS_MAX)
            self._feed_watchdog()
            self._status.tend()
            self._live.now()  # sampling reads the last one, even when there are no scrapes
            self._warn_of_missing_gpus()
            self._host.report_hangs(time.monotonic())
            if came & _END_SIGNALS:
                log.info("shutting_down", reason="signal")
                return 0
            reload_wanted |= signal.SIGHUP in came
            if reload_wanted and time.monotonic() >= reload_at:
                reload_wanted = False
                self._notifier.reloading()
                self._reload_by_signal()
                self._notifier.ready()
                reload_at = time.monotonic() + _RELOAD_PAUSE_SECONDS
            if self._host.barred:
                log.error(
                    "shutting_down",
                    reason="device_access_revoked",
                    remedy="a new process, or a new container, has access again",
                )
                return EXIT_DRIVER
            now = time.monotonic()
            if self._host.mismatched:
                if mismatched_at is None:
                    mismatched_at = now
                    log.error("driver_mismatch", remedy="restarting loads the new driver library")
                shown = self._scraped_at > mismatched_at + _LOOP_SECONDS_MAX
                if shown or now - mismatched_at > _MISMATCH_SECONDS:
                    log.error("shutting_down", reason="driver_mismatch")
                    return EXIT_DRIVER

    def _feed_watchdog(self) -> None:
        """Send the watchdog message, unless a thread has ended or is stuck through a bug of ours.

        A driver, a kubelet or an engine that hangs is no such bug: a new process would wait for it as well.
        """
        now = time.monotonic()
        stalled = [f"gpu-{key}" for key in self._host.stalled(now)]
        stalled += ["web-accept"] if self._server.stalled(now) else []
        stalled += self._services.stalled(now)
        if not stalled:
            self._notifier.watchdog()
        elif not self._stalled_logged:
            log.error("threads_stalled", threads=",".join(stalled))
        self._stalled_logged = bool(stalled)

    def _reload_by_signal(self) -> None:
        try:
            self.reload()
        except FlopwatchError:
            log.debug("reload_refused_by_signal")
        except Exception:  # no memory or no thread: it continues as it is
            self._reload_status = replace(self._reload_status, successful=False)
            log.exception("reload_failed")

    def _stop(self) -> None:
        self._notifier.stopping()
        self._server.close(_SERVER_GRACE_SECONDS)
        self._services.stop(_SERVICES_GRACE_SECONDS)
        self._host.stop(_SAMPLING_GRACE_SECONDS)


def end_process(code: int) -> None:
    """Exit at once: threads in driver calls that never return would keep the interpreter alive."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, at start or since
            stream.flush()
    os._exit(code)


class Notifier:
    """Reports the daemon's state to systemd: sd_notify(3). Safe to use from any thread.

    Outside of systemd there is no socket, and every call does nothing. A message that cannot be
    delivered is logged once and otherwise ignored: the service manager draws its own conclusions
    from silence.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("@", "/")):
            address = ""  # others, such as vsock for virtual machines, do not occur for a service
        # `@` begins a name in the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._failed = False

    def ready(self) -> None:
        """The daemon is serving; with `Type=notify` the start is complete. Also ends a reload."""
        self._send("READY=1")

    def reloading(self, monotonic_seconds: float | None = None) -> None:
        """A reload has begun; `ready` ends it. Needed by `Type=notify-reload`."""
        now = time.monotonic() if monotonic_seconds is None else monotonic_seconds
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(now * _MICROSECONDS)}")

    def stopping(self) -> None:
        """The daemon is stopping."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The daemon is alive; send it only when every loop has made progress."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A manager that does not read must not stop the daemon.
                sender.setblocking(False)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning("systemd_notification_failed", error=str(error))


class SignalWaiter:
    """Waits for some signals. Create it in the main thread, which alone may wait.

    The handlers do nothing: a thousand signals a second must not nest one handler in another. The
    interpreter writes each signal's number to a socket, and `wait` reads that.
    """

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        theirs.setblocking(False)
        # A full socket drops signals, but only while earlier ones are unread: `wake` cannot fill it.
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._theirs = theirs  # kept open
        self._is_woken = False
        for number in signals:
            signal.signal(number, lambda _number, _frame: None)

    def wait(self, seconds: float) -> frozenset[int]:
        """The signals received, each once; empty after `seconds`, or when woken, without one."""
        readable, _, _ = select.select([self._ours], [], [], seconds)
        if not readable:
            return frozenset()
        came: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                came.update(self._ours.recv(_READ_BYTES))
        # Not before it is read: a byte that is read must not leave this True.
        self._is_woken = False
        return frozenset(came - {*_NO_SIGNAL})

    def wake(self) -> None:
        """End a wait, or the next one. Thread-safe, never raises."""
        if self._is_woken:
            return
        self._is_woken = True
        try:
            self._theirs.send(_NO_SIGNAL)
        except OSError:  # full, or no memory: the wait ends by itself
            self._is_woken = False
