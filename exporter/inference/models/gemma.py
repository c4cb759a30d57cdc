"""Gemma 3n and Gemma 4: per-layer embeddings, shared caches, alternating updates, global heads.

Source: Google's model cards and the classes in Hugging Face transformers; AltUp, Baykal et al.,
NeurIPS 2023.
"""

from exporter.inference.models.attention import GroupedAttention
from exporter.inference.models.description import Extras, LayerGroup, MixtureOfExperts, Stack
from exporter.inference.models.families import ModelFamily
from exporter.inference.models.fields import ConfigFields, kinds_of, layer_override, layer_total


_FULL, _SLIDING = "full_attention", "sliding_attention"
# One layer in this many attends to all tokens, if the file lists no layer types.
_PERIOD = {"gemma3n_text": 5, "gemma4_text": 6}
_GLOBAL_HEAD_SIZE = 512


def gemma_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the layers of a Gemma 3n or Gemma 4 text model."""
    count = layer_total(fields)
    hidden = fields.require("hidden_size")
    window = fields.require("sliding_window")
    fields.check()
    if fields.raw("use_bidirectional_attention") == "all":
        raise fields.error("attention to later tokens is not supported")
    kinds = kinds_of(fields, "layer_types", count, (_FULL, _SLIDING))
    if kinds is None:
        period = _PERIOD[fields.model_type]
        kinds = tuple(_SLIDING if (n + 1) % period else _FULL for n in range(count))
    if fields.model_type == "gemma4_text":
        kinds = (*kinds[:-1], _FULL)
    first_shared = count - (fields.integer("num_kv_shared_layers") or 0)
    sizes = _feed_forward_sizes(fields, count, first_shared)
    mixture = _mixture(fields)
    extras = _layer_extras(fields, hidden, mixture)
    layers = tuple(
        LayerGroup(
            count=1,
            attention=_attention(fields, layer, kinds[layer], shared=layer >= first_shared),
            window=window if kinds[layer] == _SLIDING else None,
            intermediate_size=sizes[layer],
            mixture=mixture,
            extras=extras,
        )
        for layer in range(count)
    )
    fields.check()
    return Stack(layers, _model_extras(fields, hidden, count))


def _attention(fields: ConfigFields, layer: int, kind: str, *, shared: bool) -> GroupedAttention:
    heads = fields.require("num_attention_heads")
    key_value_heads = fields.require("num_key_value_heads")
    head_size = fields.require("head_dim")
    value_projection = True
    if fields.model_type == "gemma4_text" and kind == _FULL:
        value_projection = not fields.flag("attention_k_eq_v")
        head_size = (
            layer_override(fields, layer, "head_dim")
            or fields.integer("global_head_dim")
            or _GLOBAL_HEAD_SIZE
        )
        others = fields.integer("num_global_key_value_heads")
        own = layer_override(fields, layer, "num_key_value_heads")
        key_value_heads = own or (0 if value_projection else others) or key_value_heads
    return GroupedAttention(
        query_heads=heads,
        key_value_heads=key_value_heads,
        head_size=head_size,
        query_key_norm_size=head_size * (1 if shared else 2),
        value_projection=value_projection,
        shared_cache=shared,
    )


def _feed_forward_sizes(fields: ConfigFields, count: int, first_shared: int) -> tuple[int, ...]:
    listed = fields.raw("intermediate_size")
    if isinstance(listed, list):  # Gemma 3n may list one per layer
        sizes = [fields.whole("intermediate_size", size) for size in listed[:count]]
        if len(sizes) < count or not all(sizes):
            raise fields.error(f"intermediate_size does not list a size for each of {count} layers")
        return tuple(size or 0 for size in sizes)
    size = fields.require("intermediate_size")
    wide = 2 if fields.flag("use_double_wide_mlp") else 1
    return tuple(size * (wide if layer >= first_shared else 1) for layer in range(count))


def _mixture(fields: ConfigFields) -> MixtureOfExperts | None:
    """Experts in parallel with the dense part of every layer (Gemma 4 26B-A4B)."""
    if not fields.flag("enable_moe_block"):
        return None
    return MixtureOfExperts(
        experts=fields.require("num_experts"),
        active_experts=fields.require("top_k_experts"),
        intermediate_size=fields.require("moe_intermediate_size"),
    )


def _layer_extras(fields: ConfigFields, hidden: int, mixture: MixtureOfExperts | None) -> Extras:
    """Per-layer embeddings; in Gemma 3n also alternating updates and the learned residual."""
    width = fields.integer("hidden_size_per_layer_input") or 0
    matrices, vectors, token_flop = 2 * hidden * width, hidden * bool(width), 0
    if mixture is not None:  # three more norms, the router's scale and one number per expert
        vectors += 4 * hidden + mixture.experts
    streams = fields.integer("altup_num_inputs") or 0
    if streams:
        rank = fields.require("laurel_rank")
        matrices += 2 * hidden * rank + streams * hidden + streams**2 * (streams + 1)
        vectors += 3 * hidden
        # The router runs twice, before and after the layer; the streams are mixed by a separate
        # matrix for each token.
        token_flop = 2 * streams * hidden + 2 * streams**2 * hidden
    return Extras(matrices, vectors, token_flop)


def _model_extras(fields: ConfigFields, hidden: int, count: int) -> dict[str, object]:
    width = fields.integer("hidden_size_per_layer_input") or 0
    streams = fields.integer("altup_num_inputs") or 1
    words = fields.integer("vocab_size_per_layer_input") or fields.integer("vocab_size") or 0
    # The other streams are derived from the first at the start and joined to it at the end.
    matrices = hidden * width * count + 2 * (streams - 1) * hidden * hidden
    return {
        "extras": Extras(matrices, width),
        "looked_up": words * width * count,
    }
