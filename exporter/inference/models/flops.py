"""Model FLOPs of prefill and decode: the work that tokens need, however the engine computes them.

Counted are matrix products (two FLOPs per multiply-add): projections, feed-forward parts, routers,
attention over the real context, the output head where logits are computed. Not counted, as in the
definitions of MFU by PaLM (arXiv 2204.02311, appendix B) and Megatron (arXiv 2104.04473): norms,
activations, softmax, embedding look-ups, and work that an engine wastes (padding, recomputation
after preemption, rejected drafts). Tensor, pipeline, expert and data parallelism spread the same
FLOPs over more GPUs: nothing here depends on them.
"""

from functools import lru_cache

from exporter.inference.models.description import LayerGroup, ModelDescription
from exporter.inference.models.parameters import count_parameters


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
        return _encoder_attention_flop(model, new_tokens, cached_tokens)
    return sum(
        group.count
        * _attention_flop(group, group.attention.prefill_pair_flop, new_tokens, cached_tokens)
        for group in model.layers
    )


def _encoder_attention_flop(
    model: ModelDescription, new_tokens: float, cached_tokens: float
) -> float:
    whole = new_tokens + cached_tokens
    return sum(
        group.count * group.attention.prefill_pair_flop * new_tokens * _within(group.window, whole)
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


def _within(window: int | None, tokens: float) -> float:
    return tokens if window is None else min(tokens, window)
