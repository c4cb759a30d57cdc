"""The account of one workload: turns readings into cumulative tokens, FLOPs and bytes."""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from exporter.inference.config import WorkloadConfig
from exporter.inference.models.description import ModelDescription, ModelDescriptionError
from exporter.inference.models.locate import load_model, locate_config
from exporter.inference.models.work import Cost, Work, cost_of
from exporter.inference.progress import Progress, Server
from exporter.inference.reading import EngineReading, ModelReading
from exporter.inference.waste import CacheShare, WasteTotals


# A model's file may appear later, after the engine has downloaded it.
RETRY_SECONDS = 600.0
# The limit of models with records, including those that an endpoint no longer shows.
LARGEST_TOTALS_COUNT = 64

Locate = Callable[[str], Path | None]
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ModelTotals:
    """The records of one model. Mutated under the account's lock."""

    reading: ModelReading
    progress: Progress = field(default_factory=Progress)
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    cached_tokens: float = 0.0
    external_tokens: float = 0.0
    rejected_tokens: float = 0.0
    preemptions: float = 0.0
    prompts: float = 0.0
    passes: float = 0.0
    # Windows whose passes were not known.
    passes_missed: int = 0
    # The cost of the work so far; estimates may reduce it slightly.
    cost: Cost = field(default_factory=Cost)
    # Its maximum so far: counters never fall.
    shown_cost: Cost = field(default_factory=Cost)
    engine_flop: float = 0.0
    waste: WasteTotals = field(default_factory=WasteTotals)
    cache_share: CacheShare = field(default_factory=CacheShare)
    # The last window: its length and cost.
    window_seconds: float | None = None
    window_cost: Cost | None = None
    description: ModelDescription | None = None
    described_as: tuple[str, str | None] | None = None
    problem: str | None = None
    retry_at_seconds: float = 0.0


class Account:
    """Records of all models of one workload. Readings come only from its scraper's thread."""

    def __init__(self, config: WorkloadConfig, *, locate: Locate = locate_config) -> None:
        self._config = config
        self._locate = locate
        self._totals: dict[str, ModelTotals] = {}
        self._shown: tuple[str, ...] = ()
        self._last_seconds: float | None = None
        self._restarts = 0
        self._switches = 0
        self._lock = threading.Lock()

    def add(
        self, reading: EngineReading, tensor_parallel: int, server: Server | None = None
    ) -> None:
        """Add one reading; the window is the time since the previous one."""
        server = server or Server()
        seconds = None if self._last_seconds is None else reading.seconds - self._last_seconds
        self._last_seconds = reading.seconds
        restarted = reading.restarts != self._restarts
        switched = restarted or reading.switches != self._switches
        self._restarts, self._switches = reading.restarts, reading.switches
        for model in reading.models:
            new = model.model not in self._totals
            totals = self._totals.get(model.model) or ModelTotals(model)
            if restarted:
                totals.described_as = None
            self._describe(totals, model, reading.seconds, server.cache_data_type)
            work = totals.progress.work_of(
                model,
                _api_servers(server, reading, model),
                changed=new or switched,
                restarted=restarted,
            )
            description = totals.description
            cost = (
                cost_of(description, work, model.tensor_parallel or tensor_parallel)
                if description
                else None
            )
            with self._lock:
                _enter(totals, model, work, cost, None if reading.first else seconds)
                self._totals.pop(model.model, None)
                self._totals[model.model] = totals
        with self._lock:
            self._shown = tuple(sorted(model.model for model in reading.models))
            while len(self._totals) > LARGEST_TOTALS_COUNT:
                del self._totals[next(iter(self._totals))]

    def models(self) -> tuple[ModelTotals, ...]:
        """Copies of the records of the models in the last reading, by name."""
        with self._lock:
            return tuple(copy.copy(self._totals[name]) for name in self._shown)

    def _describe(
        self,
        totals: ModelTotals,
        model: ModelReading,
        now_seconds: float,
        launched_cache: str | None,
    ) -> None:
        """Describe the model once per name and cache type, and again after an engine restart.

        After a failure it is retried periodically: the engine may still be downloading.
        """
        cache = self._config.kv_cache_precision or model.cache_data_type or launched_cache
        wanted = (model.model, cache)
        failed = totals.problem is not None and now_seconds >= totals.retry_at_seconds
        if totals.described_as == wanted and not failed:
            return
        description, problem = None, None
        path = self._config.model or self._locate(model.model)
        if path is None:
            problem = "config.json not found: set `model` of the workload to its path"
        else:
            try:
                description = load_model(
                    path, cache_data_type=cache, precision=self._config.precision
                )
            except ModelDescriptionError as error:
                problem = str(error)
        if problem is not None and problem != totals.problem:
            log.warning(
                "model_not_described",
                workload=self._config.name,
                model=model.model,
                problem=problem,
            )
        with self._lock:
            totals.description, totals.problem = description, problem
        totals.described_as = wanted
        totals.retry_at_seconds = now_seconds + RETRY_SECONDS


def _api_servers(server: Server, reading: EngineReading, model: ModelReading) -> Server:
    """Add the number of API servers that count passes, if only the exposition shows it.

    An exposition written by several processes has no process start time. vLLM then runs one API
    server per data-parallel rank by default, and at least two.
    """
    if server.api_servers is not None or not reading.multiprocess:
        return server
    return replace(server, api_servers=max(2, model.ranks))


def _enter(
    totals: ModelTotals, reading: ModelReading, work: Work, cost: Cost | None, seconds: float | None
) -> None:
    totals.reading = reading
    totals.prefill_tokens += work.prefill_tokens
    totals.decode_tokens += work.decode_tokens
    totals.cached_tokens += reading.cached_tokens or 0.0
    totals.external_tokens += reading.external_tokens or 0.0
    totals.rejected_tokens += work.rejected_tokens
    totals.preemptions += reading.preemptions or 0.0
    totals.prompts += work.prompts
    if work.prefill_passes is None or work.decode_passes is None:
        totals.passes_missed += 1
    else:
        # Each rank counts the passes that the ranks run together.
        totals.passes += (work.prefill_passes + work.decode_passes) / max(1, work.ranks)
    totals.engine_flop += reading.engine_flop or 0.0
    totals.window_seconds = seconds if seconds and seconds > 0 else None
    totals.window_cost = None
    cached = (reading.cached_tokens or 0.0) + (reading.external_tokens or 0.0)
    totals.cache_share.observe(totals.window_seconds or 0.0, cached, work.prefill_tokens)
    if cost is not None and totals.description is not None:
        totals.waste.enter(
            totals.description,
            reading,
            work,
            cost,
            context_tokens=totals.progress.context,
            lost_tokens=totals.cache_share.lost(cached, work.prefill_tokens),
        )
        totals.cost += cost
        before = totals.shown_cost
        totals.shown_cost = before.at_least(totals.cost)
        totals.window_cost = totals.shown_cost - before
