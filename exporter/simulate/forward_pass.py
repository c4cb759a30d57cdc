"""A forward pass on simulated silicon: the time of its kernels, and the bytes and FLOPs that they move.

A pass runs kernel after kernel; each takes the larger of its memory time and its compute time, plus a
share of the smaller one (`Behaviour.exposed`), plus a latency. Matrix products compute whole tiles and
reach less of the peak with few rows.

Nothing here is imported from `exporter.advice` or from `exporter.inference`: FLOPs and bytes are
derived independently from the matrices.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Silicon:
    """The peak of a GPU: FLOP/s by precision at the maximum clock, memory bytes/s, memory bytes."""

    flops: Mapping[str, float]
    bandwidth: float
    link_bandwidth: float
    memory: float


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts instead of a dense feed-forward part; `intermediate` is per expert."""

    count: int
    active: int
    intermediate: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer with grouped attention, and how its numbers are stored."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    weight_bytes: float = 2.0
    cache_bytes: float = 2.0
    arithmetic: str = "bf16"
    experts: Experts | None = None

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the dense matrices of a layer: qkv, output, gate-and-up, down."""
        query = self.heads * self.head_size
        cached = 2 * self.key_value_heads * self.head_size
        attention = ((self.hidden, query + cached), (query, self.hidden))
        return attention if self.experts else attention + self._feed_forward(self.intermediate)

    @property
    def expert_matrices(self) -> tuple[tuple[int, int], ...]:
        """The same for one expert; empty in a dense model."""
        return self._feed_forward(self.experts.intermediate) if self.experts else ()

    def _feed_forward(self, intermediate: int) -> tuple[tuple[int, int], ...]:
        return ((self.hidden, 2 * intermediate), (intermediate, self.hidden))

    @property
    def stored_bytes(self) -> float:
        """Bytes of all weights; embedding and head are stored in 16 bits."""
        layer = sum(rows * columns for rows, columns in self.matrices)
        if self.experts:
            layer += self.experts.count * sum(r * c for r, c in self.expert_matrices)
        return self.layers * layer * self.weight_bytes + 4.0 * self.hidden * self.vocabulary

    @property
    def cache_bytes_per_token(self) -> float:
        """Bytes of the keys and values of one token, over all layers."""
        return self.layers * 2 * self.key_value_heads * self.head_size * self.cache_bytes


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Hidden parameters: the efficiency of the kernels and the host."""

    exposed: float = 0.2  # share of the smaller of memory and compute time that is not hidden
    matrix_efficiency: float = 0.7  # share of the peak, with many rows
    low_precision_efficiency: float = 0.9  # share of that, in fp8 and fp4
    half_rows: float = 40.0  # rows at which a product reaches half its rate
    tile_rows: int = 64
    weight_streaming: float = 0.82  # share of the theoretical bandwidth
    cache_streaming: float = 0.75
    attention_efficiency: float = 0.5
    bandwidth_clock: float = 0.5  # below this clock the SMs cannot use the full bandwidth
    activation_passes: float = (
        6.0  # transfers of hidden-size activations to or from memory per layer
    )
    cache_expansion: float = 0.08  # share of the attention time, if the cache is not in 16 bits
    quantization: float = 0.015  # share of a product's time, if activations are quantized first
    kernel_latency_seconds: float = 2.5e-6
    kernel_gap_seconds: float = 0.5e-6
    host_seconds: float = 0.6e-3
    host_seconds_per_request: float = 4e-6
    link_efficiency: float = 0.7
    link_latency_seconds: float = 8e-6
    filled: float = 0.85  # share of the SMs that a running kernel keeps busy
    expert_skew: float = (
        0.3  # the popularity of the n-th expert is proportional to n to the power of minus this
    )
    expert_tile_rows: int = 16


@dataclass(frozen=True, slots=True)
class Member:
    """One GPU of the group: its clock over the maximum, and its speed relative to its siblings."""

    clock: float = 1.0
    memory_speed: float = 1.0
    compute_speed: float = 1.0


@dataclass(slots=True)
class Pass:
    """The work of a forward pass: decoded sequences and their keys, prefilled tokens and pairs."""

    decoded: int
    keys: float
    prefilled: int = 0
    pairs: float = 0.0
    ended: int = 0


@dataclass(slots=True)
class Cost:
    """The cost of a pass on one GPU."""

    seconds: float = 0.0
    gaps: float = 0.0
    tensor: float = 0.0
    dram: float = 0.0
    link: float = 0.0


