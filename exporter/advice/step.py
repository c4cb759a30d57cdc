"""The step-time model: the cost of one forward pass, part by part, with its unknowns.

A pass reads the weights once, reads the KV cache of every running sequence, multiplies, sends its
partial sums over the links, and leaves gaps in which no kernel runs. The bytes and FLOPs of each
part follow from the tokens and the model's description, their rates from the probes. Each part
takes at least the larger of its memory time and its compute time (roofline: Williams et al., CACM
52(4), 2009). Two quantities are unknown and determine the width of every prediction:

- how much of the smaller of the two times hides behind the larger one (`hidden`, 0..1);
- why the measured busy time is longer than the roofline: a constant (small kernels, latencies) or
  each part in proportion (kernels that miss the roofline).

Every prediction is evaluated at the extremes of both, with the model fitted to the measured pass
under the same assumption; the interval spans the results.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from exporter.accounting.time_split import REACHABLE_BANDWIDTH
from exporter.advice.prediction import GpuWindow, Inapplicable, Interval, WorkloadWindow
from exporter.inference.models import ModelDescription
from exporter.inference.models.cost import (
    cache_bytes_per_token,
    cache_bytes_read,
    decode_attention_flop,
    head_flop_per_token,
    linear_flop_per_token,
    prefill_attention_flop,
    weight_bytes_per_pass,
)


# Share of the tensor peak that large matrix products reach, used if no probe has measured it: 0.71
# to 0.87 on A100 to B200 (mamf-finder, stas00/ml-engineering).
REACHABLE_FLOPS = 0.78
# Share of the theoretical link bandwidth that collectives reach: 0.74 to 0.8 of NVLink 4 in
# all-reduce (Azure's node checks: 460 GB/s bus bandwidth on H100, 2 x 450 / 2 theoretical).
REACHABLE_LINK = 0.8
# Maximum tokens of one prefill pass: the common default chunk of engines is 2048 to 8192.
PREFILL_CHUNK_TOKENS = 4096.0
# Without speculative decoding a request gains one token per pass.
_TOKENS_PER_REQUEST = 1.3
# How much of the shorter of memory and compute time is hidden behind the longer one. A GPU has
# thousands of threads that wait for memory while others multiply; a CPU core loads and multiplies
# in one instruction stream.
_HIDDEN_ON_GPU = (1.0, 0.5)
_HIDDEN_ON_CPU = (0.3, 0.0)
# Share of the rate of large matrix products that products with few rows reach: tiles are not full,
# and some CPU kernels process two or three rows one by one.
_FEW_ROWS = 64
_FEW_ROWS_ON_GPU = (1.0, 0.6)
_FEW_ROWS_ON_CPU = (1.0, 0.35)
# Whether the time above the roofline is constant (0) or proportional to it (1).
_PROPORTIONAL = (0.0, 1.0)
# How much longer collectives may take on the links than the probe or data sheet implies.
_LINKS = (1.0, 1.5)
_UNQUANTIZED_BYTES = 2.0
# Share of the span of all corners that is cut off at each end.
_TRIMMED = 0.14
# Bounds of the search for the bandwidth that explains a pass shorter than the roofline.
_FASTEST_MEMORY = 3.0
_BISECTIONS = 24


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates that the slowest GPU of the workload reaches now."""

    bytes_per_second: float
    linear_flops: float
    attention_flops: float
    link_bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The mean forward pass of the window, per GPU. Tokens and requests are per pass.

    `mixed_share` is the share of passes with any prefill. `gap_seconds` is the time of a pass in
    which no kernel runs, `busy_seconds` the rest. `other_bytes` are measured bytes beyond weights
    and cache (activations), per token.
    """

    model: ModelDescription
    rates: Rates
    tensor_parallel: int
    decode_tokens: float
    prefill_tokens: float
    prompts: float
    cached_per_prompt: float
    context: float
    gap_seconds: float
    busy_seconds: float
    other_bytes: float = 0.0
    link_seconds_per_token: float = 0.0
    on_cpu: bool = False

    @property
    def seconds(self) -> float:
        """Mean time from the start of one pass to the next."""
        return self.gap_seconds + self.busy_seconds

    @property
    def tokens(self) -> float:
        """Tokens computed per pass."""
        return self.decode_tokens + self.prefill_tokens

    @property
    def mixed_share(self) -> float:
        """Share of passes with any prefill, assuming that prompts arrive independently."""
        if self.prompts <= 0 or self.prefill_tokens <= 0:
            return 0.0
        chunks = max(1.0, self.prefill_tokens / self.prompts / PREFILL_CHUNK_TOKENS)
        return 1.0 - math.exp(-self.prompts * chunks)

    @property
    def weight_bytes(self) -> float:
        """Weight bytes that each GPU reads in a pass."""
        per_pass = weight_bytes_per_pass(self.model, max(1.0, self.tokens), with_head=True)
        return per_pass / self.tensor_parallel

    @property
    def cache_bytes_per_decode(self) -> float:
        """KV-cache bytes that each GPU reads for one decoded token."""
        whole = cache_bytes_read(self.model, self.context, self.tensor_parallel)
        return whole / self.tensor_parallel

    @property
    def cache_bytes(self) -> float:
        """KV-cache bytes that each GPU reads and writes in a pass."""
        written = cache_bytes_per_token(self.model, self.tensor_parallel) / self.tensor_parallel
        return self.decode_tokens * self.cache_bytes_per_decode + self.tokens * written

    def roofline(self, corner: "Corner") -> float:
        """Seconds of a mean pass with every kernel at its roofline, under the given assumptions."""
        mixed = self.mixed_share
        plain = self._kernels(0.0, 0.0, corner)
        if mixed <= 0:
            return plain
        chunk, prompts = self.prefill_tokens / mixed, self.prompts / mixed
        return (1.0 - mixed) * plain + mixed * self._kernels(chunk, prompts, corner)

    def parts(self) -> dict[str, float]:
        """Seconds of weights, cache and matrix products of a mean pass, each taken alone."""
        rates = self.rates
        linear, head = self._flops_per_token()
        flops = self.tokens * linear + (self.decode_tokens + self.prompts) * head
        return {
            "weights": self.weight_bytes / rates.bytes_per_second,
            "cache": self.cache_bytes / rates.bytes_per_second,
            "matrices": flops / rates.linear_flops,
        }

    def _flops_per_token(self) -> tuple[float, float]:
        return (
            linear_flop_per_token(self.model) / self.tensor_parallel,
            head_flop_per_token(self.model) / self.tensor_parallel,
        )

    def _kernels(self, prefill: float, prompts: float, corner: "Corner") -> float:
        """One pass that decodes and prefills the given numbers of tokens."""
        rates, decode, hidden = self.rates, self.decode_tokens, corner.hidden
        linear, head = self._flops_per_token()
        tokens = decode + prefill
        weights = weight_bytes_per_pass(self.model, max(1.0, tokens), with_head=True)
        share = corner.few_rows if tokens < _FEW_ROWS else 1.0
        seconds = _blend(
            (weights / self.tensor_parallel + tokens * self.other_bytes) / rates.bytes_per_second,
            (tokens * linear + (decode + prompts) * head) / (share * rates.linear_flops),
            hidden,
        )
        attention = decode_attention_flop(self.model, self.context) / self.tensor_parallel
        seconds += _blend(
            decode * self.cache_bytes_per_decode / rates.bytes_per_second,
            decode * attention / rates.attention_flops,
            hidden,
        )
        if prompts > 0 and prefill > 0:
            new = prefill / prompts
            flops = prompts * prefill_attention_flop(self.model, new, self.cached_per_prompt)
            seconds += flops / self.tensor_parallel / rates.attention_flops
        return seconds + tokens * self.link_seconds_per_token * corner.links


def _blend(memory: float, compute: float, hidden: float) -> float:
    return max(memory, compute) + (1.0 - hidden) * min(memory, compute)


def step_of(window: WorkloadWindow) -> Step:
    """The mean pass of the window. Raises Inapplicable if a part of it is not known."""
    model = window.description
    if model is None:
        raise Inapplicable("the model is not described, so its FLOPs and bytes are not known")
    if not window.passes or not window.decode_tokens or window.prefill_tokens is None:
        raise Inapplicable("the engine did not report tokens and forward passes in this window")
    if window.decode_context is None:
        raise Inapplicable("the context of the decoded tokens is not known")
    if window.gpu_count != window.tensor_parallel:
        raise Inapplicable(
            f"{window.gpu_count} GPUs in tensor-parallel groups of {window.tensor_parallel}: "
            "pipeline and data parallelism are not modelled"
        )
    running, decoded = window.running_requests, window.decode_tokens / window.passes
    if running is not None and decoded > _TOKENS_PER_REQUEST * max(1.0, running):
        raise Inapplicable(
            "requests gain several tokens per pass: speculative decoding is not modelled"
        )
    gpu = slowest(window)
    on_cpu = gpu.gpu.startswith("cpu")
    if on_cpu and model.weights.dense < _UNQUANTIZED_BYTES:
        raise Inapplicable(
            "the weights are quantized: on a processor, the kernel of the format decides whether the "
            "requests of one pass share one read of the weights"
        )
    if gpu.graphics is None:
        raise Inapplicable(f"{gpu.title} does not report how long kernels run")
    period = window.seconds / window.passes
    busy = min(1.0, gpu.graphics) * period
    prompts = window.prompts or 0.0
    step = Step(
        model=model,
        rates=rates_of(gpu, model),
        tensor_parallel=max(1, window.tensor_parallel),
        decode_tokens=max(0.0, window.decode_tokens - prompts) / window.passes,
        prefill_tokens=window.prefill_tokens / window.passes,
        prompts=prompts / window.passes,
        cached_per_prompt=(window.cached_tokens or 0.0) / prompts if prompts else 0.0,
        context=window.decode_context,
        gap_seconds=period - busy,
        busy_seconds=busy,
        on_cpu=on_cpu,
    )
    if step.decode_tokens <= 0:
        raise Inapplicable("no tokens are decoded here, and only passes that decode are modelled")
    return _measured(gpu, step, period)


def _measured(gpu: GpuWindow, step: Step, period: float) -> Step:
    """The step with measured parts added: bytes beyond weights and cache, time on the links."""
    peak = gpu.peaks.dram_bytes_per_second
    if gpu.dram is not None and peak:
        beyond = gpu.dram * peak * period - step.weight_bytes - step.cache_bytes
        step = replace(step, other_bytes=max(0.0, beyond) / step.tokens)
    if step.tensor_parallel > 1 and gpu.link_bytes_per_second:
        reach = step.rates.link_bytes_per_second
        if reach:
            seconds = gpu.link_bytes_per_second * period / reach
            step = replace(step, link_seconds_per_token=seconds / step.tokens)
    return step


def slowest(window: WorkloadWindow) -> GpuWindow:
    """The GPU that the others of its group wait for: the slowest one.

    Raises Inapplicable if there is no GPU, or if one needs repair first or has other tenants.
    """
    if not window.gpus:
        raise Inapplicable("no GPU of this workload is known on this host")
    for gpu in window.gpus:
        if gpu.fault:
            raise Inapplicable(f"{gpu.title} needs repair first: {gpu.fault}")
        if gpu.shared_with:
            raise Inapplicable(
                f"{gpu.title} is shared with {gpu.shared_with}: how much of its time this model "
                "takes is not known"
            )

    def speed(gpu: GpuWindow) -> float:
        bandwidth, peak = gpu.reachable_bandwidth_bytes_per_second, gpu.peaks.dram_bytes_per_second
        share = bandwidth / peak if bandwidth and peak else 1.0
        return min(_reached_shares(gpu), default=1.0) * share * (gpu.clock_ratio or 1.0)

    return min(window.gpus, key=speed)


def rates_of(gpu: GpuWindow, model: ModelDescription) -> Rates:
    """The GPU's rates in this model's precision. Raises Inapplicable without any peak."""
    peak = gpu.peaks.dram_bytes_per_second
    bandwidth = gpu.reachable_bandwidth_bytes_per_second
    if bandwidth is None:
        if not peak:
            raise Inapplicable(
                f"neither a probe nor a data sheet gives the memory bandwidth of {gpu.title}"
            )
        bandwidth = REACHABLE_BANDWIDTH * peak
    links = gpu.reachable_link_bytes_per_second
    if links is None and gpu.peaks.nvlink_bytes_per_second:
        links = REACHABLE_LINK * gpu.peaks.nvlink_bytes_per_second
    return Rates(
        link_bytes_per_second=links,
        bytes_per_second=bandwidth,
        linear_flops=reachable_flops(gpu, model.compute_precision),
        attention_flops=reachable_flops(gpu, model.data_type),
    )


def reachable_flops(gpu: GpuWindow, precision: str) -> float:
    """FLOP/s of matrix products in a precision: probed, else inferred from the probe of another.

    Raises Inapplicable if the silicon does not support the precision.
    """
    peak = gpu.peaks.flops.get(precision)
    probed = gpu.reachable_flops.get(precision)
    if probed is not None:
        return probed
    if not peak:
        raise Inapplicable(f"{gpu.title} ({gpu.name}) has no {precision} arithmetic")
    shares = _reached_shares(gpu)
    return peak * (sum(shares) / len(shares) if shares else REACHABLE_FLOPS)


def _reached_shares(gpu: GpuWindow) -> list[float]:
    """The probed share of the peak of each precision."""
    peaks = gpu.peaks.flops
    return [value / peaks[name] for name, value in gpu.reachable_flops.items() if peaks.get(name)]


@dataclass(frozen=True, slots=True)
class Change:
    """A pass after the lever was pulled: the new step and other known differences.

    `produced` is its tokens over those of today's pass, over all replicas. `busy_factor` and
    `gap_factor` multiply the model's busy time and gaps; `excess_factor` multiplies the time above
    the roofline if that is constant. `added_seconds` are added on top.
    """

    step: Step
    produced: float = 1.0
    busy_factor: float = 1.0
    gap_factor: float = 1.0
    excess_factor: float = 1.0
    added_seconds: float = 0.0


def with_batch(step: Step, factor: float) -> Step:
    """The step with `factor` times the running requests, and the prompts that feed them."""
    return replace(
        step,
        decode_tokens=step.decode_tokens * factor,
        prefill_tokens=step.prefill_tokens * factor,
        prompts=step.prompts * factor,
    )


class Corner(NamedTuple):
    """One assumption about each of the unknowns."""

    hidden: float
    proportional: float
    few_rows: float = 1.0
    links: float = 1.0


def throughput_ratio(today: Step, changes: Iterable[Change]) -> Interval:
    """Throughput over today's: the span over all given changes and all unknowns."""
    hidden = _HIDDEN_ON_CPU if today.on_cpu else _HIDDEN_ON_GPU
    few_rows = _FEW_ROWS_ON_CPU if today.on_cpu else _FEW_ROWS_ON_GPU
    changes = tuple(changes)
    linked = any(each.step.link_seconds_per_token for each in changes)
    links = _LINKS if linked or today.link_seconds_per_token else (1.0,)
    fits = [
        (corner, _fitted(today, corner))
        for corner in (Corner(*each) for each in product(hidden, _PROPORTIONAL, few_rows, links))
    ]
    spans = [_span([_ratio(today, change, *fit) for fit in fits]) for change in changes]
    return Interval(min(span.low for span in spans), max(span.high for span in spans))


