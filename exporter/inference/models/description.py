"""The shape of a transformer: all that its FLOPs and bytes depend on, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from exporter.errors import FlopwatchError
from exporter.inference.models.attention import Attention


@dataclass(frozen=True, slots=True)
class Beside:
    """What a layer, or the model, holds beside attention and feed-forward parts."""

    # Parameters that every token is multiplied with.
    matrices: int = 0
    # Norms, biases and scales; negative where the family's usual norms are missing.
    vectors: int = 0
    # FLOPs of a token in products without parameters.
    token_flop: int = 0
    # Bytes per parameter where they are not those of the model's data type.
    value_bytes: float | None = None


NOTHING_BESIDE = Beside()


@dataclass(frozen=True, slots=True)
class Prologue:
    """Work of each prompt before its first token: the audio that Whisper's encoder hears.

    It is of one size whatever the audio, because shorter audio is padded.
    """

    flop: int
    # Parameters, those of them that are vectors, and numbers that the decoder reads ever after.
    matrices: int
    vectors: int
    cached_values: int


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
    # Experts that pass a token on unchanged (LongCat); `active_experts` are those that compute.
    zero_experts: int = 0


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
    beside: Beside = NOTHING_BESIDE


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
    """A model that generates tokens, as far as its FLOPs and bytes are concerned."""

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
    beside: Beside = NOTHING_BESIDE
    # Parameters of tables beside the embedding, of which a token reads a row (Gemma 3n).
    looked_up: int = 0
    prologue: Prologue | None = None
    # Parts of the served model whose work no engine tells enough of to count it.
    not_counted: tuple[str, ...] = ()

    @property
    def layer_count(self) -> int:
        """Layers of the decoder."""
        return sum(group.count for group in self.layers)


class ModelDescriptionError(FlopwatchError):
    """A model cannot be described: its tokens are still counted, its FLOPs are not."""


class UnknownArchitectureError(ModelDescriptionError):
    """A config.json lacks fields that the formulas need, or uses layers that they do not know."""

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
        super().__init__(f"cannot describe architecture {model_type!r}: {what}")
