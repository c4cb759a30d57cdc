"""An engine's work between two scrapes, and its cost: from tokens to FLOPs and bytes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from exporter.inference.models.description import ModelDescription
from exporter.inference.models.flops import (
    decode_attention_flop_after,
    head_flop_per_token,
    linear_flop_per_token,
    prefill_attention_flop,
)
from exporter.inference.models.memory import (
    cache_bytes_per_token,
    cache_bytes_read,
    cache_bytes_read_by,
    prologue_bytes_per_pass,
    prologue_cache_bytes,
    weight_bytes_per_pass,
)


# Tokens of one prefill pass, if unknown: the common default chunk of vLLM on data-center GPUs,
# SGLang and TensorRT-LLM.
PREFILL_CHUNK_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Stretch:
    """`weight` sequences that computed `new` tokens after `cached` existing ones.

    A prompt is one stretch, its answer another. A negative weight subtracts what an earlier window
    had counted for running sequences.
    """

    weight: float
    cached: float
    new: float


@dataclass(frozen=True, slots=True)
class Work:
    """The tokens of one window, and the stretches that determine their attention."""

    prefill_tokens: float = 0.0  # prompt tokens computed here, without cache hits
    decode_tokens: float = 0.0  # tokens generated, including the first of each prompt
    prompts: float = 0.0  # first tokens of answers among the above: not from a decode pass
    first_tokens: float | None = None  # logits of prompts, if counted separately from answers
    rejected_tokens: float = 0.0  # drafts that were verified and rejected
    acceptance_length: float = 1.0  # tokens that one sequence gains per pass
    prefills: tuple[Stretch, ...] = ()
    decodes: tuple[Stretch, ...] = ()
    # Forward passes, summed over ranks. None: unknown, and thus the bytes are unknown too.
    prefill_passes: float | None = None
    decode_passes: float | None = None
    # Data-parallel ranks that run their passes together: they share the experts of a layer.
    ranks: int = 1
    chunk_tokens: float = PREFILL_CHUNK_TOKENS


@dataclass(frozen=True, slots=True)
class Cost:
    """Useful FLOPs and necessary bytes of a window, over all GPUs of the workload.

    May be negative in a window that corrects an earlier estimate; only sums over windows matter.
    """

    prefill_flop: float = 0.0
    decode_flop: float = 0.0
    prefill_bytes: float = 0.0
    decode_bytes: float = 0.0

    @property
    def dram_bytes(self) -> float:
        """Bytes of both phases."""
        return self.prefill_bytes + self.decode_bytes

    @property
    def flop(self) -> float:
        """FLOPs of both phases."""
        return self.prefill_flop + self.decode_flop

    def __add__(self, other: "Cost") -> "Cost":
        """The sum of both."""
        return self._combined(other, lambda mine, theirs: mine + theirs)

    def __sub__(self, other: "Cost") -> "Cost":
        """The difference of both."""
        return self._combined(other, lambda mine, theirs: mine - theirs)

    def at_least(self, other: "Cost") -> "Cost":
        """The larger value of each part."""
        return self._combined(other, max)

    def _combined(self, other: "Cost", combine: Callable[[float, float], float]) -> "Cost":
        return Cost(
            combine(self.prefill_flop, other.prefill_flop),
            combine(self.decode_flop, other.decode_flop),
            combine(self.prefill_bytes, other.prefill_bytes),
            combine(self.decode_bytes, other.decode_bytes),
        )


def cost_of(model: ModelDescription, work: Work, tensor_parallel: int = 1) -> Cost:
    """Return the cost of `work` on `model`.

    A prompt's first token is produced by its prefill pass, so its FLOPs beyond the logits belong to
    prefill, and one token per prompt needs no decode pass.
    """
    return Cost(
        prefill_flop=_prefill_flop(model, work),
        decode_flop=_decode_flop(model, work),
        prefill_bytes=_prefill_bytes(model, work, tensor_parallel),
        decode_bytes=_decode_bytes(model, work, tensor_parallel),
    )


def decoded_tokens(work: Work) -> float:
    """Tokens produced by decode passes."""
    return max(0.0, work.decode_tokens - work.prompts)


def chunk_count(new_tokens: float, chunk_tokens: float) -> float:
    """Return the number of passes for a prompt of `new_tokens`, at most `chunk_tokens` in each."""
    return float(-(-new_tokens // chunk_tokens)) if new_tokens > 0 else 0.0


def _first_tokens(work: Work) -> float:
    """Prompts whose last position was computed. None for an encoder, which generates no tokens."""
    if work.first_tokens is None or work.first_tokens == work.prompts:
        return min(work.prompts, work.decode_tokens)
    return work.first_tokens


def _prefill_flop(model: ModelDescription, work: Work) -> float:
    begun = model.prologue.flop if model.prologue else 0
    return (
        work.prefill_tokens * linear_flop_per_token(model)
        + _first_tokens(work) * (head_flop_per_token(model) + begun)
        + sum(
            stretch.weight * prefill_attention_flop(model, stretch.new, stretch.cached)
            for stretch in work.prefills
        )
    )


def _decode_flop(model: ModelDescription, work: Work) -> float:
    per_token = linear_flop_per_token(model) + head_flop_per_token(model)
    return decoded_tokens(work) * per_token + sum(
        stretch.weight * decode_attention_flop_after(model, stretch.new, stretch.cached)
        for stretch in work.decodes
    )


def _prefill_bytes(model: ModelDescription, work: Work, tensor_parallel: int) -> float:
    """Weights once per pass, writes of every new token, and the contexts that chunks read.

    Passes that include a prompt read more experts than the others.
    """
    # Embeddings are computed without the output head.
    head = work.decode_tokens > 0 or not work.prompts
    passes = work.prefill_passes or 0.0
    weights = _passes(model, passes, work.prefill_tokens, work.ranks, head=head)
    weights += passes * prologue_bytes_per_pass(model)
    reads = sum(
        weight * cache_bytes_read(model, context, tensor_parallel)
        for weight, context in _chunk_contexts(work.prefills, work.chunk_tokens)
    )
    written = work.prefill_tokens * cache_bytes_per_token(model, tensor_parallel)
    written += _first_tokens(work) * prologue_cache_bytes(model)
    return weights + written + reads


def _decode_bytes(model: ModelDescription, work: Work, tensor_parallel: int) -> float:
    """Weights once per pass, writes of every verified token, and the contexts that passes read."""
    verified = decoded_tokens(work) + work.rejected_tokens
    weights = _passes(model, work.decode_passes or 0.0, verified, work.ranks, head=True)
    reads = sum(
        stretch.weight * cache_bytes_read_by(model, stretch.new, stretch.cached, tensor_parallel)
        for stretch in work.decodes
    )
    # A speculative pass verifies several tokens of a sequence and reads its context once.
    reads /= work.acceptance_length
    return weights + verified * cache_bytes_per_token(model, tensor_parallel) + reads


def _passes(
    model: ModelDescription, passes: float, tokens: float, ranks: int, *, head: bool
) -> float:
    if passes <= 0:
        return 0.0
    # If passes are counted while they run and answers when they end, assume at least one token
    # each.
    each = max(1.0, tokens / passes)
    return passes * weight_bytes_per_pass(model, each, with_head=head, ranks=ranks)


def _chunk_contexts(
    prefills: Iterable[Stretch], chunk_tokens: float
) -> Iterable[tuple[float, float]]:
    """(weight, context) of every chunk: the cached tokens and the chunks before it."""
    for stretch in prefills:
        chunks = int(chunk_count(stretch.new, chunk_tokens))
        if chunks <= 1:
            yield stretch.weight, stretch.cached
        else:
            # That many chunks at the mean context: except for windowed layers, the sum is the same.
            mean = stretch.cached + chunk_tokens * (chunks - 1) / 2
            yield stretch.weight * chunks, mean
