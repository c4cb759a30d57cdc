"""The account of one workload: cumulative tokens, FLOPs, bytes and waste, and what is shown of them.

Readings go in, and a ModelSnapshot comes out, with ratios to the peaks of the model's GPUs.
"""

import copy
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from exporter.accounting.peaks import Peaks
from exporter.inference.config import WorkloadConfig
from exporter.inference.launch import Launch, locate_config
from exporter.inference.models import (
    ModelDescription,
    ModelDescriptionError,
    count_parameters,
)
from exporter.inference.models.cost import (
    Cost,
    Work,
    cost_of,
    decode_attention_flop,
    head_flop_per_token,
    linear_flop_per_token,
    prefill_attention_flop,
    stored_weight_bytes,
)
from exporter.inference.models.files import load_model
from exporter.inference.progress import Progress
from exporter.inference.reading import EngineReading, ModelReading
from exporter.inference.snapshot import GpuRef, ModelSnapshot
from exporter.state import State


# A model's file may appear later, after the engine has downloaded it.
RETRY_SECONDS = 600.0
# The limit of models with records, including those that an endpoint no longer shows.
LARGEST_TOTALS_COUNT = 64
RECENT_SECONDS = 300.0
USUAL_SECONDS = 6 * 3600.0
# Below these limits the shares are not meaningful: too short a time, or too little traffic.
LEAST_USUAL_SECONDS = 1800.0
LEAST_USUAL_TOKENS = 20_000.0
LEAST_RECENT_TOKENS = 2_000.0
# A recent share below this fraction of the usual one does not change the usual share.
FALLEN = 0.5
# After this long it does: a change that lasts two weeks is the new normal.
LONGEST_FALL_SECONDS = 14 * 86_400.0

Locate = Callable[[str], Path | None]
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class CacheShare:
    """Two exponentially fading averages, weighted by tokens. Owned by one model's records."""

    recent_cached: float = 0.0
    recent_total: float = 0.0
    usual_cached: float = 0.0
    usual_total: float = 0.0
    watched_seconds: float = 0.0
    fallen_seconds: float = 0.0

    def observe(self, seconds: float, cached: float, computed: float) -> None:
        """Add a window of the given seconds."""
        if seconds <= 0:
            return
        fade = math.exp(-seconds / RECENT_SECONDS)
        total = cached + max(0.0, computed)
        self.recent_cached = self.recent_cached * fade + cached
        self.recent_total = self.recent_total * fade + total
        recent, usual = self.recent, self.usual
        fallen = recent is not None and usual is not None and recent < FALLEN * usual
        self.fallen_seconds = self.fallen_seconds + seconds if fallen else 0.0
        if fallen and self.fallen_seconds < LONGEST_FALL_SECONDS:
            return
        fade = math.exp(-seconds / USUAL_SECONDS)
        self.usual_cached = self.usual_cached * fade + cached
        self.usual_total = self.usual_total * fade + total
        self.watched_seconds += seconds

    def lost(self, cached: float, computed: float) -> float:
        """Prompt tokens of a window that are usually cached but were not; 0 without a collapse."""
        usual = self.usual
        if usual is None or not 0 < self.fallen_seconds < LONGEST_FALL_SECONDS:
            return 0.0
        computed = max(0.0, computed)
        return min(computed, max(0.0, usual * (cached + computed) - cached))

    @property
    def recent(self) -> float | None:
        """The share of the last five minutes; None with too little traffic."""
        if self.recent_total < LEAST_RECENT_TOKENS:
            return None
        return self.recent_cached / self.recent_total

    @property
    def usual(self) -> float | None:
        """The share of the last six hours without a collapse; None in the first half hour."""
        if self.watched_seconds < LEAST_USUAL_SECONDS or self.usual_total < LEAST_USUAL_TOKENS:
            return None
        return self.usual_cached / self.usual_total


