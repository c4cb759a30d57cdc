"""An inference engine simulated pass by pass: the ground truth for testing the levers.

Requests arrive, wait for a place in the batch and for room in the KV cache, are prefilled in chunks
and decoded one token a pass. A pass runs kernel after kernel; each takes the larger of its memory
time and its compute time, plus a share of the smaller one (`Behaviour.exposed`), plus a latency.
Matrix products compute whole tiles and reach less of the peak with few rows; the host leaves gaps
between kernels and between passes; a tensor-parallel group waits for its slowest GPU twice a layer.

Nothing here is imported from `exporter.advice` or from `exporter.inference`: FLOPs and bytes are
derived independently from the matrices. What a lever changes is a field of Setup, and what the
exporter would see is in Counters.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields


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


@dataclass(frozen=True, slots=True)
class Traffic:
    """The request traffic, with lognormal lengths.

    Either `clients` that always have one request in flight (closed loop), or `arrivals_per_second`
    independent of the service rate (open loop).
    """

    prompt_mean: float
    prompt_sigma: float
    answer_mean: float
    answer_sigma: float
    clients: int = 0
    arrivals_per_second: float = 0.0
    seed: int = 1

    def requests(self) -> Iterator[tuple[int, int, float]]:
        """Endless tuples of prompt tokens, answer tokens and seconds since the last arrival."""
        stream = random.Random(self.seed)
        rate = self.arrivals_per_second
        while True:
            yield (
                self._length(stream, self.prompt_mean, self.prompt_sigma),
                self._length(stream, self.answer_mean, self.answer_sigma),
                stream.expovariate(rate) if rate else 0.0,
            )

    @staticmethod
    def _length(stream: random.Random, mean: float, sigma: float) -> int:
        drawn = stream.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)
        return max(2, min(int(drawn), int(12 * mean)))


@dataclass(frozen=True, slots=True)
class Setup:
    """An engine on its GPUs under its traffic."""

    silicon: Silicon
    shape: Shape
    traffic: Traffic
    behaviour: Behaviour = field(default_factory=Behaviour)
    members: tuple[Member, ...] = (Member(),)
    batch_limit: int = 64
    chunk_tokens: int = 4096
    hit_ratio: float = 0.0  # share of each prompt found in the prefix cache

    @property
    def cache_tokens(self) -> float:
        """Tokens that fit in the KV cache."""
        count = len(self.members)
        room = 0.9 * self.silicon.memory - self.shape.stored_bytes / count
        return max(0.0, room) * count / self.shape.cache_bytes_per_token


@dataclass(slots=True)
class Counters:
    """The cumulative counters that the exporter could see; queue and cache are time integrals."""

    seconds: float = 0.0
    kernel_seconds: float = 0.0
    sm_seconds: float = 0.0
    tensor_seconds: float = 0.0
    dram_bytes: float = 0.0
    link_bytes: float = 0.0
    passes: float = 0.0
    prefill_tokens: float = 0.0
    cached_tokens: float = 0.0
    decode_tokens: float = 0.0
    prompts: float = 0.0
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    answers: float = 0.0
    running: float = 0.0  # request seconds
    waiting: float = 0.0
    cache_tokens: float = 0.0  # token seconds

    def minus(self, before: "Counters") -> "Counters":
        """The difference of each counter."""
        return Counters(
            **{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(Counters)}
        )

    def copy(self) -> "Counters":
        """An independent copy."""
        return Counters(**{f.name: getattr(self, f.name) for f in fields(Counters)})


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

    def __init__(self, setup: Setup, member: Member) -> None:
        hidden, shape, silicon = setup.behaviour, setup.shape, setup.silicon
        self._hidden, self._shape = hidden, shape
        self._group = len(setup.members)
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
        self,
        cost: Cost,
        rows: int,
        matrix: tuple[int, int],
        value_bytes: float,
        *,
        low: bool,
    ) -> None:
        inputs, outputs = matrix
        tile = self._hidden.tile_rows
        padded = tile * -(-rows // tile)
        size = inputs * outputs / self._group
        moved = size * value_bytes + 2.0 * rows * (inputs + outputs) / self._group
        flops = 2.0 * padded * size
        rate = self._matrix_rate if low or not self._low else self._head_rate
        peak = self._peak if low or not self._low else self._plain_peak
        compute = flops / rate * (1.0 + self._hidden.half_rows / padded)
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
            flops = 2.0 * padded * size
            compute = flops / self._matrix_rate * (1.0 + self._hidden.half_rows / max(padded, 1.0))
            if self._low:
                compute *= 1.0 + self._hidden.quantization
            self._end(cost, moved / self._weights, compute)
            cost.tensor += flops / self._peak
            cost.dram += moved

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


@dataclass(slots=True)
class _Sequence:
    prompt: int
    left: int
    done: int
    answer: int


class Engine:
    """Runs passes until a number of requests have been admitted to the batch."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._kernels = [Kernels(setup, member) for member in dict.fromkeys(setup.members)]
        self._requests = setup.traffic.requests()
        self._queue: deque[tuple[int, int]] = deque()
        self._next = next(self._requests)
        self._next_at = self._next[2]
        self._prefilling: deque[_Sequence] = deque()
        self._decoding: list[tuple[int, int, int]] = []  # last pass, keys at that point, answer
        self._keys = 0.0  # of all decoding sequences, at present
        self._admitted = 0
        self._step = 0
        self.counters = Counters()

    def run(self, first: int, last: int) -> Counters:
        """The counters between the admission of request `first` and that of request `last`."""
        before: Counters | None = None
        while self._admitted < last:
            if before is None and self._admitted >= first:
                before = self.counters.copy()
            self._one_pass()
        return self.counters.minus(before or Counters())

    def run_until(self, seconds: float) -> None:
        """Run passes until this time of the engine's clock; the last pass may end after it."""
        while self.counters.seconds < seconds:
            self._one_pass(seconds)

    def reconfigure(self, setup: Setup) -> None:
        """Continue with the same requests under another setup."""
        self._setup = setup
        self._kernels = [Kernels(setup, member) for member in dict.fromkeys(setup.members)]

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._decoding) + len(self._prefilling)

    @property
    def admitted(self) -> int:
        """Requests admitted to the batch so far."""
        return self._admitted

    def _one_pass(self, until: float = math.inf) -> None:
        counters = self.counters
        self._arrive()
        running = len(self._decoding) + len(self._prefilling)
        if not running and not self._queue:
            # Nothing to do until the next request arrives.
            counters.seconds = min(until, max(counters.seconds, self._next_at))
            return
        work = Pass(decoded=len(self._decoding), keys=self._keys + len(self._decoding))
        self._keys = work.keys
        self._prefill(work)
        costs = [kernels.cost(work) for kernels in self._kernels]
        slow = max(costs, key=lambda cost: cost.seconds)
        hidden = self._setup.behaviour
        running = len(self._decoding) + len(self._prefilling)
        host = hidden.host_seconds + hidden.host_seconds_per_request * running
        elapsed = slow.seconds + slow.gaps + host
        counters.seconds += elapsed
        counters.kernel_seconds += slow.seconds
        counters.sm_seconds += slow.seconds * hidden.filled
        counters.tensor_seconds += slow.tensor
        counters.dram_bytes += slow.dram
        counters.link_bytes += slow.link
        counters.passes += 1
        counters.running += elapsed * running
        counters.waiting += elapsed * self._waiting(running)
        counters.cache_tokens += elapsed * self._used()
        counters.decode_tokens += work.decoded
        self._step += 1
        self._finish()

    def _waiting(self, running: int) -> int:
        clients = self._setup.traffic.clients
        return max(0, clients - running) if clients else len(self._queue)

    def _used(self) -> float:
        return self._keys + sum(sequence.done for sequence in self._prefilling)

    def _arrive(self) -> None:
        traffic = self._setup.traffic
        if traffic.clients:
            taken = len(self._decoding) + len(self._prefilling)
            while len(self._queue) < traffic.clients - taken:
                prompt, answer, _ = self._next
                self._queue.append((prompt, answer))
                self._next = next(self._requests)
            return
        while self._next_at <= self.counters.seconds:
            self._queue.append(self._next[:2])
            self._next = next(self._requests)
            self._next_at += self._next[2]

    def _prefill(self, work: Pass) -> None:
        """Fill the chunk: prompts already started, then new ones that fit."""
        budget = self._setup.chunk_tokens
        position = 0
        while budget > 0:
            if position == len(self._prefilling) and not self._admit():
                break
            sequence = self._prefilling[position]
            taken = min(budget, sequence.left)
            work.pairs += taken * sequence.done + taken * (taken + 1) / 2
            work.prefilled += taken
            sequence.left -= taken
            sequence.done += taken
            budget -= taken
            if sequence.left:
                break
            work.ended += 1
            position += 1
        self.counters.prefill_tokens += work.prefilled
        for _ in range(position):
            self._start(self._prefilling.popleft())

    def _admit(self) -> bool:
        setup, counters = self._setup, self.counters
        running = len(self._decoding) + len(self._prefilling)
        if not self._queue or running >= setup.batch_limit:
            return False
        prompt, answer = self._queue[0]
        if running and self._used() + prompt > 0.97 * setup.cache_tokens:
            return False
        self._queue.popleft()
        cached = min(prompt - 1, int(setup.hit_ratio * prompt))
        counters.cached_tokens += cached
        counters.prompt_tokens += prompt
        self._prefilling.append(_Sequence(prompt, prompt - cached, cached, answer))
        self._admitted += 1
        return True

    def _start(self, sequence: _Sequence) -> None:
        """The prompt's last chunk produced the first token; the rest are decoded, one per pass."""
        self.counters.prompts += 1
        self.counters.decode_tokens += 1
        left = sequence.answer - 1
        keys = sequence.prompt + left
        heapq.heappush(self._decoding, (self._step + left, keys, sequence.answer))
        self._keys += sequence.prompt

    def _finish(self) -> None:
        while self._decoding and self._decoding[0][0] < self._step:
            _, keys, answer = heapq.heappop(self._decoding)
            self._keys -= keys
            self.counters.answers += 1
            self.counters.answer_tokens += answer