def _span(ratios: list[float]) -> Interval:
    """The span of the corners without its outer ends: not all unknowns are extreme at once."""
    low, high = min(ratios), max(ratios)
    trimmed = _TRIMMED * (high - low)
    return Interval(low + trimmed, high - trimmed)


def _fitted(today: Step, corner: Corner) -> float:
    """How much faster than probed memory must be to explain the measured time of the pass.

    1 unless the roofline is longer than the measured time, which means that one of its rates is too
    low. The memory rate is corrected: a probe on a busy machine reads less than an engine does,
    while the FLOPS of large matrix products are rarely exceeded. 0 if even infinite bandwidth would
    not explain it.
    """
    if today.roofline(corner) <= today.busy_seconds:
        return 1.0
    low, high = 1.0, _FASTEST_MEMORY
    if _faster_memory(today, high).roofline(corner) > today.busy_seconds:
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _faster_memory(today, middle).roofline(corner) > today.busy_seconds:
            low = middle
        else:
            high = middle
    return high


def _faster_memory(step: Step, factor: float) -> Step:
    rate = step.rates.bytes_per_second * factor
    return replace(step, rates=replace(step.rates, bytes_per_second=rate))


def _ratio(today: Step, change: Change, corner: Corner, memory: float) -> float:
    ideal = _faster_memory(today, memory or 1.0).roofline(corner)
    excess = today.busy_seconds - ideal
    after = _faster_memory(change.step, memory or 1.0).roofline(corner)
    if excess <= 0 or corner.proportional:
        busy = after * today.busy_seconds / ideal
    else:
        busy = after + excess * change.excess_factor
    busy = busy * change.busy_factor + change.added_seconds
    seconds = busy + change.step.gap_seconds * change.gap_factor
    return change.produced * today.seconds / seconds


def margin(interval: Interval, share: float) -> Interval:
    """The interval, widened by `share` on both sides."""
    return Interval(interval.low * (1.0 - share), interval.high * (1.0 + share))
