"""Scrapes one engine in its own thread: a slow, dead or faulty engine affects nothing else.

Counters become increases since the last scrape, across restarts, without double counting.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import structlog

from exporter.errors import Reason, ScrapeError
from exporter.http_client import fetch, without_credentials
from exporter.inference.engines import PREFIXES
from exporter.inference.reading import Engine, EngineReading, Sample, Samples, by_model, parse
from flopwatch.threads import BoundedThread, ThreadGuard


EPOCH = "process_start_time_seconds"
# A dead engine is scraped less often, but often enough to notice its return: a refused connection
# costs almost nothing.
LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_BACKOFF_INTERVALS = 4.0
# A scrape ends within its timeout; after this many timeouts it is taken as hung in a system call.
HUNG_TIMEOUTS = 3.0
# Series remembered per engine. An engine has about a hundred. Beyond the limit, the series seen
# longest ago are forgotten.
LARGEST_SERIES_COUNT = 10_000
# Processes remembered behind one address: the replicas behind a load balancer.
LARGEST_PROCESS_COUNT = 32
# Two processes whose start times are closer than this are not distinguished.
CLOCK_TOLERANCE_SECONDS = 1.0
# A process without a start time whose counters fell is taken as a new one after it answered this
# many scrapes in a row; until then it may be another replica behind the same address.
CONFIRMING_SCRAPES = 8

Key = tuple[str, tuple[tuple[str, str], ...]]
Fetch = Callable[[str, float], str]
OnReading = Callable[[EngineReading], None]
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Process:
    """The counters of one process. `pending` holds its counters when it was first seen."""

    last: dict[Key, float] = field(default_factory=dict)
    pending: dict[Key, float] = field(default_factory=dict)
    scrapes: int = 0
    seen_in_a_row: int = 0


class CounterTracker:
    """Follows every counter series of one engine. Not thread-safe: one scraper owns it.

    Counts from before the engine was first seen are not included. A series that appears later began
    at zero, because engines create them on first use; a series that comes back continues from its
    last value.

    `epoch` is the start time of the process that answered. A process that began after the previous
    scrape is a restart: all that it counted is new. One that began earlier was already running
    behind a load balancer: its past counts are not included either, and each process is tracked
    separately. If an engine reports no start time, a different process is assumed only if most
    counters have fallen, and either a scrape failed in between (a restart) or the process has
    answered for a while.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._processes: dict[float | int, _Process] = {}
        self._current: float | int | None = None
        self._complete = False
        self._unnamed = 0
        # Restarts and other changes of the answering process: the requests in flight are different
        # ones.
        self.restarts = 0
        self.switches = 0

    def update(
        self,
        samples: Iterable[Sample],
        epoch: float | None = None,
        *,
        complete: bool = True,
        previous_scrape: float | None = None,
        failed_between: bool = False,
    ) -> tuple[Sample, ...]:
        """Return `samples` with each counter replaced by its increase since the last call.

        `complete` False means that lines were lost: a series that appears after such a scrape may
        be an old one, so its history is not counted as new. `previous_scrape` is the wall-clock
        time of the previous successful scrape, `failed_between` whether one failed since.
        """
        found = [(s, _key(s) if s.name in self._names else None) for s in samples]
        values = {key: max(0.0, sample.raw) for sample, key in found if key is not None}
        process, counts_from_zero = self._process(values, epoch, previous_scrape, failed_between)
        confirmed = self._confirm(process)
        increases = tuple(
            sample
            if key is None
            else sample._replace(
                value=self._increase(process, key, values[key], epoch, counts_from_zero)
                + confirmed.pop(key, 0.0)
            )
            for sample, key in found
        )
        for key in values:
            process.last[key] = process.last.pop(key)  # most recently seen at the end
        while len(process.last) > LARGEST_SERIES_COUNT:
            del process.last[next(iter(process.last))]
        while len(self._processes) > LARGEST_PROCESS_COUNT:
            del self._processes[next(iter(self._processes))]
        self._complete = complete
        return increases

    def _process(
        self,
        values: dict[Key, float],
        epoch: float | None,
        previous_scrape: float | None,
        failed_between: bool,
    ) -> tuple[_Process, bool]:
        """Return the answering process, and whether it is a new one that counts from zero."""
        first = not self._processes
        name = float(epoch) if epoch is not None else self._unnamed_process(values)
        known = name in self._processes
        changed = self._current is not None and name != self._current
        if not known:
            self._processes[name] = _Process()
        elif changed:
            self._processes[name] = self._processes.pop(name)
        process = self._processes[name]
        fresh = False
        if not known and not first:
            if epoch is not None and not isinstance(self._current, int):
                fresh = previous_scrape is None or epoch > previous_scrape - CLOCK_TOLERANCE_SECONDS
            elif failed_between:
                fresh = True
            else:
                process.pending = dict(values)
        if changed:
            self.switches += 1
            process.seen_in_a_row = 0
        if fresh:
            self.restarts += 1
        process.scrapes += 1
        process.seen_in_a_row += 1
        self._current = name
        return process, fresh

    def _unnamed_process(self, values: dict[Key, float]) -> int:
        """The process without a start time whose counters these continue; else a new number.

        If several match, the one with the smallest increase.
        """
        candidates = {
            name: sum(values.get(key, value) - value for key, value in process.last.items())
            for name, process in self._processes.items()
            if isinstance(name, int) and not _fell(process.last, values)
        }
        if candidates:
            return min(candidates, key=lambda name: candidates[name])
        self._unnamed -= 1
        return self._unnamed

    def _confirm(self, process: _Process) -> dict[Key, float]:
        """The counters of a process when it was first seen, once it is certain to be a new one."""
        if not process.pending or process.seen_in_a_row < CONFIRMING_SCRAPES:
            return {}
        confirmed, process.pending = process.pending, {}
        self.restarts += 1
        return confirmed

    def _increase(
        self,
        process: _Process,
        key: Key,
        value: float,
        epoch: float | None,
        counts_from_zero: bool,
    ) -> float:
        before = process.last.get(key)
        process.last[key] = value
        if before is None:
            began_at_zero = process.scrapes > 1 and self._complete
            return value if counts_from_zero or began_at_zero else 0.0
        if value >= before:
            return value - before
        # The same process: a bug in the engine. Without a start time, only this series restarted.
        return 0.0 if epoch is not None else value


