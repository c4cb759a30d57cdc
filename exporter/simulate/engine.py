"""The engine of a simulated host: its counters, and, pass by pass, its load on the GPUs.

The levers of `flopwatch simulate --pull` change the hidden setup; the host's advisor sees what the
daemon's advisor would see: tokens, passes, queue, the model's description, and the GPUs.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from exporter.accounting.peaks import Peaks
from exporter.inference.models import (
    LayerGroup,
    MixtureOfExperts,
    ModelDescription,
    WeightBytes,
    count_parameters,
)
from exporter.inference.models.attention import GroupedAttention
from exporter.inference.models.cost import Cost, Stretch, Work, cost_of
from exporter.inference.service import Served
from exporter.inference.snapshot import GpuRef, ModelSnapshot
from exporter.simulate.forward_pass import Behaviour, Experts, Member, Shape, Silicon
from exporter.simulate.gpu import SimulatedGpu
from exporter.simulate.scenarios import Fault, Load, Product, Serving
from exporter.simulate.serving import Counters, Engine, Setup, Traffic


# Hidden size, layers, heads, key-value heads, head size, intermediate size, vocabulary: widely
# served models, from their config.json.
SHAPES: dict[str, Shape] = {
    "llama-3.2-3b": Shape(3072, 28, 24, 8, 128, 8192, 128256),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 128, 14336, 128256),
    "qwen-2.5-14b": Shape(5120, 48, 40, 8, 128, 13824, 152064),
    "qwen-2.5-32b": Shape(5120, 64, 40, 8, 128, 27648, 152064),
    "llama-3.3-70b": Shape(8192, 80, 64, 8, 128, 28672, 128256),
    "mixtral-8x7b": Shape(4096, 32, 32, 8, 128, 0, 32000, experts=Experts(8, 2, 14336)),
    "qwen-3-30b-a3b": Shape(2048, 48, 32, 4, 128, 0, 151936, experts=Experts(128, 8, 768)),
    "qwen-3-235b-a22b": Shape(4096, 94, 64, 4, 128, 0, 151936, experts=Experts(128, 8, 1536)),
}
# The largest model that fits is served.
_SERVED = ("llama-3.3-70b", "qwen-2.5-32b", "llama-3.1-8b", "llama-3.2-3b")
_GROUPS = (8, 4, 2, 1)
# At most this many seconds of a tick are simulated and stand for the rest: a host that was not
# scraped for an hour must not take minutes to catch up.
_LONGEST_SECONDS = 2.0
_WARM_UP_SECONDS = 30.0
# A clock that moved by less counts as unchanged.
_CLOCK_STEP = 0.01
_FULL_HITS, _FEWER_GAPS, _FEWER_HOST_SECONDS = 0.6, 0.1, 0.3
# A token costs 2 FLOP per parameter of the served model; the rest of the tensor pipes' work is
# waste.
_FLOP_PER_PARAMETER = 2
_USEFUL_SHARE = 0.88
# The part of that waste that the engine counts, by cause, as a share of the tensor pipes' work.
_WASTED_SHARES = {"rejected_drafts": 0.04, "preemption": 0.01}
# The share of the moved bytes that tokens needed, and prefill's part of it: decode reads the cache.
_NEEDED_BYTES, _PREFILL_BYTES = 0.9, 0.1
# The share of prompt tokens found in a healthy prefix cache.
_CACHE_HITS = 0.6
# Levers that change the engine, and levers that change its GPUs (SimulatedHost).
ENGINE_LEVERS = (
    "larger_batch",
    "weights_fp8",
    "weights_fp4",
    "kv_cache_fp8",
    "fewer_launch_gaps",
    "restore_prefix_cache",
)
GPU_LEVERS = ("full_clocks", "replace_slow_gpu")


class SimulatedEngine:
    """One engine on the first GPUs of its host. Not thread-safe."""

    def __init__(self, plan: Serving, peaks: Peaks, memory: float, gpus: int, seed: str) -> None:
        self._silicon = Silicon(
            flops=dict(peaks.flops),
            bandwidth=peaks.dram_bytes_per_second or 0.0,
            link_bandwidth=peaks.nvlink_bytes_per_second or 32e9,
            memory=memory,
        )
        self.group = next(size for size in _GROUPS if size <= gpus)
        self.model = self._largest(memory)
        stream = random.Random(seed)
        traffic = Traffic(
            plan.prompt, 0.5, plan.answer, 0.5, clients=plan.clients, seed=stream.randrange(1 << 30)
        )
        self._setup = Setup(
            self._silicon,
            SHAPES[self.model],
            traffic,
            behaviour=Behaviour(
                exposed=stream.uniform(0.0, 0.8),
                weight_streaming=stream.uniform(0.78, 0.86),
                host_seconds=stream.uniform(0.3e-3, 2e-3),
            ),
            members=(Member(),) * self.group,
            batch_limit=plan.batch,
            hit_ratio=plan.hits,
        )
        self._engine = Engine(self._setup)
        self._engine.run_until(_WARM_UP_SECONDS)
        self._last = replace(self._engine.counters)
        self._total = Counters()
        self._window = Counters()
        self._cost = Cost()
        self._load = Load()

    @property
    def arithmetic(self) -> str:
        """The precision of the engine's matrix products."""
        return self._setup.shape.arithmetic

    @property
    def description(self) -> ModelDescription:
        """The contents of the model's config.json."""
        return describe(self._setup.shape)

    def can_pull(self, lever: str) -> str | None:
        """Why the lever cannot be pulled here, or None if it can."""
        precision = lever.removeprefix("weights_")
        if lever.startswith("weights_") and precision not in self._silicon.flops:
            return f"the GPUs have no {precision} arithmetic"
        return None

    def pull(self, lever: str) -> None:
        """Change the hidden setup according to the lever."""
        setup, shape, hidden = self._setup, self._setup.shape, self._setup.behaviour
        if lever == "larger_batch":
            setup = replace(setup, batch_limit=2 * setup.batch_limit)
        elif lever == "weights_fp8":
            setup = replace(setup, shape=replace(shape, weight_bytes=1.0, arithmetic="fp8"))
        elif lever == "weights_fp4":
            setup = replace(setup, shape=replace(shape, weight_bytes=4.5 / 8, arithmetic="fp4"))
        elif lever == "kv_cache_fp8":
            setup = replace(setup, shape=replace(shape, cache_bytes=1.0))
        elif lever == "fewer_launch_gaps":
            hidden = replace(
                hidden,
                kernel_gap_seconds=_FEWER_GAPS * hidden.kernel_gap_seconds,
                host_seconds=_FEWER_HOST_SECONDS * hidden.host_seconds,
            )
            setup = replace(setup, behaviour=hidden)
        elif lever == "restore_prefix_cache":
            setup = replace(setup, hit_ratio=_FULL_HITS)
        self._reconfigure(setup)

    def advance(self, seconds: float, hardware: Sequence[Member]) -> Load:
        """Serve for this long on these GPUs; returns the resulting load of each."""
        members = tuple(
            replace(each, clock=round(each.clock / _CLOCK_STEP) * _CLOCK_STEP)
            for each in hardware[: self.group]
        )
        if members != self._setup.members:
            self._reconfigure(replace(self._setup, members=members))
        simulated = min(seconds, _LONGEST_SECONDS)
        self._engine.run_until(self._last.seconds + simulated)
        now = replace(self._engine.counters)
        window, self._last = now.plus(self._last, -1.0), now
        if window.seconds <= 0:
            return self._load
        self._window = Counters().plus(window, seconds / window.seconds)
        self._total = self._total.plus(self._window)
        self._cost += self._cost_of(self._window)
        self._load = self._load_of(window)
        return self._load

    def served(self, gpus: Sequence[GpuRef]) -> Served:
        """What the daemon would know about the engine."""
        total = self._total
        return Served(
            workload="chat",
            engine="simulated",
            shown=self.snapshot(),
            gpus=tuple(gpus[: self.group]),
            gpu_count=self.group,
            tensor_parallel=self.group,
            description=self.description,
            passes=total.passes,
            prompts=total.prompts,
        )

    def snapshot(self) -> ModelSnapshot:
        """What the engine exposes about the model."""
        total, window = self._total, self._window
        seconds = window.seconds or 1.0
        counts = count_parameters(self.description)
        return ModelSnapshot(
            model=self.model,
            precision=self.arithmetic,
            prefill_tokens=total.prefill_tokens,
            decode_tokens=total.decode_tokens,
            cached_tokens=total.cached_tokens,
            prefill_flop=self._cost.prefill_flop,
            decode_flop=self._cost.decode_flop,
            dram_bytes=self._cost.dram_bytes,
            phase_bytes={"prefill": self._cost.prefill_bytes, "decode": self._cost.decode_bytes},
            all_gpus_here=True,
            parameters=float(counts.total),
            active_parameters=float(counts.active),
            running_requests=window.running / seconds,
            waiting_requests=window.waiting / seconds,
            cache_usage_ratio=window.cache_tokens / seconds / self._setup.cache_tokens,
            decode_context_tokens=self._context(total),
        )

    def _largest(self, memory: float) -> str:
        for name in _SERVED:
            if SHAPES[name].stored_bytes / self.group < 0.7 * memory:
                return name
        return _SERVED[-1]

    def _reconfigure(self, setup: Setup) -> None:
        self._setup = setup
        self._engine.reconfigure(setup)

    def _load_of(self, window: Counters) -> Load:
        seconds, silicon = window.seconds, self._silicon
        links = self._total.link_bytes and window.link_bytes / seconds / silicon.link_bandwidth
        tokens = window.prefill_tokens + window.decode_tokens
        return Load(
            graphics=min(1.0, window.kernel_seconds / seconds),
            sm=min(1.0, window.sm_seconds / seconds),
            tensor=min(1.0, window.tensor_seconds / seconds),
            dram=min(1.0, window.dram_bytes / seconds / silicon.bandwidth),
            fp32=0.05,
            nvlink=min(1.0, links),
            prefill_share=window.prefill_tokens / tokens if tokens else 0.0,
            requests=window.running / seconds,
        )

    def _cost_of(self, window: Counters) -> Cost:
        """Useful FLOPs and bytes in a window, from the mean lengths so far."""
        context = self._context(self._total) or 0.0
        prompts = max(window.prompts, 1e-9)
        work = Work(
            prefill_tokens=window.prefill_tokens,
            decode_tokens=window.decode_tokens,
            prompts=window.prompts,
            prefills=(
                Stretch(prompts, window.cached_tokens / prompts, window.prefill_tokens / prompts),
            ),
            decodes=(Stretch(window.decode_tokens, context, 1.0),),
            prefill_passes=0.0,
            decode_passes=window.passes,
        )
        return cost_of(self.description, work, self.group)

    @staticmethod
    def _context(counters: Counters) -> float | None:
        if not counters.running:
            return None
        return counters.cache_tokens / counters.running


