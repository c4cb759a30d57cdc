"""Useful FLOPs and necessary bytes: per token, per pass, and of an engine's work between two scrapes.

FLOPs are the work that tokens need, however the engine computes them. Counted are matrix products
(two FLOPs per multiply-add): projections, feed-forward parts, routers, attention over the real
context, the output head where logits are computed. Not counted, as in the definitions of MFU by PaLM
(arXiv 2204.02311, appendix B) and Megatron (arXiv 2104.04473): norms, activations, softmax, embedding
look-ups, and work that an engine wastes (padding, recomputation after preemption, rejected drafts).
Tensor, pipeline, expert and data parallelism spread the same FLOPs over more GPUs: nothing here
depends on them.

Bytes are the device memory traffic that tokens require: weights once per pass, and the KV cache.
Activations are left out: fused kernels and the L2 cache keep most of them off device memory, and in
decode they are small compared with weights and cache. The result is the traffic of a perfect
engine, the MBU numerator of Databricks ("LLM Inference Performance Engineering: Best Practices",
2023), and a lower bound of the values of the memory counters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from exporter.inference.models import (
    Extras,
    LayerGroup,
    ModelDescription,
    count_parameters,
    feed_forward_parameters,
)
from exporter.inference.models.attention import Attention


# Tokens of one prefill pass, if unknown: the common default chunk of vLLM on data-center GPUs,
# SGLang and TensorRT-LLM.
PREFILL_CHUNK_TOKENS = 8192


@lru_cache(maxsize=256)
def linear_flop_per_token(model: ModelDescription) -> int:
    """Return 2·N FLOPs, with N the matrix parameters per token, without attention and head.

    Layers with a state add their work on it, which does not depend on the context; so do products
    without parameters, such as those that mix the streams of a residual.

    Source: Kaplan et al., arXiv 2001.08361, section 2.1; active experts only, arXiv 2401.04088.
    """
    others = model.extras.token_flop + sum(
        group.count * (group.attention.token_flop + group.extras.token_flop)
        for group in model.layers
    )
    return 2 * count_parameters(model).matrices_per_token + others


def head_flop_per_token(model: ModelDescription) -> int:
    """Return 2·D·V FLOPs: the logits of one token."""
    return 2 * model.hidden_size * model.vocabulary_size


def prefill_attention_flop(
    model: ModelDescription, new_tokens: float, cached_tokens: float = 0.0
) -> float:
    """Return the attention FLOPs of one prompt of which `cached_tokens` came from a cache.

    Per layer 4·heads·head_size per query-key pair: the product with the keys and the one with the
    values (PaLM, appendix B, forward pass), over causal pairs within the layer's window. Sparse
    attention also scores all keys for selection. In an encoder every token attends to all.
    """
    if not model.causal:
        whole = new_tokens + cached_tokens
        return new_tokens * sum(
            group.count
            * group.attention.prefill_pair_flop
            * group.attention.keys(whole, group.window)
            for group in model.layers
        )
    return sum(
        group.count
        * _attention_flop(group, group.attention.prefill_pair_flop, new_tokens, cached_tokens)
        for group in model.layers
    )


def decode_attention_flop(model: ModelDescription, context_tokens: float) -> float:
    """Return the attention FLOPs of one decoded token that attends to `context_tokens` keys.

    The token itself is included.
    """
    return sum(
        group.count
        * (
            group.attention.decode_pair_flop * group.attention.keys(context_tokens, group.window)
            + group.attention.index_pair_flop * group.attention.index_keys(context_tokens)
        )
        for group in model.layers
    )


def decode_attention_flop_after(
    model: ModelDescription, tokens: float, context_tokens: float
) -> float:
    """Return the attention FLOPs of one sequence's `tokens` decoded after `context_tokens` others.

    The j-th of them attends to context + j keys, itself included: the same pairs as in a prompt.
    """
    return sum(
        group.count
        * _attention_flop(group, group.attention.decode_pair_flop, tokens, context_tokens)
        for group in model.layers
    )


def _attention_flop(
    group: LayerGroup, pair_flop: int, new_tokens: float, cached_tokens: float
) -> float:
    """FLOPs of one layer for new tokens, including the scores that select keys."""
    attention = group.attention
    flop = pair_flop * attention.pairs(new_tokens, cached_tokens, group.window)
    if attention.index_pair_flop:
        flop += attention.index_pair_flop * attention.index_pairs(new_tokens, cached_tokens)
    return flop


def experts_touched(experts: int, active_experts: int, tokens: float) -> float:
    """Return the mean number of distinct experts of a layer that a pass over `tokens` reads.

    Each token picks `active_experts` of `experts`; if the picks are uniform and independent, an
    expert stays untouched with probability (1 - k/E)^T, so E·(1 - (1 - k/E)^T) are touched. Never
    more than min(T·k, E). Real routers are uneven, so the true number is a little lower.
    """
    if tokens <= 0:
        return 0.0
    if tokens < 1:
        # A fraction of a token: the mean of none and one.
        return tokens * active_experts
    untouched: float = (1 - active_experts / experts) ** tokens
    return experts * (1 - untouched)


def weight_bytes_per_pass(
    model: ModelDescription, tokens: float, *, with_head: bool, ranks: int = 1
) -> float:
    """Return the weight bytes that one forward pass over `tokens` reads from all GPUs together.

    Dense weights are read once for any batch size; experts only if a token is routed to them.
    Tensor and pipeline parallelism split the same bytes over more GPUs. The embedding is a look-up
    of a few rows and not counted; the output head is read if logits are computed.

    With `ranks` data-parallel ranks each reads its own copy of the dense weights, but the experts
    are spread over all of them: the pass is one of `ranks` that run together, whose tokens use the
    same experts.
    """
    counts = count_parameters(model)
    total = _shared_bytes(model) + counts.head * model.weights.head * with_head
    for group in model.layers:
        if group.mixture is not None:
            mixture = group.mixture
            expert = feed_forward_parameters(model, mixture.intermediate_size)
            touched = experts_touched(mixture.experts, mixture.active_experts, tokens * ranks)
            total += group.count * touched / ranks * expert * model.weights.experts
    return total


def _shared_bytes(model: ModelDescription) -> float:
    """Weight bytes of all matrices that every token uses, without the output head."""
    counts, weights = count_parameters(model), model.weights
    return (
        counts.attention * weights.attention
        + counts.dense * weights.dense
        + counts.shared_experts * weights.shared_experts
        + counts.router * weights.other
        + _extra_bytes(model.extras, model)
        + sum(group.count * _extra_bytes(group.extras, model) for group in model.layers)
    )


def _extra_bytes(extras: Extras, model: ModelDescription) -> float:
    size = model.weights.other if extras.value_bytes is None else extras.value_bytes
    return extras.matrices * size


def stored_weight_bytes(model: ModelDescription) -> float:
    """Return the bytes of all stored weights: the memory of the model without any cache."""
    counts = count_parameters(model)
    other = counts.embedding + counts.looked_up + counts.vectors + counts.prologue
    head = 0 if model.tied_embeddings else counts.head
    return (
        _shared_bytes(model)
        + counts.experts * model.weights.experts
        + head * model.weights.head
        + other * model.weights.other
    )


def cache_bytes_per_token(model: ModelDescription, tensor_parallel: int = 1) -> float:
    """Return the KV-cache bytes written for one new token, in all layers and copies.

    Per layer 2·kv_heads·head_size numbers, or the latent and the rotary key of MLA. Tensor
    parallelism beyond the number of key-value heads keeps copies.
    """
    return sum(
        group.count
        * group.attention.cache_copies(tensor_parallel)
        * (
            group.attention.written_values * model.cache_value_bytes
            + group.attention.index_cache_bytes * group.attention.index_keys_per_token
        )
        for group in model.layers
    )


def cache_bytes_read(
    model: ModelDescription, context_tokens: float, tensor_parallel: int = 1
) -> float:
    """Return the KV-cache bytes that one sequence reads in one pass over its context.

    A windowed layer reads at most its window, a sparse one the selected keys and the whole index. A
    speculative pass verifies several tokens of one sequence and reads the cache once for all of
    them.
    """
    return _read_bytes(
        model,
        tensor_parallel,
        1.0 if context_tokens else 0.0,
        lambda group: group.attention.keys(context_tokens, group.window),
        lambda attention: attention.index_keys(context_tokens),
    )


def cache_bytes_read_by(
    model: ModelDescription, tokens: float, context_tokens: float, tensor_parallel: int = 1
) -> float:
    """Return the KV-cache bytes that `tokens` decoded after `context_tokens` others read.

    Each token takes its own pass and reads what it attends to, including itself.
    """
    return _read_bytes(
        model,
        tensor_parallel,
        tokens,
        lambda group: group.attention.pairs(tokens, context_tokens, group.window),
        lambda attention: attention.index_pairs(tokens, context_tokens),
    )


def _read_bytes(
    model: ModelDescription,
    tensor_parallel: int,
    passes: float,
    keys_of: Callable[[LayerGroup], float],
    index_keys_of: Callable[[Attention], float],
) -> float:
    """Cache bytes that passes of one sequence read, with the keys and index keys of each layer."""
    total = 0.0
    for group in model.layers:
        attention = group.attention
        values = attention.cached_values * keys_of(group) * model.cache_value_bytes
        index = 0.0
        if attention.index_cache_bytes:
            index = attention.index_cache_bytes * index_keys_of(attention)
        # A state left by an earlier pass is read and written back.
        state = 2 * attention.state_values * model.state_value_bytes * passes
        total += group.count * (attention.cache_copies(tensor_parallel) * (values + index) + state)
    return total + prologue_cache_bytes(model) * passes


def prologue_cache_bytes(model: ModelDescription) -> float:
    """Return the bytes that a prompt's prologue stores in the cache, read by every later pass."""
    return model.prologue.cached_values * model.cache_value_bytes if model.prologue else 0.0


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
    """Prompts whose last position was computed. 0 for an encoder, which generates no tokens."""
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
    if model.prologue:  # an encoder's weights, read when a prompt starts
        weights += passes * model.prologue.matrices * model.weights.dense
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
