"""The service that gives advice: looks at the State now and then, away from the sampling threads.

A window is made of the looks of the last minutes; from it come predictions, and the back-test of
earlier ones. The track record and the best hit rates outlive a restart in the state file.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from exporter.advice import backtest
from exporter.advice.advise import AdviceSnapshot, advise
from exporter.advice.backtest import HitHistory, Record, Watch
from exporter.advice.document import document_of
from exporter.advice.observe import LEAST_TOKENS, Key, Look, look_at, windows
from exporter.advice.window import Price, WorkloadWindow
from exporter.attribution.settings import PriceRule
from exporter.inference.served import Served
from exporter.precision import matches
from exporter.state import State
from flopwatch.state_file import StateFile
from flopwatch.threads import ThreadGuard


LOOK_SECONDS: Final = 15.0
WINDOW_SECONDS: Final = 300.0
# Two minutes are enough for advice; a back-test waits for whole windows.
LEAST_WINDOW_SECONDS: Final = 120.0
ADVISE_SECONDS: Final = 60.0
_DAY_SECONDS: Final = 86400.0
_SECTION: Final = "levers"
_HISTORIES_MAX: Final = 64
# Hit rates are saved this often at most; records at once.
_SAVE_SECONDS: Final = 900.0

log = structlog.get_logger(__name__)


class LeversState(msgspec.Struct, frozen=True):
    """The section `levers` of the state file: back-tests, and the best hit rate of each day."""

    records: dict[str, dict[str, Record]] = {}
    hits: tuple[tuple[str, str, tuple[tuple[int, float], ...]], ...] = ()
    """Workload, model, and pairs of day and rate."""


class Advisor:
    """Owns one thread. `snapshot` and `document` may be called from any thread."""

    def __init__(
        self,
        state: Callable[[], State],
        served: Callable[[State], Sequence[Served]],
        *,
        prices: Sequence[PriceRule] = (),
        state_path: Path,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._served = served
        self._prices = tuple(prices)
        self._file = StateFile(state_path)
        self._wall_clock = wall_clock
        self._looks: deque[Look] = deque()
        self._advised_seconds: float | None = None
        self._saved_seconds: float | None = None
        self._watches: dict[Key, Watch] = {}
        self._records: dict[str, dict[str, Record]] = {}
        self._hits: dict[Key, HitHistory] = {}
        self._snapshot = AdviceSnapshot()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._guard = ThreadGuard()
        self._failed = False

    def start(self) -> None:
        """Begin to look."""
        self._load()
        self._thread = threading.Thread(
            target=self._guard.run, args=(self._run,), name="advisor", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """End; a look under way ends by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def stalled(self, now: float) -> tuple[str, ...]:
        """The thread's name, if it has ended or stands still by a fault of ours."""
        return ("advisor",) if self._guard.stalled(now) else ()

    def configure(self, prices: Sequence[PriceRule]) -> None:
        """Go on with other prices."""
        self._prices = tuple(prices)

    def snapshot(self) -> AdviceSnapshot:
        """What is advised now."""
        return self._snapshot

    def document(self) -> bytes:
        """The same as JSON."""
        return msgspec.json.encode(document_of(self._snapshot))

    def look(self) -> None:
        """Take one look; advise and back-test when it is time."""
        state = self._state()
        self._looks.append(look_at(state, self._served(state)))
        now = state.at_seconds
        while self._looks and now - self._looks[0].at_seconds > WINDOW_SECONDS + LOOK_SECONDS / 2:
            self._looks.popleft()
        if now - self._looks[0].at_seconds < LEAST_WINDOW_SECONDS:
            self._snapshot = AdviceSnapshot(records=self._records)
            return
        if self._advised_seconds is not None and now - self._advised_seconds < ADVISE_SECONDS:
            return
        self._advised_seconds = now
        self._advise(state, now)

    def _advise(self, state: State, now: float) -> None:
        best = {key: history.best for key, history in self._hits.items()}
        found = windows(
            tuple(self._looks),
            best_hits={key: value for key, value in best.items() if value is not None},
            prices=self._prices_of(state),
        )
        self._remember_hits(found, now)
        whole = [each for each in found if each.seconds >= WINDOW_SECONDS - LOOK_SECONDS]
        for window in whole:
            self._back_test(window, now)
        present = {(window.workload, window.model) for window in found}
        self._watches = {key: watch for key, watch in self._watches.items() if key in present}
        self._snapshot = AdviceSnapshot(tuple(advise(each) for each in found), self._records)

    def _back_test(self, window: WorkloadWindow, now: float) -> None:
        key = (window.workload, window.model)
        watch, comparison = backtest.observe(self._watches.get(key, Watch()), window, now)
        self._watches[key] = watch
        if comparison is None:
            return
        log.info(
            "prediction_compared",
            workload=comparison.workload,
            lever=comparison.lever,
            outcome=comparison.outcome,
            error=round(comparison.error, 3),
        )
        self._records = backtest.record(self._records, comparison)
        self._save()

    def _remember_hits(self, found: Sequence[WorkloadWindow], now: float) -> None:
        day = int(self._wall_clock() // _DAY_SECONDS)
        for window in found:
            hits = window.cache_hit_ratio
            if hits is not None and (window.prefill_tokens or 0.0) >= LEAST_TOKENS:
                key = (window.workload, window.model)
                self._hits[key] = self._hits.pop(key, HitHistory()).entered(hits, day)
        while len(self._hits) > _HISTORIES_MAX:
            del self._hits[next(iter(self._hits))]
        if self._hits and (
            self._saved_seconds is None or now - self._saved_seconds >= _SAVE_SECONDS
        ):
            self._saved_seconds = now
            self._save()

    def _prices_of(self, state: State) -> dict[str, Price]:
        prices = {}
        for device in state.devices:
            rule = next((rule for rule in self._prices if matches(rule, device.identity)), None)
            if rule is not None and device.identity.mig is None:
                prices[device.identity.uuid] = Price(rule.per_gpu_hour, rule.currency)
        return prices

    def _load(self) -> None:
        section = self._file.read(_SECTION, LeversState) or LeversState()
        self._records = section.records
        for workload, model, days in section.hits:
            self._hits[workload, model] = HitHistory(dict(days))
        self._snapshot = AdviceSnapshot(records=self._records)

    def _save(self) -> None:
        hits = tuple((*key, tuple(each.by_day.items())) for key, each in self._hits.items())
        with self._guard.waiting():  # for the file system
            self._file.save(_SECTION, LeversState(self._records, hits))

    def _wait(self) -> bool:
        """Wait for the next look; whether to end."""
        with self._guard.waiting():
            return self._stop.wait(LOOK_SECONDS)

    def _run(self) -> None:
        while not self._wait():
            try:
                self.look()
                self._failed = False
            except Exception:  # the top of the thread: advice must never take the daemon with it
                if not self._failed:
                    log.exception("advice_failed")
                self._failed = True
                self._looks.clear()
                self._snapshot = AdviceSnapshot(records=self._records)
