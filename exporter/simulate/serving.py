"""An inference engine simulated pass by pass: the ground truth for testing the levers.

Requests arrive, wait for a place in the batch and for room in the KV cache, are prefilled in chunks
and decoded one token per pass (`forward_pass.py` has its time). The host leaves gaps between kernels
and between passes; a tensor-parallel group waits for its slowest GPU twice a layer.

Nothing here is imported from `exporter.advice` or from `exporter.inference`. What a lever changes is a
field of Setup, and what the exporter would see is in Counters.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

from exporter.simulate.forward_pass import Behaviour, Kernels, Member, Pass, Shape, Silicon


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

    def kernels(self) -> list[Kernels]:
        """The kernels on the GPUs of the group; GPUs that are alike are taken once."""
        return [
            Kernels(self.silicon, self.shape, self.behaviour, member, len(self.members))
            for member in dict.fromkeys(self.members)
        ]


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

    def plus(self, other: "Counters", factor: float = 1.0) -> "Counters":
        """The sum of each counter and `factor` times the other's."""
        return Counters(
            *(getattr(self, f.name) + factor * getattr(other, f.name) for f in fields(Counters))
        )


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
        self._kernels = setup.kernels()
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
                before = replace(self.counters)
            self._one_pass()
        return self.counters.plus(before or Counters(), -1.0)

    def run_until(self, seconds: float) -> None:
        """Run passes until this time of the engine's clock; the last pass may end after it."""
        while self.counters.seconds < seconds:
            self._one_pass(seconds)

    def reconfigure(self, setup: Setup) -> None:
        """Continue with the same requests under another setup."""
        self._setup = setup
        self._kernels = setup.kernels()

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._decoding) + len(self._prefilling)

    def _one_pass(self, until: float = math.inf) -> None:
        counters = self.counters
        self._arrive()
        if not self.running and not self._queue:
            # Nothing to do until the next request arrives.
            counters.seconds = min(until, max(counters.seconds, self._next_at))
            return
        work = Pass(decoded=len(self._decoding), keys=self._keys + len(self._decoding))
        self._keys = work.keys
        self._prefill(work)
        costs = [kernels.cost(work) for kernels in self._kernels]
        slow = max(costs, key=lambda cost: cost.seconds)
        hidden = self._setup.behaviour
        running = self.running
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
            while len(self._queue) < traffic.clients - self.running:
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
        running = self.running
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
