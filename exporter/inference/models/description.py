"""The shape of a transformer: all that its FLOPs and bytes depend on, and nothing else."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """Multi-head attention with grouped keys and values (GQA; MQA with one group, MHA with all).

    Source: Ainslie et al., "GQA", arXiv 2305.13245.
    """

    query_heads: int
    key_value_heads: int
    head_size: int
    query_key_value_bias: bool = False
    output_bias: bool = False
    # Size of the RMS norms over queries and keys, both together; 0 without them.
    query_key_norm_size: int = 0
    # One learned logit per head (attention sinks, as in GPT-OSS).
    sinks: bool = False
    # The output is gated by another projection of the input (Qwen3-Next).
    gated_output: bool = False

    def matrix_parameters(self, hidden_size: int) -> int:
        """Parameters of the projections: query, key, value, output."""
        query_size = self.query_heads * self.head_size
        key_value_size = self.key_value_heads * self.head_size
        return hidden_size * ((2 + self.gated_output) * query_size + 2 * key_value_size)

    def vector_parameters(self, hidden_size: int) -> int:
        """Parameters of biases and norms, which do no matrix work."""
        query_size = self.query_heads * self.head_size
        bias = query_size + 2 * self.key_value_heads * self.head_size
        return (
            self.query_key_value_bias * bias
            + self.output_bias * hidden_size
            + self.query_key_norm_size
            + self.sinks * self.query_heads
        )

    @property
    def prefill_pair_flops(self) -> int:
        """FLOPs for one query attending to one key: a dot product and a weighted sum per head."""
        return 4 * self.query_heads * self.head_size

    @property
    def decode_pair_flops(self) -> int:
        """As in prefill."""
        return self.prefill_pair_flops

    # Every key within the window is attended to; nothing chooses among them, nothing is carried.
    index_pair_flops = 0
    index_cache_bytes = 0
    token_flops = 0
    state_values = 0

    @property
    def cached_values(self) -> int:
        """Numbers kept in the KV cache per token and layer: keys and values."""
        return 2 * self.key_value_heads * self.head_size

    def cache_copies(self, tensor_parallel: int) -> float:
        """How many GPUs of a tensor-parallel group hold (and read) each cached number.

        Key-value heads are split over the group; with more GPUs than heads they are replicated.
        """
        return max(1.0, tensor_parallel / self.key_value_heads)


@dataclass(frozen=True, slots=True)
class Indexer:
    """Chooses the keys that a query attends to, by a cheap score of all of them.

    Source: DeepSeek-AI, "DeepSeek-V3.2" (technical report, 2025), DeepSeek Sparse Attention.
    """

    heads: int
    head_size: int

    def matrix_parameters(self, hidden_size: int, query_rank: int) -> int:
        """Parameters of the index query, the index key and the weights of the heads."""
        query = query_rank * self.heads * self.head_size
        return query + hidden_size * (self.head_size + self.heads)

    @property
    def pair_flops(self) -> int:
        """FLOPs for the score of one query and key: a dot product per head, and their sum."""
        return 2 * self.heads * self.head_size + 2 * self.heads

    @property
    def cache_bytes(self) -> int:
        """Bytes of one cached index key: fp8 with a 32-bit scale per 128 numbers."""
        return self.head_size + 4 * (self.head_size // 128)


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (MLA): keys and values compressed into one latent per token.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; DeepSeek-V3, arXiv 2412.19437.
    """

    query_heads: int
    query_rank: int  # 0: queries are not compressed
    latent_rank: int
    plain_head_size: int  # "nope": without rotary embedding
    rotary_head_size: int
    value_head_size: int
    # With sparse attention, the window of the layer is the number of keys that are chosen.
    indexer: Indexer | None = None

    def matrix_parameters(self, hidden_size: int) -> int:
        """Parameters of the down and up projections, the output projection and the indexer."""
        query_size = self.query_heads * (self.plain_head_size + self.rotary_head_size)
        query = (
            hidden_size * self.query_rank + self.query_rank * query_size
            if self.query_rank
            else hidden_size * query_size
        )
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
    def prefill_pair_flops(self) -> int:
        """FLOPs for one query and key with keys and values expanded, as engines run prefill."""
        return (
            2
            * self.query_heads
            * (self.plain_head_size + self.rotary_head_size + self.value_head_size)
        )

    @property
    def decode_pair_flops(self) -> int:
        """FLOPs for one query and key in the absorbed form, as engines run decode.

        The query is projected into the latent space, so the dot product runs over the latent and
        the rotary part, and the weighted sum over the latent. DeepSeek-V2, section 2.1.2.
        """
        return 2 * self.query_heads * (2 * self.latent_rank + self.rotary_head_size)

    # Nothing is carried from token to token but the cache.
    token_flops = 0
    state_values = 0

    @property
    def index_pair_flops(self) -> int:
        """FLOPs for the index score of one query and key, over the whole context."""
        return self.indexer.pair_flops if self.indexer else 0

    @property
    def index_cache_bytes(self) -> int:
        """Bytes of the index key kept per token and layer, and read for every new token."""
        return self.indexer.cache_bytes if self.indexer else 0

    @property
    def cached_values(self) -> int:
        """Numbers kept in the cache per token and layer: the latent and the rotary key."""
        return self.latent_rank + self.rotary_head_size

    def cache_copies(self, tensor_parallel: int) -> float:
        """Every GPU of a tensor-parallel group holds and reads the whole latent."""
        return float(tensor_parallel)