class TokenCounts:
    """What an engine counts in a scenario without one: tokens follow from the work of the GPUs."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self._flop_per_token = _FLOP_PER_PARAMETER * product.model_parameters
        self._tokens = {"prefill": 0.0, "decode": 0.0}
        self._cached = 0.0
        self._wasted = dict.fromkeys(_WASTED_SHARES, 0.0)
        self._requests = 0.0

    def serve(self, seconds: float, gpus: Sequence[SimulatedGpu], load: Load, fault: Fault) -> None:
        """Turn the work of the tensor pipes in the last tick into tokens."""
        self._requests = load.requests
        delivered = sum(gpu.delivered_flops for gpu in gpus) * seconds
        tokens = _USEFUL_SHARE * delivered / self._flop_per_token / fault.waste
        hits = _CACHE_HITS if fault.cache_hits is None else fault.cache_hits
        self._tokens["prefill"] += load.prefill_share * tokens
        self._cached += load.prefill_share * tokens * hits / (1 - hits)
        self._tokens["decode"] += (1 - load.prefill_share) * tokens
        for cause, share in _WASTED_SHARES.items():
            self._wasted[cause] += share * delivered

    def snapshot(self, gpus: Sequence[SimulatedGpu]) -> ModelSnapshot:
        """What the engine exposes about the model."""
        product = self._product
        dram_bytes = _NEEDED_BYTES * sum(gpu.dram_bytes for gpu in gpus)
        return ModelSnapshot(
            model=product.model,
            precision=product.precision,
            prefill_tokens=self._tokens["prefill"],
            decode_tokens=self._tokens["decode"],
            prefill_flop=self._tokens["prefill"] * self._flop_per_token,
            decode_flop=self._tokens["decode"] * self._flop_per_token,
            dram_bytes=dram_bytes,
            phase_bytes={
                "prefill": _PREFILL_BYTES * dram_bytes,
                "decode": (1 - _PREFILL_BYTES) * dram_bytes,
            },
            wasted_flop=dict(self._wasted),
            all_gpus_here=True,
            running_requests=self._requests,
            waiting_requests=0.0,
            cached_tokens=self._cached,
            cache_usage_ratio=min(0.95, 0.012 * self._requests),
            parameters=product.model_parameters,
            active_parameters=product.model_parameters,
        )


def describe(shape: Shape) -> ModelDescription:
    """The description that the exporter would read from the model's config.json."""
    stored = shape.weight_bytes
    attention = GroupedAttention(shape.heads, shape.key_value_heads, shape.head_size)
    experts = shape.experts
    mixture = (
        MixtureOfExperts(experts.count, experts.active, experts.intermediate) if experts else None
    )
    return ModelDescription(
        model_type="llama",
        hidden_size=shape.hidden,
        vocabulary_size=shape.vocabulary,
        layers=(LayerGroup(shape.layers, attention, None, shape.intermediate, mixture),),
        weights=WeightBytes(attention=stored, dense=stored, experts=stored, shared_experts=stored),
        compute_precision=shape.arithmetic,
        cache_value_bytes=shape.cache_bytes,
    )
