"""Small models whose FLOPs and bytes can be worked out on paper."""

from exporter.inference.models import (
    LayerGroup,
    MixtureOfExperts,
    ModelDescription,
)
from exporter.inference.models.attention import GroupedAttention
from exporter.inference.models.cost import (
    decode_attention_flop,
    head_flop_per_token,
    linear_flop_per_token,
    prefill_attention_flop,
)


# Per layer: projections 8·(8+8+4+4) = 192, feed-forward 3·8·16 = 384, together 576 parameters.
TINY_ATTENTION = GroupedAttention(query_heads=2, key_value_heads=1, head_size=4)
TINY = ModelDescription(
    model_type="tiny",
    hidden_size=8,
    vocabulary_size=10,
    layers=(LayerGroup(2, TINY_ATTENTION, None, 16),),
)
# One full layer and one that looks back at 4 tokens.
WINDOWED = ModelDescription(
    model_type="windowed",
    hidden_size=8,
    vocabulary_size=10,
    layers=(LayerGroup(1, TINY_ATTENTION, None, 16), LayerGroup(1, TINY_ATTENTION, 4, 16)),
)
# One layer of 4 experts, 2 active, of 3·8·5 = 120 parameters each, router 8·4 = 32.
MIXTURE = ModelDescription(
    model_type="mixture",
    hidden_size=8,
    vocabulary_size=10,
    layers=(
        LayerGroup(
            1,
            TINY_ATTENTION,
            None,
            0,
            MixtureOfExperts(experts=4, active_experts=2, intermediate_size=5),
        ),
    ),
)


def prefill_flop(
    model: ModelDescription,
    new_tokens: float,
    cached_tokens: float = 0.0,
    logits: float = 1.0,
) -> float:
    """Return the FLOPs of prefilling one prompt: `new_tokens` computed, `cached_tokens` reused.

    Engines compute logits for the last position only, hence `logits` 1 per prompt; 0 for a chunk
    that is not the last.
    """
    return (
        new_tokens * linear_flop_per_token(model)
        + prefill_attention_flop(model, new_tokens, cached_tokens)
        + logits * head_flop_per_token(model)
    )


def decode_flop(model: ModelDescription, tokens: float, context_tokens: float) -> float:
    """Return the FLOPs of decoding `tokens` at a mean context of `context_tokens` each.

    With speculative decoding `tokens` are the accepted ones: rejected drafts are work, but not
    useful work.
    """
    return tokens * (
        linear_flop_per_token(model)
        + head_flop_per_token(model)
        + decode_attention_flop(model, context_tokens)
    )