@dataclass(frozen=True, slots=True)
class RecurrentMixer:
    """A layer that carries a state of fixed size instead of attending to its context.

    Gated delta networks (Yang et al., arXiv 2412.06464), Kimi delta attention (arXiv 2510.26692),
    Mamba-2 (Dao and Gu, arXiv 2405.21060). Work per token does not depend on the context; it is
    counted in the recurrent form, whatever chunks an engine computes a prompt in.
    """

    # Projections and the short convolution before the state.
    matrices: int
    vectors: int
    # Numbers of the state of one sequence, in this layer.
    state_values: int
    # FLOPs of one token against the state: what is read from it and written to it.
    token_flops: int

    def matrix_parameters(self, hidden_size: int) -> int:
        """Parameters of projections and convolution; the sizes are in them already."""
        return self.matrices

    def vector_parameters(self, hidden_size: int) -> int:
        """Parameters of biases, decays and norms."""
        return self.vectors

    # It looks at no other token and caches none.
    prefill_pair_flops = 0
    decode_pair_flops = 0
    index_pair_flops = 0
    index_cache_bytes = 0
    cached_values = 0

    def cache_copies(self, tensor_parallel: int) -> float:
        """The state is split over the heads."""
        return 1.0


# A layer that has a feed-forward part and nothing else (Nemotron-H).
NO_MIXER = RecurrentMixer(matrices=0, vectors=0, state_values=0, token_flops=0)

Attention = GroupedAttention | LatentAttention | RecurrentMixer


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """The routed and shared experts of a layer. Source: Jiang et al., arXiv 2401.04088."""

    experts: int
    active_experts: int
    intermediate_size: int
    # All shared experts together, 0 without.
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    expert_bias: bool = False
    router_bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """`count` layers of one kind: same attention, same window, same feed-forward part."""

    count: int
    attention: Attention
    # Tokens that a query may look back at, itself included; None: all.
    window: int | None
    # The dense feed-forward part; 0 in a layer of experts.
    intermediate_size: int
    mixture: MixtureOfExperts | None = None


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes per parameter of each part, scales and zero points of quantization included."""

    attention: float = 2.0
    dense: float = 2.0
    experts: float = 2.0
    shared_experts: float = 2.0
    head: float = 2.0
    # Embedding, router, norms and biases: never quantized in practice.
    other: float = 2.0


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A transformer without cross-attention, as far as its FLOPs and bytes are concerned."""

    model_type: str
    hidden_size: int
    vocabulary_size: int
    layers: tuple[LayerGroup, ...]
    # Matrices of a feed-forward part: 3 with a gate (SwiGLU, GeGLU), 2 without.
    feed_forward_matrices: int = 3
    feed_forward_bias: bool = False
    norms_per_layer: int = 2
    norm_bias: bool = False
    tied_embeddings: bool = False
    learned_positions: int = 0
    weights: WeightBytes = field(default_factory=WeightBytes)
    # Storage type of unquantized weights, and the precision of the matrix products.
    data_type: str = "bf16"
    compute_precision: str = "bf16"
    cache_value_bytes: float = 2.0
    state_value_bytes: float = 2.0
    # Encoders attend to the tokens after them too, and have no output head.
    causal: bool = True
    output_head: bool = True
    # Vectors beside the layers, where they are more than a final norm.
    other_vectors: int = 0

    @property
    def layer_count(self) -> int:
        """Layers of the decoder."""
        return sum(group.count for group in self.layers)
