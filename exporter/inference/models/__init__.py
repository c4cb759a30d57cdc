"""The shape of a transformer: exactly the facts on which its FLOPs and bytes depend.

With its parameter counts, part by part, and its matrix products.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from exporter.errors import FlopwatchError
from exporter.inference.models.attention import Attention, GroupedAttention, LatentAttention


@dataclass(frozen=True, slots=True)
class Extras:
    """Parts of a layer, or of the model, other than attention and feed-forward parts."""

    # Parameters multiplied with every token.
    matrices: int = 0
    # Norms, biases and scales; negative if the family's usual norms are missing.
    vectors: int = 0
    # FLOPs of a token in products without parameters.
    token_flop: int = 0
    # Bytes per parameter if they differ from the model's data type.
    value_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Prologue:
    """Work of each prompt before its first token, such as audio for Whisper's encoder.

    Its size is constant, because shorter audio is padded.
    """

    flop: int
    # Parameters, the vectors among them, and numbers that the decoder reads in every later pass.
    matrices: int
    vectors: int
    cached_values: int


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """The routed and shared experts of a layer. Source: Jiang et al., arXiv 2401.04088."""

    experts: int
    active_experts: int
    intermediate_size: int
    # All shared experts together; 0 without any.
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    expert_bias: bool = False
    router_bias: bool = False
    # Experts that pass a token on unchanged (LongCat); `active_experts` are those that compute.
    zero_experts: int = 0


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """`count` layers of one kind: same attention, same window, same feed-forward part."""

    count: int
    attention: Attention
    # Tokens that a query may attend to, itself included; None means all.
    window: int | None
    # The dense feed-forward part; 0 in a layer of experts.
    intermediate_size: int
    mixture: MixtureOfExperts | None = None
    extras: Extras = Extras()


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
    """A model that generates tokens, reduced to what determines its FLOPs and bytes."""

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
    # Encoders also attend to later tokens and have no output head.
    causal: bool = True
    output_head: bool = True
    # Vectors outside the layers, if more than a final norm.
    other_vectors: int = 0
    extras: Extras = Extras()
    # Parameters of further tables of which a token reads one row (Gemma 3n).
    looked_up: int = 0
    prologue: Prologue | None = None
    # Parts of the served model whose work is not counted, because no engine reports enough about
    # it.
    not_counted: tuple[str, ...] = ()

    @property
    def layer_count(self) -> int:
        """Layers of the decoder."""
        return sum(group.count for group in self.layers)


@dataclass(frozen=True, slots=True)
class Stack:
    """Every layer, from first to last, and the other parts of the model."""

    layers: tuple[LayerGroup, ...]
    # Fields of ModelDescription that differ from the default.
    traits: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def groups(self) -> tuple[LayerGroup, ...]:
        """The layers, grouped by kind."""
        counted = Counter(self.layers)
        return tuple(replace(layer, count=count) for layer, count in counted.items())

    @property
    def dense(self) -> tuple[int, ...]:
        """Indices of the layers with a dense feed-forward part."""
        return tuple(n for n, layer in enumerate(self.layers) if layer.intermediate_size)

    @property
    def experts(self) -> tuple[int, ...]:
        """Indices of the layers with experts."""
        return tuple(n for n, layer in enumerate(self.layers) if layer.mixture is not None)


class ModelDescriptionError(FlopwatchError):
    """A model cannot be described: its tokens are still counted, but not its FLOPs."""


class UnknownArchitectureError(ModelDescriptionError):
    """A config.json lacks fields that the formulas need, or uses layers that they do not cover."""

    def __init__(
        self,
        model_type: str,
        *,
        missing_fields: Sequence[str] = (),
        reason: str = "",
    ) -> None:
        self.model_type = model_type
        self.missing_fields = tuple(missing_fields)
        what = f"missing fields: {', '.join(self.missing_fields)}" if missing_fields else reason
        super().__init__(f"unsupported model architecture {model_type!r}: {what}")


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters of a model by part; matrices are separate from other parameters."""

    embedding: int
    attention: int
    dense: int
    experts: int
    active_experts: int
    shared_experts: int
    router: int
    head: int  # as a matrix; stored once with the embedding if the two are tied
    vectors: int  # norms and biases
    idle_expert_vectors: int  # biases of experts to which a token is not routed
    tied_embeddings: bool
    extras: int = 0  # matrices other than attention and feed-forward parts
    looked_up: int = 0  # other tables of which a token reads one row
    # Stored, but not used by tokens of the decoder: an encoder, whose work is counted per prompt.
    prologue: int = 0

    @property
    def total(self) -> int:
        """All stored parameters."""
        stored_head = 0 if self.tied_embeddings else self.head
        tables = self.embedding + self.looked_up + stored_head
        return tables + self._matrices(self.experts) + self.vectors + self.prologue

    @property
    def active(self) -> int:
        """Parameters that one token uses: all except the experts to which it is not routed."""
        idle = self.experts - self.active_experts + self.idle_expert_vectors
        return self.total - idle - self.prologue

    @property
    def matrices_per_token(self) -> int:
        """Parameters multiplied with one token, without the output head."""
        return self._matrices(self.active_experts)

    def _matrices(self, experts: int) -> int:
        parts = self.attention + self.dense + self.shared_experts + self.router + self.extras
        return parts + experts


