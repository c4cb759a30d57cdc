"""Small models whose FLOPs and bytes can be worked out on paper."""

from exporter.inference.models.attention import GroupedAttention
from exporter.inference.models.description import (
    LayerGroup,
    MixtureOfExperts,
    ModelDescription,
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