@dataclass(slots=True)
class WasteTotals:
    """FLOP wasted by one model so far, by cause. They are counters and never fall.

    * `preemption`: tokens computed again after a preemption. SGLang counts them; other engines count
      only the preemptions, so that the FLOP are known (zero) only until the first one.
    * `rejected_drafts`: draft tokens that the served model verified and rejected. The work of the
      draft model is not included.
    * `lost_cache_hits`: prompt tokens that are usually in the prefix cache but were computed while
      its hit rate had collapsed. They are part of the model's FLOP; the other causes come on top.
    """

    preemption: float = 0.0
    rejected_drafts: float = 0.0
    lost_cache_hits: float = 0.0
    # Recomputed tokens to subtract later: the two counters are not updated at the same time.
    debt: float = 0.0

    def enter(
        self,
        model: ModelDescription,
        reading: ModelReading,
        work: Work,
        cost: Cost,
        *,
        context_tokens: float | None,
        lost_tokens: float,
    ) -> None:
        """Add a window. `context_tokens` is the mean context of a decoded token.

        `lost_tokens` is the number of the window's prompt tokens that would usually have been
        cached.
        """
        context = context_tokens or 0.0
        again = (reading.recomputed_tokens or 0.0) + self.debt
        self.debt = min(0.0, again)
        if again > 0:
            attention = prefill_attention_flop(model, context) / context if context else 0.0
            self.preemption += again * (linear_flop_per_token(model) + attention)
        if work.rejected_tokens > 0:
            per_token = (
                linear_flop_per_token(model)
                + head_flop_per_token(model)
                + decode_attention_flop(model, context)
            )
            self.rejected_drafts += work.rejected_tokens * per_token
        if lost_tokens > 0 and work.prefill_tokens > 0:
            share = min(1.0, lost_tokens / work.prefill_tokens)
            self.lost_cache_hits += share * max(0.0, cost.prefill_flop)

    def known(
        self, reading: ModelReading, *, preemptions: float, usual_share_known: bool
    ) -> dict[str, float]:
        """FLOP by cause, only for the causes that the engine counts."""
        known: dict[str, float] = {}
        never = reading.preemptions is not None and preemptions == 0
        if reading.recomputed_tokens is not None or never:
            known["preemption"] = self.preemption
        if reading.draft_tokens is not None:
            known["rejected_drafts"] = self.rejected_drafts
        if reading.cached_tokens is not None and usual_share_known:
            known["lost_cache_hits"] = self.lost_cache_hits
        return known


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
        self, reading: EngineReading, tensor_parallel: int, launch: Launch | None = None
    ) -> None:
        """Add one reading; the window is the time since the previous one."""
        launch = launch or Launch()
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
            self._describe(totals, model, reading.seconds, launch)
            work = totals.progress.work_of(
                model,
                _with_api_servers(launch, reading, model),
                changed=new or switched,
                restarted=restarted,
            )
            degree = model.tensor_parallel or tensor_parallel
            with self._lock:
                _enter(totals, model, work, degree, None if reading.first else seconds)
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
        self, totals: ModelTotals, model: ModelReading, now_seconds: float, launch: Launch
    ) -> None:
        """Describe the model once per name and cache type, and again after an engine restart.

        After a failure it is retried periodically: the engine may still be downloading.
        """
        configured = self._config.kv_cache_precision
        cache = configured or model.cache_data_type or launch.cache_data_type
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


def _with_api_servers(launch: Launch, reading: EngineReading, model: ModelReading) -> Launch:
    """Add the number of API servers that count passes, if only the exposition shows it.

    An exposition written by several processes has no process start time. vLLM then runs one API
    server per data-parallel rank by default, and at least two.
    """
    if launch.api_servers is not None or not reading.multiprocess:
        return launch
    return replace(launch, api_servers=max(2, model.ranks))


