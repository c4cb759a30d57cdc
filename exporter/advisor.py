"""The advice service: observes the State periodically, outside the sampling threads.

A window is built from the observations of the last minutes; it is the basis of predictions, and of the
back-test of earlier ones. The track record, the best hit rates and a change that has not settled
yet survive a restart in the state file.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from exporter.advice import AdviceSettings
from exporter.advice.advise import (
    AdviceSnapshot,
    Record,
    Trial,
    Watch,
    advise,
    back_test,
    document_of,
    recorded,
)
from exporter.advice.observe import LEAST_TOKENS, Key, Observation, observation_of, windows
from exporter.advice.prediction import Price, WorkloadWindow
from exporter.attribution.settings import PriceRule
from exporter.collect.settings import matches
from exporter.inference.models.attention import (
    Attention,
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
)
from exporter.inference.models.mixers import RecurrentMixer
from exporter.inference.service import Served
from exporter.state import State
from flopwatch.state_file import StateFile
from flopwatch.threads import ThreadGuard


# Shares of the window: the time between advice, and the part of a window that is enough for advice;
# a back-test waits for whole windows.
_ADVISE_SHARE: Final = 0.2
_LEAST_SHARE: Final = 0.4
_DAY_SECONDS: Final = 86400.0
_SECTION: Final = "levers"
_HISTORIES_MAX: Final = 64
# Hit rates are saved this often at most; records at once.
_SAVE_SECONDS: Final = 900.0

log = structlog.get_logger(__name__)


# The kinds of attention by their fields: the state file has no names of classes.
_ATTENTION = {
    frozenset(field.name for field in fields(kind)): kind
    for kind in (GroupedAttention, LatentAttention, CompressedAttention, RecurrentMixer)
}


class SavedTrial(msgspec.Struct, frozen=True):
    """A trial for the state file, with times in Unix seconds: monotonic times end with the process.

    `window` has the fields of a WorkloadWindow.
    """

    workload: str
    model: str
    began_unix_seconds: float
    settled_unix_seconds: float
    values: dict[str, float]
    window: dict[str, Any]


def saved_trial(trial: Trial, clock_offset_seconds: float) -> SavedTrial:
    """The trial as data. The offset is Unix time minus the windows' clock."""
    return SavedTrial(
        workload=trial.before.workload,
        model=trial.before.model,
        began_unix_seconds=trial.began_seconds + clock_offset_seconds,
        settled_unix_seconds=trial.settled_seconds + clock_offset_seconds,
        values=dict(trial.values),
        window=msgspec.to_builtins(trial.before),
    )


def restored_trial(saved: SavedTrial, clock_offset_seconds: float) -> Trial:
    """The trial from saved data. Raises msgspec.ValidationError if the data is damaged.

    A trial without the model's description, as an earlier version saved it, cannot be compared.
    """
    if saved.window.get("description") is None:
        raise msgspec.ValidationError("the trial has no description of its model")
    return Trial(
        before=msgspec.convert(saved.window, WorkloadWindow, dec_hook=_attention),
        began_seconds=saved.began_unix_seconds - clock_offset_seconds,
        values=saved.values,
        settled_seconds=saved.settled_unix_seconds - clock_offset_seconds,
    )


def _attention(_expected: type, saved: Any) -> Attention:
    kind = _ATTENTION.get(frozenset(saved)) if isinstance(saved, dict) else None
    if kind is None:
        raise msgspec.ValidationError("a layer has an unknown kind of attention")
    attention: Attention = msgspec.convert(saved, kind)
    return attention


# The best prefix cache hit rate of each day in the last week, by day of Unix time.
HitHistory = Mapping[int, float]


def with_hits(history: HitHistory, hits: float, day: int) -> dict[int, float]:
    """The history with the hit rate of a window on this day."""
    kept = {each: best for each, best in history.items() if day - 7 <= each <= day}
    return kept | {day: max(hits, kept.get(day, 0.0))}


class LeversState(msgspec.Struct, frozen=True):
    """The section `levers` of the state file: back-tests, the best hit rate of each day, trials."""

    records: dict[str, dict[str, Record]] = {}
    hits: tuple[tuple[str, str, tuple[tuple[int, float], ...]], ...] = ()
    """Workload, model, and pairs of day and rate."""
    trials: tuple[SavedTrial, ...] = ()


