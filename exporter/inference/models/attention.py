"""The mixers of a layer: the products, cache and reads of each kind of attention.

Every kind provides its parameters, the FLOPs of one query-key pair, the keys that a query sees, and
the count of cached numbers per token.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass


class Attention(ABC):
    """The mixer of a layer. By default a query sees every key within the window."""

    __slots__ = ()

    # Numbers of the state that is carried from token to token instead of a cache, and FLOPs of a
    # token on it, which do not depend on the context.
    state_values = 0
    token_flop = 0

    @abstractmethod
    def matrix_parameters(self, hidden_size: int) -> int:
        """Parameters that are multiplied with every token."""

    @abstractmethod
    def vector_parameters(self, hidden_size: int) -> int:
        """Parameters of biases and norms, which are not in matrix products."""

    @property
    @abstractmethod
    def prefill_pair_flop(self) -> int:
        """FLOPs for one query attending to one key."""

    @property
    def decode_pair_flop(self) -> int:
        """As in prefill, unless engines run decode in another form."""
        return self.prefill_pair_flop

    @property
    def index_pair_flop(self) -> int:
        """FLOPs of the score by which one query selects or leaves out one key."""
        return 0

    @property
    def index_cache_bytes(self) -> int:
        """Bytes of one cached index key."""
        return 0

    @property
    def index_keys_per_token(self) -> float:
        """Index keys added per token."""
        return 1.0

    @property
    @abstractmethod
    def cached_values(self) -> int:
        """Numbers of one key and its value in the cache."""

    @property
    def written_values(self) -> float:
        """Numbers that a token adds to the cache."""
        return float(self.cached_values)

    def cache_copies(self, tensor_parallel: int) -> float:
        """The number of GPUs of a tensor-parallel group that hold (and read) each cached number."""
        return float(tensor_parallel)

    def pairs(self, new: float, cached: float, window: int | None) -> float:
        """Query-key pairs of `new` tokens after `cached` ones."""
        return causal_pairs(new, cached, window)

    def index_pairs(self, new: float, cached: float) -> float:
        """Candidate pairs that are scored for selection."""
        return causal_pairs(new, cached)

    def keys(self, context: float, window: int | None) -> float:
        """Keys that one token sees at a context of that many tokens, itself included."""
        return context if window is None else min(context, window)

    def index_keys(self, context: float) -> float:
        """Index keys that one token is scored against."""
        return context


@dataclass(frozen=True, slots=True)
class Indexer:
    """Selects the keys that a query attends to, by a cheap score over all keys.

    Source: DeepSeek-AI, "DeepSeek-V3.2" (technical report, 2025), DeepSeek Sparse Attention.
    """

    heads: int
    head_size: int

    def matrix_parameters(self, hidden_size: int, query_rank: int) -> int:
        """Parameters of the index query, the index key and the weights of the heads."""
        query = query_rank * self.heads * self.head_size
        return query + hidden_size * (self.head_size + self.heads)

    @property
    def pair_flop(self) -> int:
        """FLOPs for the score of one query and key: one dot product per head, and their sum."""
        return 2 * self.heads * self.head_size + 2 * self.heads

    @property
    def cache_bytes(self) -> int:
        """Bytes of one cached index key: fp8 with a 32-bit scale per 128 numbers."""
        return self.head_size + 4 * (self.head_size // 128)


@dataclass(frozen=True, slots=True)
class BlockSelector:
    """Selects blocks of keys by the best score in each, separately per key-value head (MiniMax-M3).

    `blocks` includes the block of the query itself, which is always seen.
    """

    heads: int
    head_size: int
    block_tokens: int
    blocks: int

    def matrix_parameters(self, hidden_size: int) -> int:
        """Parameters of the index queries and the one index key."""
        return hidden_size * (self.heads + 1) * self.head_size


@dataclass(frozen=True, slots=True)
class GroupedAttention(Attention):
    """Multi-head attention with grouped keys and values (GQA; MQA with one group, MHA with all).

    Source: Ainslie et al., "GQA", arXiv 2305.13245.
    """

    query_heads: int
    key_value_heads: int
    head_size: int
    query_key_value_bias: bool = False
    output_bias: bool = False
    # Total size of the RMS norms over queries and keys; 0 without them.
    query_key_norm_size: int = 0
    # One learned logit per head (attention sinks, as in GPT-OSS).
    sinks: bool = False
    # The output is gated by another projection of the input: as wide as the output (Qwen3-Next), or
    # one number per head (Step 3.5).
    gated_output: bool = False
    head_gate: bool = False
    # Size of a value if it differs from that of a key (MiMo-V2); 0 means the same.
    value_head_size: int = 0
    # Whether values have their own projection; Gemma 4 uses the keys' projection for both.
    value_projection: bool = True
    # Keys and values come from another layer: none are projected or cached (Gemma 3n).
    shared_cache: bool = False
    # Queries come through a low rank with a norm (Step 3); 0: directly from the input.
    query_rank: int = 0
    selector: BlockSelector | None = None

    @property
    def _value_size(self) -> int:
        return self.value_head_size or self.head_size

    def matrix_parameters(self, hidden_size: int) -> int:
        """Parameters of the projections: query, key, value, output, gates and index."""
        query = self.query_heads * self.head_size
        output = self.query_heads * self._value_size
        keys_and_values = self.key_value_heads * (
            self.head_size + self._value_size * self.value_projection
        )
        through = self.query_rank * query
        sizes = (
            (self.query_rank or query)
            + output * (1 + self.gated_output)
            + self.query_heads * self.head_gate
            + keys_and_values * (not self.shared_cache)
        )
        index = self.selector.matrix_parameters(hidden_size) if self.selector else 0
        return hidden_size * sizes + through + index

    def vector_parameters(self, hidden_size: int) -> int:
        """Parameters of biases and norms, which are not in matrix products."""
        query_size = self.query_heads * self.head_size
        bias = query_size + self.key_value_heads * (self.head_size + self._value_size)
        return (
            self.query_key_value_bias * bias
            + self.output_bias * hidden_size
            + self.query_key_norm_size
            + self.query_rank
            + self.sinks * self.query_heads
            + (2 * self.selector.head_size if self.selector else 0)
        )

    @property
    def prefill_pair_flop(self) -> int:
        """FLOPs for one query attending to one key: a dot product and a weighted sum per head."""
        return 2 * self.query_heads * (self.head_size + self._value_size)

    @property
    def cached_values(self) -> int:
        """Numbers of a key and its value in the KV cache."""
        return self.key_value_heads * (self.head_size + self._value_size)

    @property
    def written_values(self) -> float:
        """Numbers that a token adds to the KV cache."""
        return 0.0 if self.shared_cache else float(self.cached_values)

    def cache_copies(self, tensor_parallel: int) -> float:
        """Key-value heads are split over the group; with more GPUs than heads they are replicated."""
        return max(1.0, tensor_parallel / self.key_value_heads)

    @property
    def index_pair_flop(self) -> int:
        """FLOPs for the score of one query and key: a dot product per index head."""
        return 2 * self.selector.heads * self.selector.head_size if self.selector else 0

    @property
    def index_cache_bytes(self) -> int:
        """Bytes of one cached index key, in 16 bits."""
        return 2 * self.selector.head_size if self.selector else 0

    def pairs(self, new: float, cached: float, window: int | None) -> float:
        """Query-key pairs of `new` tokens after `cached` ones."""
        if self.selector:
            return block_pairs(new, cached, self.selector.block_tokens, self.selector.blocks)
        return causal_pairs(new, cached, window)

    def keys(self, context: float, window: int | None) -> float:
        """Keys that one token sees; on average half of its own block."""
        if self.selector:
            size = self.selector.block_tokens
            most = size * (self.selector.blocks - 1) + (size + 1) / 2
            return context if context <= size * self.selector.blocks else most
        return Attention.keys(self, context, window)


@dataclass(frozen=True, slots=True)
class LatentAttention(Attention):
    """Multi-head latent attention (MLA): keys and values compressed into one latent per token.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; DeepSeek-V3, arXiv 2412.19437.
    """

    query_heads: int
    query_rank: int  # 0: queries are not compressed
    latent_rank: int
    plain_head_size: int  # "nope": without rotary embedding
    rotary_head_size: int
    value_head_size: int
    # With sparse attention, the window of the layer is the number of selected keys.
    indexer: Indexer | None = None

    def matrix_parameters(self, hidden_size: int) -> int:
        """Parameters of the down and up projections, the output projection and the indexer."""
        query_size = self.query_heads * (self.plain_head_size + self.rotary_head_size)
        rank = self.query_rank
        query = rank * (hidden_size + query_size) if rank else hidden_size * query_size
        down = hidden_size * (self.latent_rank + self.rotary_head_size)
        up = self.latent_rank * self.query_heads * (self.plain_head_size + self.value_head_size)
        output = self.query_heads * self.value_head_size * hidden_size
        index = self.indexer.matrix_parameters(hidden_size, self.query_rank) if self.indexer else 0
        return query + down + up + output + index

    def vector_parameters(self, hidden_size: int) -> int:
        """Parameters of the norms over the compressed query, the latent and the index key."""
        index = 2 * self.indexer.head_size if self.indexer else 0
        return self.query_rank + self.latent_rank + index

    @property
    def prefill_pair_flop(self) -> int:
        """FLOPs for one query and key with keys and values expanded, as engines run prefill."""
        head_size = self.plain_head_size + self.rotary_head_size + self.value_head_size
        return 2 * self.query_heads * head_size

    @property
    def decode_pair_flop(self) -> int:
        """FLOPs for one query and key in the absorbed form, as engines run decode.

        The query is projected into the latent space, so the dot product runs over the latent and
        the rotary part, and the weighted sum over the latent. DeepSeek-V2, section 2.1.2.
        """
        return 2 * self.query_heads * (2 * self.latent_rank + self.rotary_head_size)

    @property
    def index_pair_flop(self) -> int:
        """FLOPs for the index score of one query and key, over the whole context."""
        return self.indexer.pair_flop if self.indexer else 0

    @property
    def index_cache_bytes(self) -> int:
        """Bytes of the index key, kept per token and layer and read for every new token."""
        return self.indexer.cache_bytes if self.indexer else 0

    @property
    def cached_values(self) -> int:
        """Numbers kept in the cache per token and layer: the latent and the rotary key."""
        return self.latent_rank + self.rotary_head_size


@dataclass(frozen=True, slots=True)
class CompressedAttention(Attention):
    """DeepSeek-V4: one key that is its own value, a window, and compressed entries beyond it.

    A query sees the window and one entry for each full group of `ratio` tokens: all entries
    (heavily compressed attention) or the best `chosen` ones by an indexer (compressed sparse
    attention). The output is projected group by group, through a low rank. Source: DeepSeek-AI,
    "DeepSeek-V4" (2026), section 2.3, and the class in Hugging Face transformers.
    """

    query_heads: int
    head_size: int
    query_rank: int
    output_groups: int
    output_rank: int
    ratio: int = 0  # 0: only the window
    chosen: int = 0  # 0: every entry
    index_heads: int = 0
    index_head_size: int = 0

    def matrix_parameters(self, hidden_size: int) -> int:
        """Parameters of the projections of queries, the key and the output; see `compressor`."""
        query_size = self.query_heads * self.head_size
        index_size = self.index_heads * self.index_head_size
        outer = self.query_rank + self.head_size + self.output_groups * self.output_rank
        inner = self.query_rank * (query_size + index_size) + query_size * self.output_rank
        return hidden_size * outer + inner

    def compressor_parameters(self, hidden_size: int) -> int:
        """Parameters that produce the entries, their index keys and the heads' weights.

        Sparse entries overlap: each token is part of two entries and is projected twice.
        """
        if not self.ratio:
            return 0
        overlap = 2 if self.chosen else 1
        sizes = 2 * overlap * (self.head_size + self.index_head_size) + self.index_heads
        return hidden_size * sizes

    def vector_parameters(self, hidden_size: int) -> int:
        """Parameters of norms, sinks and the positions within a group."""
        vectors = self.query_rank + self.head_size + self.query_heads
        if self.ratio:
            overlap = 2 if self.chosen else 1
            vectors += (self.ratio * overlap + 1) * (self.head_size + self.index_head_size)
        return vectors

    @property
    def prefill_pair_flop(self) -> int:
        """FLOPs for one query and one key or entry: a dot product and a weighted sum per head."""
        return 4 * self.query_heads * self.head_size

    @property
    def index_pair_flop(self) -> int:
        """FLOPs for the score of one query and entry: a dot product per head, and their sum."""
        return 2 * self.index_heads * (self.index_head_size + 1)

    @property
    def index_cache_bytes(self) -> int:
        """Bytes of one cached index key: fp8 with a 32-bit scale per 128 numbers."""
        return self.index_head_size + 4 * (self.index_head_size // 128)

    @property
    def index_keys_per_token(self) -> float:
        """An index key for each group of tokens."""
        return 1 / self.ratio if self.chosen else 0.0

    @property
    def cached_values(self) -> int:
        """Numbers of one cached key or entry: it is its own value."""
        return self.head_size

    @property
    def written_values(self) -> float:
        """Numbers that a token adds: its key, and its share of an entry."""
        return self.head_size * (1 + (1 / self.ratio if self.ratio else 0.0))

    def pairs(self, new: float, cached: float, window: int | None) -> float:
        """Query-key pairs: within the window, and with the entries."""
        near = causal_pairs(new, cached, window)
        if not self.ratio:
            return near
        return near + compressed_pairs(new, cached, self.ratio, self.chosen or None)

    def index_pairs(self, new: float, cached: float) -> float:
        """Pairs that are scored: with all entries."""
        return compressed_pairs(new, cached, self.ratio) if self.chosen else 0.0

    def keys(self, context: float, window: int | None) -> float:
        """Keys and entries that one token sees."""
        near = Attention.keys(self, context, window)
        if not self.ratio:
            return near
        entries = context // self.ratio
        return near + (min(entries, self.chosen) if self.chosen else entries)

    def index_keys(self, context: float) -> float:
        """Entries against which one token is scored."""
        return context // self.ratio if self.chosen else 0.0


# The functions below take means as well as counts, so their arguments may be fractions: a sum over
# tokens is exact at whole numbers and linear in between.
def causal_pairs(
    new_tokens: float, cached_tokens: float = 0.0, window: float | None = None
) -> float:
    """Return the query-key pairs when `new_tokens` are computed after `cached_tokens`.

    Token j (from 1) attends to the `cached_tokens` before it, to the new ones before it and to
    itself: cached + j keys, at most `window`. Summed: n·c + n(n+1)/2 without a window; the half of
    n² is the causal mask.
    """
    new, cached = new_tokens, cached_tokens
    if window is None or cached + new <= window:
        return new * cached + new * (new + 1) / 2
    if cached >= window:
        return new * window
    growing = window - cached
    return growing * cached + growing * (growing + 1) / 2 + (new - growing) * window


def compressed_pairs(
    new_tokens: float, cached_tokens: float, ratio: int, limit: int | None = None
) -> float:
    """Return the pairs with compressed entries, one for each full group of `ratio` tokens.

    The token at position t (from 1) sees floor(t / ratio) entries, at most `limit`.
    """

    def until(tokens: int) -> float:
        capped = 0
        if limit is not None and tokens >= ratio * limit:
            capped = tokens - ratio * limit + 1
            tokens = ratio * limit - 1
        groups, rest = divmod(tokens, ratio)
        return ratio * groups * (groups - 1) / 2 + groups * (rest + 1) + capped * (limit or 0)

    return _between(until, cached_tokens, new_tokens)


def block_pairs(new_tokens: float, cached_tokens: float, block_tokens: int, blocks: int) -> float:
    """Return the pairs if each query sees `blocks` blocks of keys, always including its own.

    Blocks hold `block_tokens` keys. The token at position t (from 1) sees all t keys while they
    fill no more than `blocks`; then blocks - 1 full ones and its own up to itself.
    """
    whole = block_tokens * blocks

    def until(tokens: int) -> float:
        free = min(tokens, whole)
        pairs = free * (free + 1) / 2
        groups, rest = divmod(tokens - free, block_tokens)
        own = groups * block_tokens * (block_tokens + 1) / 2 + rest * (rest + 1) / 2
        return pairs + (tokens - free) * (whole - block_tokens) + own

    return _between(until, cached_tokens, new_tokens)


def _between(until: Callable[[int], float], cached_tokens: float, new_tokens: float) -> float:
    def linear(tokens: float) -> float:
        low = math.floor(tokens)
        share = tokens - low
        return until(low) if not share else (1 - share) * until(low) + share * until(low + 1)

    return linear(cached_tokens + new_tokens) - linear(cached_tokens)