class Kernels:
    """Kernel times of one pass on one GPU of the group."""

    def __init__(
        self, silicon: Silicon, shape: Shape, hidden: Behaviour, member: Member, group: int
    ) -> None:
        """`member` is one GPU of a tensor-parallel group of this size."""
        self._hidden, self._shape = hidden, shape
        self._group = group
        speed = member.clock * member.compute_speed
        self._peak = silicon.flops[shape.arithmetic] * member.clock
        self._low = shape.arithmetic in {"fp8", "fp4"}
        share = hidden.low_precision_efficiency if self._low else 1.0
        self._matrix_rate = (
            silicon.flops[shape.arithmetic] * speed * hidden.matrix_efficiency * share
        )
        self._plain_peak = silicon.flops["bf16"] * member.clock
        self._head_rate = silicon.flops["bf16"] * speed * hidden.matrix_efficiency
        self._attention_rate = silicon.flops["bf16"] * speed * hidden.attention_efficiency
        starved = min(1.0, member.clock / hidden.bandwidth_clock)
        bandwidth = silicon.bandwidth * member.memory_speed * starved
        self._weights = bandwidth * hidden.weight_streaming
        self._cache = bandwidth * hidden.cache_streaming
        self._latency = hidden.kernel_latency_seconds / (0.5 + 0.5 * member.clock)
        self._link = silicon.link_bandwidth * hidden.link_efficiency
        self._routed: dict[int, tuple[float, float]] = {}
        self._popularity = _popularity(shape.experts, hidden.expert_skew)

    def cost(self, work: Pass) -> Cost:
        """The cost of a pass: all layers, then the head for the tokens that need logits."""
        layer, total = Cost(), Cost()
        rows = work.decoded + work.prefilled
        for matrix in self._shape.matrices:
            self._product(layer, rows, matrix, self._shape.weight_bytes, low=self._low)
        if self._shape.experts:
            self._experts(layer, rows, self._shape.experts)
        self._attention(layer, work)
        self._elementwise(layer, rows)
        if self._group > 1:
            self._all_reduce(layer, rows)
        layers = self._shape.layers
        for name in ("seconds", "gaps", "tensor", "dram", "link"):
            setattr(total, name, layers * getattr(layer, name))
        logits = work.decoded + work.ended
        if logits:
            head = (self._shape.hidden, self._shape.vocabulary)
            self._product(total, logits, head, 2.0, low=False)
        return total

    def _end(self, cost: Cost, memory: float, compute: float) -> None:
        exposed = self._hidden.exposed * min(memory, compute)
        cost.seconds += max(memory, compute) + exposed + self._latency
        cost.gaps += self._hidden.kernel_gap_seconds

    def _product(
        self, cost: Cost, rows: int, matrix: tuple[int, int], value_bytes: float, *, low: bool
    ) -> None:
        inputs, outputs = matrix
        tile = self._hidden.tile_rows
        padded = tile * -(-rows // tile)
        size = inputs * outputs / self._group
        moved = size * value_bytes + 2.0 * rows * (inputs + outputs) / self._group
        self._multiply(cost, padded, size, moved, low=low)

    def _multiply(self, cost: Cost, rows: float, size: float, moved: float, *, low: bool) -> None:
        """`rows` of whole tiles with a matrix of `size` numbers; `low`: in the model's precision."""
        flops = 2.0 * rows * size
        rate = self._matrix_rate if low or not self._low else self._head_rate
        peak = self._peak if low or not self._low else self._plain_peak
        compute = flops / rate * (1.0 + self._hidden.half_rows / max(rows, 1.0))
        if low:
            compute *= 1.0 + self._hidden.quantization
        self._end(cost, moved / self._weights, compute)
        cost.tensor += flops / peak
        cost.dram += moved

    def _experts(self, cost: Cost, rows: int, experts: Experts) -> None:
        """Grouped products: the weights of the selected experts, whole tiles for each."""
        touched, padded = self._routed.get(rows) or self._route(rows)
        for inputs, outputs in self._shape.expert_matrices:
            size = inputs * outputs / self._group
            routed = rows * experts.active
            moved = touched * size * self._shape.weight_bytes
            moved += 2.0 * routed * (inputs + outputs) / self._group
            self._multiply(cost, padded, size, moved, low=self._low)

    def _route(self, rows: int) -> tuple[float, float]:
        """The number of experts selected by this many tokens, and the rows of all their tiles."""
        asked = [1.0 - (1.0 - share) ** rows for share in self._popularity]
        tile = self._hidden.expert_tile_rows
        padded = tile * sum(
            some * max(1.0, math.ceil(rows * share / tile / max(some, 1e-9)))
            for some, share in zip(asked, self._popularity, strict=True)
        )
        self._routed[rows] = sum(asked), padded
        return self._routed[rows]

    def _attention(self, cost: Cost, work: Pass) -> None:
        shape, group = self._shape, self._group
        key = 2 * shape.key_value_heads * shape.head_size * shape.cache_bytes
        copies = max(1.0, group / shape.key_value_heads)
        per_pair = 4.0 * shape.heads * shape.head_size / group
        expanded = 1.0 + (self._hidden.cache_expansion if shape.cache_bytes < 2 else 0.0)
        if work.decoded:
            moved = work.keys * key * copies / group
            flops = work.keys * per_pair
            self._end(cost, expanded * moved / self._cache, flops / self._attention_rate)
            cost.dram += moved
            cost.tensor += flops / self._plain_peak
        if work.prefilled:
            flops = work.pairs * per_pair
            moved = work.prefilled * key * copies / group
            self._end(cost, moved / self._cache, flops / self._attention_rate)
            cost.dram += moved
            cost.tensor += flops / self._plain_peak

    def _elementwise(self, cost: Cost, rows: int) -> None:
        moved = 2.0 * rows * self._shape.hidden * self._hidden.activation_passes
        self._end(cost, moved / self._weights, 0.0)
        self._end(cost, 0.0, 0.0)
        cost.dram += moved

    def _all_reduce(self, cost: Cost, rows: int) -> None:
        """Two ring all-reduces a layer: each GPU sends 2 (n - 1) / n of the data, twice per hop."""
        group = self._group
        sent = 2.0 * rows * self._shape.hidden * 2.0 * (group - 1) / group
        latency = self._hidden.link_latency_seconds * (1.0 + 0.25 * (group - 2))
        cost.seconds += 2.0 * (sent / self._link + latency)
        cost.link += 2.0 * sent


def _popularity(experts: Experts | None, skew: float) -> tuple[float, ...]:
    """The probability of each expert to be among those selected by a token."""
    if experts is None:
        return ()
    drawn = [rank**-skew for rank in range(1, experts.count + 1)]
    return tuple(min(1.0, experts.active * each / sum(drawn)) for each in drawn)
