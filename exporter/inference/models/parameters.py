"""Parameter counts from a description, part by part."""

from dataclasses import dataclass
from functools import lru_cache

from exporter.inference.models.description import LayerGroup, ModelDescription


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
        tables = self.embedding + self.looked_up
        return tables + self._body(self.experts) + stored_head + self.prologue

    @property
    def active(self) -> int:
        """Parameters that one token uses: all except the experts to which it is not routed."""
        idle = self.experts - self.active_experts + self.idle_expert_vectors
        return self.total - idle - self.prologue

    @property
    def matrices_per_token(self) -> int:
        """Parameters multiplied with one token, without the output head."""
        return self._matrices(self.active_experts)

    def _body(self, experts: int) -> int:
        return self._matrices(experts) + self.vectors

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
