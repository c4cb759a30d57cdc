# ruff: noqa: D102 - what a method does is documented where it is declared
"""The daemon's side of the worker process: start, requests, deadlines, kill, reaping.

Every wait has a deadline. Whatever the worker does (dies, hangs, writes garbage), every call
returns a report in bounded time and leaves neither a stuck thread nor a zombie. Not thread-safe:
one thread at a time per worker. Start it from a thread that lives as long as the worker should: the
kernel kills the worker when the thread that spawned it ends.
"""

import contextlib
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from flopwatch.processor import read_processor
from probes.config import ProbeConfig
from probes.environment import worker_environment
from probes.judgement import SHAPE_LENGTH_MAX
from probes.kernels import all_kernels
from probes.protocol import (
    PROTOCOL_VERSION,
    Busy,
    Describe,
    Described,
    Device,
    Exit,
    Failure,
    FrameReader,
    FromWorker,
    Hello,
    Idle,
    Open,
    Outcome,
    ProtocolError,
    Result,
    Run,
    ToWorker,
    decode_from_worker,
    encode,
)


# Standard error kept for the log: enough for one line.
STDERR_BYTES_MAX: Final = 4096
READ_BYTES: Final = 65536
# Longest text from the worker that is kept with a baseline.
TEXT_LENGTH_MAX: Final = 500
# On the host processor a worker yields to every other program, so a chunk may take this long. Its
# processor time is bounded as on a GPU.
CPU_CHUNK_SECONDS_MAX: Final = 10.0
# A worker that is asked to exit only has to close its context.
EXIT_GRACE_SECONDS: Final = 2.0

log = structlog.get_logger(__name__)


