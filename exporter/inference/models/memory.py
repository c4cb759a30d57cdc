"""Device memory traffic that tokens require: weights once per pass, and the KV cache.

Activations are left out: fused kernels and the L2 cache keep most of them off device memory, and in
decode they are small compared with weights and cache. The result is the traffic of a perfect
engine, the MBU numerator of Databricks ("LLM Inference Performance Engineering: Best Practices",
2023), and a lower bound of the values of the memory counters.
"""

from exporter.inference.models.description import Extras, ModelDescription
from exporter.inference.models.parameters import count_parameters, feed_forward_parameters


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
    weights = model.weights
    total = (
        counts.attention * weights.attention
        + counts.dense * weights.dense
        + counts.shared_experts * weights.shared_experts
        + counts.router * weights.other
        + _extra_bytes(model.extras, model)
    )
    for group in model.layers:
        total += group.count * _extra_bytes(group.extras, model)
        if group.mixture is not None:
            mixture = group.mixture
            expert = feed_forward_parameters(model, mixture.intermediate_size)
            touched = experts_touched(mixture.experts, mixture.active_experts, tokens * ranks)
            total += group.count * touched / ranks * expert * weights.experts
    return total + counts.head * weights.head * with_head


def _extra_bytes(extras: Extras, model: ModelDescription) -> float:
    size = model.weights.other if extras.value_bytes is None else extras.value_bytes
    return extras.matrices * size


def prologue_bytes_per_pass(model: ModelDescription) -> float:
    """Return the weight bytes of the prologue (encoder) that a pass reads when a prompt starts."""
    return model.prologue.matrices * model.weights.dense if model.prologue else 0.0


def stored_weight_bytes(model: ModelDescription) -> float:
    """Return the bytes of all stored weights: the memory of the model without any cache."""
    counts = count_parameters(model)
    weights = model.weights
    other = counts.embedding + counts.looked_up + counts.router + counts.vectors + counts.prologue
    extras = _extra_bytes(model.extras, model) + sum(
        group.count * _extra_bytes(group.extras, model) for group in model.layers
    )
    head = 0 if model.tied_embeddings else counts.head
    return (
        counts.attention * weights.attention
        + counts.dense * weights.dense
        + counts.experts * weights.experts
        + counts.shared_experts * weights.shared_experts
        + head * weights.head
        + other * weights.other
        + extras
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
    total = 0.0
    for group in model.layers:
        attention = group.attention
        tokens = attention.keys(context_tokens, group.window)
        copies = attention.cache_copies(tensor_parallel)
        values = attention.cached_values * tokens * model.cache_value_bytes
        index = attention.index_cache_bytes * attention.index_keys(context_tokens)
        # A state left by an earlier pass is read and written back.
        state = 2 * attention.state_values * model.state_value_bytes if context_tokens else 0.0
        total += group.count * (copies * (values + index) + state)
    return total + (prologue_cache_bytes(model) if context_tokens else 0.0)


def cache_bytes_read_by(
    model: ModelDescription, tokens: float, context_tokens: float, tensor_parallel: int = 1
) -> float:
    """Return the KV-cache bytes that `tokens` decoded after `context_tokens` others read.

    Each token takes its own pass and reads what it attends to, including itself.
    """
    total = 0.0
    for group in model.layers:
        attention = group.attention
        copies = attention.cache_copies(tensor_parallel)
        pairs = attention.pairs(tokens, context_tokens, group.window)
        values = attention.cached_values * pairs * model.cache_value_bytes
        state = 2 * attention.state_values * model.state_value_bytes * tokens
        index = 0.0
        if attention.index_cache_bytes:
            scored = attention.index_pairs(tokens, context_tokens)
            index = attention.index_cache_bytes * scored
        total += group.count * (copies * (values + index) + state)
    return total + prologue_cache_bytes(model) * tokens


def prologue_cache_bytes(model: ModelDescription) -> float:
    """Return the bytes that a prompt's prologue stores in the cache, read by every later pass."""
    return model.prologue.cached_values * model.cache_value_bytes if model.prologue else 0.0