@lru_cache(maxsize=256)
def count_parameters(model: ModelDescription) -> ParameterCounts:
    """Return the parameter counts of `model`.

    Multi-token-prediction heads and vision or audio towers are not counted: they are not part
    of the language model that serves a token.
    """
    hidden = model.hidden_size
    table = model.vocabulary_size * hidden
    attention = dense = experts = active = shared = router = idle_vectors = 0
    extras, vectors = model.extras.matrices, model.extras.vectors
    for group in model.layers:
        extras += group.count * group.extras.matrices
        attention += group.count * group.attention.matrix_parameters(hidden)
        dense += group.count * feed_forward_parameters(model, group.intermediate_size)
        vectors += group.count * _layer_vectors(model, group)
        if group.mixture is None:
            continue
        mixture = group.mixture
        expert = feed_forward_parameters(model, mixture.intermediate_size)
        experts += group.count * mixture.experts * expert
        active += group.count * mixture.active_experts * expert
        shared += group.count * feed_forward_parameters(model, mixture.shared_intermediate_size)
        router += (
            group.count * hidden * (mixture.experts + mixture.zero_experts + mixture.shared_gate)
        )
        if mixture.expert_bias:
            idle = mixture.experts - mixture.active_experts
            idle_vectors += (
                group.count * idle * _feed_forward_bias(model, mixture.intermediate_size)
            )
    final_norm = model.other_vectors or hidden * (1 + model.norm_bias)
    positions = model.learned_positions * hidden
    return ParameterCounts(
        embedding=table + positions,
        attention=attention,
        dense=dense,
        experts=experts,
        active_experts=active,
        shared_experts=shared,
        router=router,
        head=table if model.output_head else 0,
        vectors=vectors + final_norm,
        idle_expert_vectors=idle_vectors,
        tied_embeddings=model.tied_embeddings,
        extras=extras,
        looked_up=model.looked_up,
        prologue=model.prologue.matrices + model.prologue.vectors if model.prologue else 0,
    )


def feed_forward_parameters(model: ModelDescription, intermediate_size: int) -> int:
    """Return the matrix parameters of one feed-forward part, or of one expert."""
    return model.feed_forward_matrices * model.hidden_size * intermediate_size


def _layer_vectors(model: ModelDescription, group: LayerGroup) -> int:
    """Norms and biases of one layer."""
    hidden = model.hidden_size
    norms = model.norms_per_layer * hidden * (1 + model.norm_bias)
    vectors = norms + group.attention.vector_parameters(hidden) + group.extras.vectors
    if model.feed_forward_bias and group.intermediate_size:
        vectors += _feed_forward_bias(model, group.intermediate_size)
    if group.mixture is not None:
        mixture = group.mixture
        if mixture.expert_bias:
            vectors += mixture.experts * _feed_forward_bias(model, mixture.intermediate_size)
        if mixture.router_bias:
            vectors += mixture.experts + mixture.zero_experts
    return vectors