class WorkerFailedError(Exception):
    """The worker could not start or answer; it is dead when this is raised."""

    def __init__(self, outcome: str, text: str, device_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.text = text
        self.device_seconds = device_seconds
        """Device time it took before it failed, as far as is known."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """The end of a run: a result, or an outcome with a text."""

    result: Result | None
    device_seconds: float
    failure: Outcome | None = None
    short_of_allowance: bool = False
    """The allowance was too small for a single measurement; not a failure."""
    text: str = ""


class Worker(Protocol):
    """The worker interface that the scheduler needs; tests use a fake."""

    @property
    def alive(self) -> bool:
        """Whether it can accept a request."""

    @property
    def pid(self) -> int | None:
        """Its process id, while it is alive."""

    @property
    def age_seconds(self) -> float | None:
        """Seconds since its start, while it is alive."""

    def start(self) -> Hello:
        """Start it; raises WorkerFailedError."""

    def describe(self, device: int) -> Described:
        """Open a device; raises WorkerFailedError."""

    def run(self, request: Run) -> RunReport:
        """Run one kernel; never raises."""

    def close(self) -> None:
        """Ask it to exit, kill it if it does not exit, and reap it."""

    def interrupt(self) -> None:
        """Kill it from another thread; a call waiting for it returns at once."""


class WorkerProcess:
    """A worker in its own session, connected by two pipes."""

    def __init__(
        self,
        devices: tuple[Device, ...],
        visible: Sequence[str],
        config: ProbeConfig,
        *,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._devices = devices
        self._config = config
        self._on_cpu = all(device.kind == "cpu" for device in devices)
        # With a GPU, host threads only launch work.
        processor = read_processor() if self._on_cpu else None
        self._threads = 1 if processor is None else config.cpu_threads or processor.threads
        cores = () if processor is None else processor.cores
        self._cores = cores if len(cores) == self._threads else ()
        self._command = tuple(command or (sys.executable, "-P", "-m", "probes.worker"))
        self._environment = dict(
            environment
            if environment is not None
            else worker_environment(visible, self._threads, self._cores)
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._to_worker = self._from_worker = self._stderr = -1
        self._reader = FrameReader()
        self._last_words = bytearray()
        self._started = 0.0
        self._processor_mark = 0.0

    @property
    def alive(self) -> bool:
        process = self._process
        if process is None:
            return False
        if process.poll() is None:
            return True
        # It ended while idle: no kernel failed.
        log.info("probe_worker_gone", pid=process.pid, status=_status(process.returncode))
        self._kill()
        return False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def age_seconds(self) -> float | None:
        return None if self._process is None else time.monotonic() - self._started

    def start(self) -> Hello:
        self.close()
        self._spawn()
        request = Open(
            protocol=PROTOCOL_VERSION,
            devices=self._devices,
            cpu_threads=self._threads,
            cores=self._cores,
            memory_limit_bytes=self._config.memory_limit_bytes,
        )
        answer, _ = self._ask(request, self._config.start_deadline_seconds)
        if not isinstance(answer, Hello):
            raise self._unexpected(answer, 0.0)
        if answer.protocol != PROTOCOL_VERSION:
            raise self._fail("error", f"the worker speaks protocol {answer.protocol}")
        return answer

    def describe(self, device: int) -> Described:
        # Opening a device runs one tiny kernel of each kind, which together get one chunk's time.
        # Before that the driver may wake the GPU and a gigabyte of libraries is read: that is part
        # of the start.
        answer, spent = self._ask(
            Describe(device=device), self._config.start_deadline_seconds, allowance=0.0
        )
        if not isinstance(answer, Described) or answer.device != device:
            raise self._unexpected(answer, spent)
        if not _sane_description(answer):
            raise self._fail("error", "the worker's description is invalid", spent)
        return answer

    def run(self, request: Run) -> RunReport:
        try:
            answer, spent = self._ask(
                request, self._config.request_deadline_seconds, request.allowance_seconds
            )
            if isinstance(answer, Failure):
                return self._failed_run(answer, spent)
            if not isinstance(answer, Result) or answer.identifier != request.identifier:
                raise self._unexpected(answer, spent)
            if not _sane(answer):
                raise self._fail("error", "the worker's result is invalid", spent)
        except WorkerFailedError as error:
            return RunReport(None, error.device_seconds, outcome_of(error.outcome), text=error.text)
        return RunReport(answer, spent)

    def close(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError, ProtocolError):
            os.write(self._to_worker, encode(Exit()))
        with contextlib.suppress(OSError):
            os.close(self._to_worker)
        self._to_worker = -1
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_GRACE_SECONDS)
        self._kill()

    def interrupt(self) -> None:
        process = self._process
        if process is not None:
            # Popen's own lock prevents hitting a process id that was reaped and reused.
            with contextlib.suppress(OSError):
                process.kill()

    def _spawn(self) -> None:
        child_in = child_out = child_err = -1
        self._reader, self._last_words = FrameReader(), bytearray()
        self._started = time.monotonic()
        try:
            child_in, self._to_worker = os.pipe()
            self._from_worker, child_out = os.pipe()
            self._stderr, child_err = os.pipe()
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*self._command, str(child_in), str(child_out)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=child_err,
                pass_fds=(child_in, child_out),
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            self._close_pipes()
            raise WorkerFailedError("error", f"the worker cannot be started: {error}") from error
        finally:
            for descriptor in (child_in, child_out, child_err):
                if descriptor >= 0:
                    os.close(descriptor)
        for descriptor in (self._to_worker, self._from_worker, self._stderr):
            os.set_blocking(descriptor, False)

    def _ask(
        self, request: ToWorker, deadline_seconds: float, allowance: float = math.inf
    ) -> tuple[FromWorker, float]:
        """Send `request`; return the first answer except `Busy` and `Idle`, and device time."""
        if self._process is None:
            raise WorkerFailedError("error", "the worker is not running")
        try:
            # A frame is far below a pipe's capacity (64 KiB) and the pipe is empty between requests.
            os.write(self._to_worker, encode(request))
        except OSError:
            raise self._died(0.0) from None
        deadline = time.monotonic() + deadline_seconds
        chunk_limit = self._config.chunk_deadline_seconds
        patience = CPU_CHUNK_SECONDS_MAX if self._on_cpu else chunk_limit
        spent, busy_since = 0.0, None
        while True:
            until = deadline if busy_since is None else min(deadline, busy_since + patience)
            message = self._receive(until, spent, busy_since)
            if isinstance(message, Busy):
                busy_since, self._processor_mark = time.monotonic(), self._processor_seconds()
            elif isinstance(message, Idle):
                if not (math.isfinite(message.device_seconds) and message.device_seconds >= 0):
                    raise self._fail("error", "the worker reports impossible times", spent)
                spent, busy_since = spent + message.device_seconds, None
                if spent > allowance + chunk_limit:
                    raise self._fail("error", "the worker overdraws its allowance", spent)
            else:
                return message, spent

    def _receive(self, until: float, spent: float, busy_since: float | None) -> FromWorker:
        """The next message; raises WorkerFailedError at `until` or if the worker is gone."""

        def charge() -> float:
            return spent + self._chunk_seconds(busy_since)

        # Not epoll: it needs a file descriptor, and there may be none left.
        with selectors.PollSelector() as selector:
            selector.register(self._from_worker, selectors.EVENT_READ)
            selector.register(self._stderr, selectors.EVENT_READ)
            while True:
                try:
                    body = self._reader.next_body()
                    if body is not None:
                        return decode_from_worker(body)
                except ProtocolError as error:
                    raise self._fail("error", str(error), charge()) from error
                remaining = until - time.monotonic()
                if remaining <= 0 or self._spins(busy_since):
                    what = "no answer in time" if busy_since is None else "a kernel hangs"
                    raise self._fail("timeout", what, charge())
                if self._on_cpu:
                    remaining = min(remaining, self._config.chunk_deadline_seconds)
                for key, _ in selector.select(remaining):
                    data = os.read(key.fd, READ_BYTES)
                    if key.fd == self._stderr:
                        self._last_words = (self._last_words + data)[-STDERR_BYTES_MAX:]
                        if not data:
                            selector.unregister(key.fd)
                    elif data:
                        self._reader.feed(data)
                    else:
                        raise self._died(charge())

    def _chunk_seconds(self, busy_since: float | None) -> float:
        """Device time of the chunk still running; on a processor, the processor time used."""
        if busy_since is None:
            return 0.0
        if not self._on_cpu:
            return time.monotonic() - busy_since
        return max(0.0, self._processor_seconds() - self._processor_mark) / self._threads

    def _spins(self, busy_since: float | None) -> bool:
        """Whether a chunk on the processor has used more processor time than allowed."""
        return self._on_cpu and (
            self._chunk_seconds(busy_since) > self._config.chunk_deadline_seconds
        )

    def _processor_seconds(self) -> float:
        """The worker's processor time so far; 0 if it is gone, or for a GPU's worker."""
        if not self._on_cpu or self._process is None:
            return 0.0
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text(errors="replace")
            # utime and stime, fields 14 and 15; the text after the name starts with field 3.
            user, system = stat.rsplit(")", 1)[1].split()[11:13]
        except (OSError, ValueError, IndexError):
            return self._processor_mark
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _failed_run(self, answer: Failure, spent: float) -> RunReport:
        if answer.fatal:
            self._kill()
        if answer.outcome == "allowance":
            return RunReport(None, spent, short_of_allowance=True, text=answer.text)
        return RunReport(None, spent, outcome_of(answer.outcome), text=answer.text)

    def _unexpected(self, answer: FromWorker, spent: float) -> WorkerFailedError:
        if isinstance(answer, Failure):
            return self._fail(answer.outcome, answer.text, spent)
        return self._fail("error", f"unexpected answer {type(answer).__name__}", spent)

    def _fail(self, outcome: str, text: str, spent: float = 0.0) -> WorkerFailedError:
        self._kill()
        return WorkerFailedError(outcome, text, spent)

    def _died(self, spent: float) -> WorkerFailedError:
        """The error for a worker that ended by itself."""
        process = self._process
        code: int | None = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(EXIT_GRACE_SECONDS)
            self._drain_stderr()
        words = self._last_words.decode(errors="replace").strip().splitlines()
        text = f"the worker died ({_status(code)})" + (f": {words[-1][:300]}" if words else "")
        return self._fail("error", text, spent)

    def _drain_stderr(self) -> None:
        with contextlib.suppress(OSError):
            data = os.read(self._stderr, READ_BYTES)
            self._last_words = (self._last_words + data)[-STDERR_BYTES_MAX:]

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            # The whole session: no child of the worker outlives it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # SIGKILL cannot be refused, but a process stuck in the driver dies only when the call
            # returns; then Popen's own reaper collects it later.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(EXIT_GRACE_SECONDS)
        self._close_pipes()

    def _close_pipes(self) -> None:
        for descriptor in (self._to_worker, self._from_worker, self._stderr):
            if descriptor >= 0:
                os.close(descriptor)
        self._to_worker = self._from_worker = self._stderr = -1


def _sane_description(described: Described) -> bool:
    """Whether a description has only known kernels (each becomes a series) and usable numbers."""
    known = {kernel.info for kernel in all_kernels().values()}
    return (
        known.issuperset(described.kernels)
        and len(described.versions) <= TEXT_LENGTH_MAX
        and described.units > 0
        and described.memory_bytes >= 0
        and math.isfinite(described.device_seconds)
        and described.device_seconds >= 0
    )


def _sane(result: Result) -> bool:
    """Whether a result has numbers that are valid for arithmetic."""
    spans = result.run_seconds
    return (
        bool(result.shape)
        and len(result.digest) <= TEXT_LENGTH_MAX
        and len(result.shape) <= SHAPE_LENGTH_MAX
        and all(size > 0 for size in result.shape)
        and result.memory_bytes >= 0
        and bool(spans)
        and len(result.preempted) in (0, len(spans))
        and all(math.isfinite(span) and span > 0 for span in spans)
        and math.isfinite(result.work_per_run)
        and result.work_per_run > 0
        and (
            result.clock_hertz is None
            or (math.isfinite(result.clock_hertz) and result.clock_hertz > 0)
        )
    )


def outcome_of(word: str) -> Outcome:
    """The outcome under which a failure reported by the worker is counted."""
    if word == "out_of_memory":
        return "out_of_memory"
    return "timeout" if word == "timeout" else "error"


def _status(code: int | None) -> str:
    if code is None:
        return "still ending"
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit status {code}"