def _key(sample: Sample) -> Key:
    return (sample.name, tuple(sorted(sample.labels.items())))


def _fell(before: dict[Key, float], now: dict[Key, float]) -> bool:
    """Whether most nonzero counters have fallen, as for a different process."""
    counted = [(value, now[key]) for key, value in before.items() if value > 0 and key in now]
    return sum(after < value for value, after in counted) * 2 > len(counted)


def fetch_text(url: str, timeout_seconds: float) -> str:
    """Fetch an engine's exposition with the usual limits."""
    return fetch(url, timeout_seconds=timeout_seconds)


@dataclass(frozen=True, slots=True)
class ScrapeState:
    """The state of a scraper. Replaced as a whole, so that any thread may read it."""

    up: bool = False
    attempted: bool = False
    # Why the last scrape failed; None after a good one.
    reason: Reason | None = None
    errors: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    malformed_lines: int = 0
    last_success_timestamp_seconds: float | None = None
    # The start of the current scrape (monotonic); None between scrapes.
    under_way_since_seconds: float | None = None


class Scraper:
    """Owns the thread, the counters and the state of one endpoint."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        url: str,
        on_reading: OnReading,
        *,
        on_failure: Callable[[], None] = lambda: None,
        interval_seconds: float = 15.0,
        timeout_seconds: float = 5.0,
        fetch: Fetch = fetch_text,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.engine = engine
        self._url = url
        self._on_reading = on_reading
        self._on_failure = on_failure
        self._interval_seconds = min(interval_seconds, engine.longest_interval_seconds)
        self._timeout_seconds = timeout_seconds
        self._fetch = fetch
        self._clock = clock
        self._wall_clock = wall_clock
        # The latest wall-clock time at a scrape. After a step backwards, a process that has run for
        # a long time would seem to have started since the last scrape.
        self._newest_timestamp: float | None = None
        self._tracker = CounterTracker(engine.series)
        self._errors: Counter[str] = Counter()
        self._failures = 0
        self._scraped = False
        self._malformed = False
        self._state = ScrapeState()
        self._stop = threading.Event()
        self._thread: BoundedThread | None = None
        self.guard = ThreadGuard()

    def start(self) -> None:
        """Start scraping, now and at every interval. Raises RuntimeError if no thread can start."""
        thread = BoundedThread(target=self.guard.run, args=(self._run,), name=f"engine-{self.name}")
        thread.start()
        self._thread = thread

    def stop(self) -> None:
        """Tell the thread to stop; it ends after the current scrape, if any."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for the thread to end. A daemon thread, it never delays exit."""
        if self._thread is not None:
            self._thread.join(seconds)

    def state(self) -> ScrapeState:
        """Return the current state; a scrape that does not return shows as `hung`."""
        state = self._state
        since = state.under_way_since_seconds
        limit = self._timeout_seconds * HUNG_TIMEOUTS
        if since is None or self._clock() - since <= limit:
            return state
        errors = MappingProxyType({**state.errors, Reason.HUNG: 1 + state.errors.get("hung", 0)})
        return replace(state, up=False, reason=Reason.HUNG, errors=errors)

    def scrape(self) -> None:
        """Scrape once and publish the outcome. Never raises."""
        started = self._clock()
        self._state = replace(self._state, under_way_since_seconds=started)
        try:
            reading = self._read()
            with self.guard.waiting():  # for file systems that hold the model
                self._on_reading(reading)
        except ScrapeError as error:
            self._fail(error.reason, str(error))
        except Exception as error:  # noqa: BLE001 - another program's output must not end the thread
            self._fail(Reason.INTERNAL, f"{type(error).__name__}: {error}")
        else:
            self._succeed(reading)
        if self._clock() - started > self._timeout_seconds * HUNG_TIMEOUTS:
            # It was shown as hung meanwhile; the counter must not decrease again.
            self._errors[Reason.HUNG] += 1
            self._publish_errors()

    def delay_seconds(self) -> float:
        """Seconds until the next scrape: the interval, or up to four times that after failures."""
        longest = min(self._interval_seconds * LONGEST_BACKOFF_INTERVALS, LONGEST_BACKOFF_SECONDS)
        backoff = self._interval_seconds * 2.0 ** min(self._failures, 10)
        return max(self._interval_seconds, min(backoff, longest))

    def _run(self) -> None:
        while not self._stop.is_set():
            started = self._clock()
            self.scrape()
            spent = self._clock() - started
            with self.guard.waiting():
                self._stop.wait(max(0.0, self.delay_seconds() - spent))

    def _read(self) -> EngineReading:
        with self.guard.waiting():
            text = self._fetch(self._url, self._timeout_seconds)
        seconds, timestamp = self._clock(), self._wall_clock()
        exposition = parse(text, {*self.engine.names, EPOCH}, PREFIXES, self.engine.rename)
        if not self.engine.matches(exposition.prefixes) and not (
            self.engine.silent_at_start and not text.strip()
        ):
            others = ", ".join(sorted(exposition.prefixes)) or "no engine's"
            raise ScrapeError(Reason.WRONG_ENGINE, f"metrics found: {others}")
        epochs = [sample.raw for sample in exposition.samples if sample.name == EPOCH]
        before = self._state
        samples = self._tracker.update(
            self.engine.deduplicate(
                sample for sample in exposition.samples if sample.name != EPOCH
            ),
            epochs[0] if epochs else None,
            complete=not exposition.malformed_lines,
            previous_scrape=self._newest_timestamp,
            failed_between=before.reason is not None,
        )
        self._newest_timestamp = max(timestamp, self._newest_timestamp or timestamp)
        models = tuple(
            replace(self.engine.read(Samples(own)), model=model)
            for model, own in by_model(samples).items()
        )
        first, self._scraped = not self._scraped, True
        return EngineReading(
            self.engine.name,
            seconds,
            timestamp,
            models,
            exposition.malformed_lines,
            first,
            self._tracker.restarts,
            self._tracker.switches,
            multiprocess=not epochs,
        )

    def _succeed(self, reading: EngineReading) -> None:
        before = self._state
        self._failures = 0
        if before.attempted and not before.up:
            log.info(
                "workload_scrape_recovered", workload=self.name, url=without_credentials(self._url)
            )
        if reading.malformed_lines and not self._malformed:
            log.warning(
                "workload_malformed_lines", workload=self.name, lines=reading.malformed_lines
            )
        self._malformed = bool(reading.malformed_lines)
        self._state = ScrapeState(
            up=True,
            attempted=True,
            errors=before.errors,
            malformed_lines=before.malformed_lines + reading.malformed_lines,
            last_success_timestamp_seconds=reading.timestamp_seconds,
        )

    def _fail(self, reason: Reason, detail: str) -> None:
        before = self._state
        self._failures += 1
        self._errors[reason] += 1
        if before.reason is not reason:
            log.warning(
                "workload_scrape_failed",
                workload=self.name,
                url=without_credentials(self._url),
                reason=reason.value,
                detail=detail,
            )
        self._state = replace(
            before, up=False, attempted=True, reason=reason, under_way_since_seconds=None
        )
        self._publish_errors()
        self._on_failure()

    def _publish_errors(self) -> None:
        errors = MappingProxyType({str(reason): count for reason, count in self._errors.items()})
        self._state = replace(self._state, errors=errors)
