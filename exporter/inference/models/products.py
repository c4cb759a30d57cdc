"""The matrix products of a model's layers, on one GPU of a tensor-parallel group.

Weights are split as Megatron-LM does (Shoeybi et al., arXiv 1909.08053): expanding projections by
columns, reducing ones by rows. Projections that engines compute in one call (query, key and value;
gate and up) count as one product.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from exporter.inference.models.attention import Attention, GroupedAttention, LatentAttention
from exporter.inference.models.description import LayerGroup, ModelDescription


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """Tokens by weights: `n` columns of weights, `k` rows. `part` is its purpose."""

    part: str
    precision: str
    n: int
    k: int


def matrix_products(model: ModelDescription, tensor_parallel: int = 1) -> tuple[MatrixProduct, ...]:
    """Return the distinct products of a model, the output head last.

    Not included are the projections of layers with a state or with compressed keys, which the
    description does not separate, and tiny products: routers, indexers, gates of experts.
    """
    degree = max(1, tensor_parallel)
    found: dict[tuple[int, int, str], MatrixProduct] = {}

    def add(part: str, precision: str, n: float, k: float) -> None:
        product = MatrixProduct(part, precision, max(1, int(n)), max(1, int(k)))
        found.setdefault((product.n, product.k, precision), product)

    for group in model.layers:
        for part, n, k in _attention(group.attention, model.hidden_size, degree):
            add(part, model.compute_precision, n, k)
        for part, n, k in _feed_forward(group, model, degree):
            add(part, model.compute_precision, n, k)
    if model.output_head:
        add("head", model.data_type, model.vocabulary_size / degree, model.hidden_size)
    return tuple(found.values())


def _attention(
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


def _feed_forward(
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
