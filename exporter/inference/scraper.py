"""Scrapes one engine in its own thread: a slow, dead or faulty engine affects nothing else."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import structlog

from exporter.http_client import Reason, ScrapeError, fetch, without_credentials
from exporter.inference.counters import CounterTracker
from exporter.inference.engines.registry import PREFIXES
from exporter.inference.exposition import parse
from exporter.inference.reading import Engine, EngineReading, by_model
from exporter.inference.reading import Samples as ModelSamples
from flopwatch.threads import BoundedThread, ThreadGuard


EPOCH = "process_start_time_seconds"
# A dead engine is scraped less often, but often enough to notice its return: a refused connection
# costs almost nothing.
LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_BACKOFF_INTERVALS = 4.0
# A scrape ends within its timeout; after this many timeouts it is taken as hung in a system call.
HUNG_TIMEOUTS = 3.0

Fetch = Callable[[str, float], str]
OnReading = Callable[[EngineReading], None]
log = structlog.get_logger(__name__)


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
            replace(self.engine.read(ModelSamples(own)), model=model)
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
                "workload_scrape_recovered",
                workload=self.name,
                url=without_credentials(self._url),
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
