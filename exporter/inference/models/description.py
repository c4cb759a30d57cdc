"""The shape of a transformer: exactly the facts on which its FLOPs and bytes depend."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from exporter.errors import FlopwatchError
from exporter.inference.models.attention import Attention


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


NO_EXTRAS = Extras()


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
    extras: Extras = NO_EXTRAS


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
    extras: Extras = NO_EXTRAS
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