class Advisor:
    """Owns one thread; `snapshot` and `document` may be called from any thread.

    Without a state file nothing survives a restart.
    """

    def __init__(
        self,
        state: Callable[[], State],
        served: Callable[[State], Sequence[Served]],
        *,
        prices: Sequence[PriceRule] = (),
        state_path: Path | None = None,
        settings: AdviceSettings | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._served = served
        self._prices = tuple(prices)
        self._settings = settings or AdviceSettings()
        self._file = None if state_path is None else StateFile(state_path)
        self._wall_clock = wall_clock
        self._observations: deque[Observation] = deque()
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
        """Start the thread."""
        self._load()
        self._thread = threading.Thread(
            target=self._guard.run, args=(self._run,), name="advisor", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Stop; an observation in progress ends by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def stalled(self, now: float) -> tuple[str, ...]:
        """The thread's name, if it has ended or is stuck through a bug of ours."""
        return ("advisor",) if self._guard.stalled(now) else ()

    def configure(self, prices: Sequence[PriceRule]) -> None:
        """Use other prices from now on."""
        self._prices = tuple(prices)

    def snapshot(self) -> AdviceSnapshot:
        """The present advice."""
        return self._snapshot

    def document(self) -> bytes:
        """The same as JSON."""
        return msgspec.json.encode(document_of(self._snapshot))

    def observe(self) -> None:
        """Observe the State once; advise and back-test when it is time."""
        state = self._state()
        self._observations.append(observation_of(state, self._served(state)))
        now = state.at_seconds
        window, pause = self._settings.window_seconds, self._settings.observation_seconds
        while self._observations and now - self._observations[0].at_seconds > window + pause / 2:
            self._observations.popleft()
        if now - self._observations[0].at_seconds < _LEAST_SHARE * window:
            self._snapshot = AdviceSnapshot(records=self._records)
            return
        advised = self._advised_seconds
        if advised is not None and now - advised < _ADVISE_SHARE * window:
            return
        self._advised_seconds = now
        self._advise(state, now)

    def _advise(self, state: State, now: float) -> None:
        found = windows(
            tuple(self._observations),
            best_hits={
                key: max(history.values()) for key, history in self._hits.items() if history
            },
            prices=self._prices_of(state),
        )
        self._remember_hits(found, now)
        least = self._settings.window_seconds - self._settings.observation_seconds
        for window in found:
            if window.seconds >= least:
                self._back_test(window, now)
        stable = self._settings.stable_seconds
        # An engine that restarts is away for a while: its work before that counts.
        self._watches = {key: w for key, w in self._watches.items() if not w.stale(now, stable)}
        self._snapshot = AdviceSnapshot(tuple(advise(each) for each in found), self._records)

    def _back_test(self, window: WorkloadWindow, now: float) -> None:
        key = (window.workload, window.model)
        before = self._watches.pop(key, Watch())
        watch, comparison = back_test(before, window, now, self._settings.stable_seconds)
        self._watches[key] = watch
        while len(self._watches) > _HISTORIES_MAX:
            del self._watches[next(iter(self._watches))]
        if comparison is None:
            if watch.trial != before.trial:
                self._save()
            return
        log.info(
            "prediction_compared",
            workload=comparison.workload,
            lever=comparison.lever,
            outcome=comparison.outcome,
            error=round(comparison.error, 3),
        )
        self._records = recorded(self._records, comparison)
        self._save()

    def _remember_hits(self, found: Sequence[WorkloadWindow], now: float) -> None:
        day = int(self._wall_clock() // _DAY_SECONDS)
        for window in found:
            hits = window.cache_hit_ratio
            if hits is not None and (window.prefill_tokens or 0.0) >= LEAST_TOKENS:
                key = (window.workload, window.model)
                self._hits[key] = with_hits(self._hits.pop(key, {}), hits, day)
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
        if self._file is None:
            return
        section = self._file.read(_SECTION, LeversState) or LeversState()
        self._records = section.records
        for workload, model, days in section.hits:
            self._hits[workload, model] = dict(days)
        for saved in section.trials:
            try:
                trial = restored_trial(saved, self._clock_offset())
            except msgspec.ValidationError as error:
                log.warning("trial_not_restored", workload=saved.workload, error=str(error))
                continue
            self._watches[saved.workload, saved.model] = Watch(trial=trial)
        self._snapshot = AdviceSnapshot(records=self._records)

    def _save(self) -> None:
        if self._file is None:
            return
        hits = tuple((*key, tuple(each.items())) for key, each in self._hits.items())
        offset = self._clock_offset()
        trials = tuple(
            saved_trial(watch.trial, offset) for watch in self._watches.values() if watch.trial
        )
        with self._guard.waiting():  # for the file system
            self._file.save(_SECTION, LeversState(self._records, hits, trials))

    def _clock_offset(self) -> float:
        """Unix time minus the clock of the State."""
        return self._wall_clock() - self._state().at_seconds

    def _wait(self) -> bool:
        """Wait for the next observation; whether to end."""
        with self._guard.waiting():
            return self._stop.wait(self._settings.observation_seconds)

    def _run(self) -> None:
        while not self._wait():
            try:
                self.observe()
                self._failed = False
            except Exception:  # the top of the thread: advice must never bring the daemon down
                if not self._failed:
                    log.exception("advice_failed")
                self._failed = True
                self._observations.clear()
                self._snapshot = AdviceSnapshot(records=self._records)