def _enter(
    totals: ModelTotals,
    reading: ModelReading,
    work: Work,
    tensor_parallel: int,
    seconds: float | None,
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
        totals.passes += (work.prefill_passes + work.decode_passes) / work.ranks
    totals.engine_flop += reading.engine_flop or 0.0
    totals.window_seconds = seconds if seconds and seconds > 0 else None
    totals.window_cost = None
    cached = reading.reused_tokens
    totals.cache_share.observe(totals.window_seconds or 0.0, cached, work.prefill_tokens)
    if totals.description is not None:
        cost = cost_of(totals.description, work, tensor_parallel)
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


def present(
    config: WorkloadConfig,
    totals: ModelTotals,
    gpus: Sequence[GpuRef],
    state: State,
    *,
    launch: Launch | None = None,
    gpus_per_replica: int = 1,
) -> ModelSnapshot:
    """Return the snapshot of one model. A ratio needs the peaks of all of its GPUs."""
    launch = launch or Launch()
    reading, description, cost = totals.reading, totals.description, totals.shown_cost
    counts = count_parameters(description) if description else None
    precision = precision_of(config, totals, gpus, state)
    prefilled = reading.computed_tokens is not None
    # A pass covers prompts and answers: without the prompts the bytes are not known.
    complete = description is not None and prefilled
    share = None if missing_gpus(config, state) else _share_here(config, totals, gpus, launch)
    window = totals.window_cost if prefilled else None
    seconds = totals.window_seconds
    return ModelSnapshot(
        model=reading.model or _model_name(config),
        precision=precision,
        prefill_tokens=totals.prefill_tokens if prefilled else None,
        decode_tokens=None if reading.generated_tokens is None else totals.decode_tokens,
        cached_tokens=None if reading.cached_tokens is None else totals.cached_tokens,
        external_tokens=None if reading.external_tokens is None else totals.external_tokens,
        cached_share=totals.cache_share.recent,
        usual_cached_share=totals.cache_share.usual,
        rejected_tokens=None if reading.draft_tokens is None else totals.rejected_tokens,
        preemptions=None if reading.preemptions is None else totals.preemptions,
        role=reading.role or launch.role,
        prefill_flop=cost.prefill_flop if complete else None,
        decode_flop=cost.decode_flop if description else None,
        wasted_flop=totals.waste.known(
            reading,
            preemptions=totals.preemptions,
            usual_share_known=totals.cache_share.usual is not None,
        )
        if complete
        else {},
        all_gpus_here=share == 1.0,
        dram_bytes=cost.dram_bytes if complete else None,
        phase_bytes={"prefill": cost.prefill_bytes, "decode": cost.decode_bytes}
        if complete
        else {},
        engine_flop=None if reading.engine_flop is None else totals.engine_flop * gpus_per_replica,
        flops_utilization=_ratio(
            _ratio(window.flop if window else None, seconds),
            _ratio(_peak_flops(precision, gpus, state), share),
        ),
        bandwidth_utilization=_ratio(
            _ratio(window.dram_bytes if window else None, seconds),
            _ratio(_peak(gpus, state, lambda peaks: peaks.dram_bytes_per_second), share),
        ),
        running_requests=reading.running_requests,
        waiting_requests=reading.waiting_requests,
        cache_usage_ratio=reading.cache_usage_ratio,
        decode_context_tokens=totals.progress.context,
        parameters=counts.total if counts else None,
        active_parameters=counts.active if counts else None,
        weight_bytes=stored_weight_bytes(description) if description else None,
        problem=totals.problem,
        not_counted=description.not_counted if description else (),
    )


def missing_gpus(config: WorkloadConfig, state: State) -> tuple[int | str, ...]:
    """The engine's GPUs, as configured, that this host does not list. Their peaks are not known."""
    return tuple(key for key in dict.fromkeys(config.gpus) if state.find(key) is None)


def _share_here(
    config: WorkloadConfig, totals: ModelTotals, gpus: Sequence[GpuRef], launch: Launch
) -> float | None:
    """The share of the engine's GPUs on this host; None if the others are not known.

    `gpus_total` gives their total number and implies that they are all alike. Otherwise all GPUs
    that the engine uses must be on this host, as far as the engine, its command line or the
    configuration show.
    """
    if config.gpus_total:
        return min(1.0, len(gpus) / config.gpus_total)
    reading = totals.reading
    sizes = [
        reading.gpus,
        launch.gpus,
        (reading.tensor_parallel or 1) * (reading.pipeline_parallel or 1),
        (config.tensor_parallel or 1) * config.pipeline_parallel,
    ]
    most = max(size for size in sizes if size is not None)
    return 1.0 if most <= len(gpus) else None


def precision_of(
    config: WorkloadConfig, totals: ModelTotals, gpus: Sequence[GpuRef], state: State
) -> str | None:
    """Return the precision of the matrix products: the stated one, if the GPUs support it.

    The configuration has priority, then the engine, then the model's file. A GPU without support
    (fp8 weights on Ampere) expands weights to the model's own data type before it multiplies, a
    processor to fp32.
    """
    if config.precision is not None:
        return config.precision
    description = totals.description
    stated = [totals.reading.precision]
    stated += [description.compute_precision, description.data_type] if description else []
    candidates = [precision for precision in stated if precision is not None]
    for precision in candidates:
        if _peak_flops(precision, gpus, state) is not None:
            return precision
    devices = [state.find(gpu.uuid) for gpu in gpus]
    if candidates and devices and all(device and device.is_processor for device in devices):
        return "fp32"
    return candidates[0] if candidates else None


def _peak_flops(precision: str | None, gpus: Sequence[GpuRef], state: State) -> float | None:
    return _peak(gpus, state, lambda peaks: peaks.flops.get(precision or ""))


def _peak(
    gpus: Sequence[GpuRef], state: State, part: Callable[[Peaks], float | None]
) -> float | None:
    """One of the peaks of all these GPUs together; None unless each of them is known to have it."""
    devices = [state.find(gpu.uuid) for gpu in gpus]
    peaks = [part(device.peaks) if device and device.peaks else None for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) or None if len(known) == len(peaks) else None


def _model_name(config: WorkloadConfig) -> str:
    """A name for a model whose engine gives none: the folder of its file, else the workload."""
    if config.model is None:
        return config.name
    path = config.model.parent if config.model.name == "config.json" else config.model
    return path.name or config.name


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