def _feed_forward_bias(model: ModelDescription, intermediate_size: int) -> int:
    return (model.feed_forward_matrices - 1) * intermediate_size + model.hidden_size


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """Tokens by weights: `n` columns of weights, `k` rows. `part` is its purpose.

    Weights are split as Megatron-LM does (Shoeybi et al., arXiv 1909.08053): expanding projections
    by columns, reducing ones by rows. Projections that engines compute in one call (query, key and
    value; gate and up) count as one product.
    """

    part: str
    precision: str
    n: int
    k: int


def matrix_products(model: ModelDescription, tensor_parallel: int = 1) -> tuple[MatrixProduct, ...]:
    """Return the distinct products of a model on one GPU of a tensor-parallel group, the head last.

    Not included are the projections of layers with a state or with compressed keys, which the
    description does not separate, and tiny products: routers, indexers, gates of experts.
    """
    degree = max(1, tensor_parallel)
    found: dict[tuple[int, int, str], MatrixProduct] = {}

    def add(part: str, precision: str, n: float, k: float) -> None:
        product = MatrixProduct(part, precision, max(1, int(n)), max(1, int(k)))
        found.setdefault((product.n, product.k, precision), product)

    for group in model.layers:
        for part, n, k in (
            *_attention_products(group.attention, model.hidden_size, degree),
            *_feed_forward_products(group, model, degree),
        ):
            add(part, model.compute_precision, n, k)
    if model.output_head:
        add("head", model.data_type, model.vocabulary_size / degree, model.hidden_size)
    return tuple(found.values())


def _attention_products(
    attention: Attention, hidden: int, degree: int
) -> Iterator[tuple[str, float, float]]:
    if isinstance(attention, GroupedAttention):
        heads = attention.query_heads / degree
        query = heads * attention.head_size
        value_size = attention.value_head_size or attention.head_size
        # Key-value heads are replicated if there are fewer than GPUs.
        key_value = max(attention.key_value_heads / degree, 1) * (
            attention.head_size + value_size * attention.value_projection
        )
        columns = 0.0 if attention.shared_cache else key_value
        columns += heads * (value_size * attention.gated_output + attention.head_gate)
        if attention.query_rank:
            yield "query_down", attention.query_rank, hidden
            yield "query_up", query, attention.query_rank
        else:
            columns += query
        if columns:
            yield "query_key_value", columns, hidden
        yield "output", hidden, heads * value_size
    elif isinstance(attention, LatentAttention):
        heads = attention.query_heads / degree
        query = heads * (attention.plain_head_size + attention.rotary_head_size)
        if attention.query_rank:
            yield "query_down", attention.query_rank, hidden
            yield "query_up", query, attention.query_rank
        else:
            yield "query", query, hidden
        yield "latent_down", attention.latent_rank + attention.rotary_head_size, hidden
        up = heads * (attention.plain_head_size + attention.value_head_size)
        yield "latent_up", up, attention.latent_rank
        yield "output", hidden, heads * attention.value_head_size


def _feed_forward_products(
    group: LayerGroup, model: ModelDescription, degree: int
) -> Iterator[tuple[str, float, float]]:
    hidden = model.hidden_size
    widening = model.feed_forward_matrices - 1  # gate and up are one product
    sizes = {"dense": group.intermediate_size}
    if group.mixture is not None:
        sizes = {
            "expert": group.mixture.intermediate_size,
            "shared_expert": group.mixture.shared_intermediate_size,
        }
    for name, size in sizes.items():
        if size:
            yield f"{name}_up", widening * size / degree, hidden
            yield f"{name}_down", hidden, size / degree
