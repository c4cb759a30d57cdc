"""Families whose layers differ: skipped parts, other heads, two blocks per layer, an encoder.

Gemma 3n and Gemma 4 (Google's model cards; AltUp, Baykal et al., NeurIPS 2023), Nemotron-NAS (arXiv
2411.19146), LongCat-Flash (arXiv 2509.01322), Step 3 (arXiv 2507.19427), Step 3.5, MiMo-V2 and
Whisper. Source: the classes in Hugging Face transformers, for Nemotron-NAS the modelling code of its
repository.
"""

from collections.abc import Mapping
from typing import Any

from exporter.inference.models import (
    Extras,
    LayerGroup,
    MixtureOfExperts,
    Prologue,
    Stack,
)
from exporter.inference.models.attention import Attention, GroupedAttention
from exporter.inference.models.families import (
    LARGEST_LAYER_COUNT,
    ConfigFields,
    ModelFamily,
    dense_or_experts,
    kinds_of,
    layer_override,
    layer_total,
)
from exporter.inference.models.mixers import NO_MIXER, RecurrentMixer, latent_attention


_FULL, _SLIDING = "full_attention", "sliding_attention"
# Sizes of Nemotron-NAS's feed-forward parts are rounded up to this.
_ROUNDED_TO = 256
# One layer in this many attends to all tokens, if the file lists no layer types.
_GEMMA_PERIOD = {"gemma3n_text": 5, "gemma4_text": 6}
_GEMMA_GLOBAL_HEAD_SIZE = 512
_AUDIO_KERNEL = 3


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
        period = _GEMMA_PERIOD[fields.model_type]
        kinds = tuple(_SLIDING if (n + 1) % period else _FULL for n in range(count))
    if fields.model_type == "gemma4_text":
        kinds = (*kinds[:-1], _FULL)
    first_shared = count - (fields.integer("num_kv_shared_layers") or 0)
    sizes = _gemma_sizes(fields, count, first_shared)
    mixture = _gemma_mixture(fields)
    extras = _gemma_layer_extras(fields, hidden, mixture)
    layers = tuple(
        LayerGroup(
            count=1,
            attention=_gemma_attention(fields, layer, kinds[layer], shared=layer >= first_shared),
            window=window if kinds[layer] == _SLIDING else None,
            intermediate_size=sizes[layer],
            mixture=mixture,
            extras=extras,
        )
        for layer in range(count)
    )
    fields.check()
    return Stack(layers, _gemma_model_extras(fields, hidden, count))


def _gemma_attention(
    fields: ConfigFields, layer: int, kind: str, *, shared: bool
) -> GroupedAttention:
    heads = fields.require("num_attention_heads")
    key_value_heads = fields.require("num_key_value_heads")
    head_size = fields.require("head_dim")
    value_projection = True
    if fields.model_type == "gemma4_text" and kind == _FULL:
        value_projection = not fields.flag("attention_k_eq_v")
        head_size = (
            layer_override(fields, layer, "head_dim")
            or fields.integer("global_head_dim")
            or _GEMMA_GLOBAL_HEAD_SIZE
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


def _gemma_sizes(fields: ConfigFields, count: int, first_shared: int) -> tuple[int, ...]:
    listed = fields.raw("intermediate_size")
    if isinstance(listed, list):  # Gemma 3n may list one per layer
        sizes = [fields.whole("intermediate_size", size) for size in listed[:count]]
        if len(sizes) < count or not all(sizes):
            raise fields.error(f"intermediate_size does not list a size for each of {count} layers")
        return tuple(size or 0 for size in sizes)
    size = fields.require("intermediate_size")
    wide = 2 if fields.flag("use_double_wide_mlp") else 1
    return tuple(size * (wide if layer >= first_shared else 1) for layer in range(count))


def _gemma_mixture(fields: ConfigFields) -> MixtureOfExperts | None:
    """Experts in parallel with the dense part of every layer (Gemma 4 26B-A4B)."""
    if not fields.flag("enable_moe_block"):
        return None
    return MixtureOfExperts(
        experts=fields.require("num_experts"),
        active_experts=fields.require("top_k_experts"),
        intermediate_size=fields.require("moe_intermediate_size"),
    )


def _gemma_layer_extras(
    fields: ConfigFields, hidden: int, mixture: MixtureOfExperts | None
) -> Extras:
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


def _gemma_model_extras(fields: ConfigFields, hidden: int, count: int) -> dict[str, object]:
    width = fields.integer("hidden_size_per_layer_input") or 0
    streams = fields.integer("altup_num_inputs") or 1
    words = fields.integer("vocab_size_per_layer_input") or fields.integer("vocab_size") or 0
    # The other streams are derived from the first at the start and joined to it at the end.
    matrices = hidden * width * count + 2 * (streams - 1) * hidden * hidden
    return {"extras": Extras(matrices, width), "looked_up": words * width * count}


def nemotron_nas_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the layers of a Nemotron-NAS (DeciLM) model: its file describes each one."""
    count = layer_total(fields)
    hidden = fields.require("hidden_size")
    blocks = fields.raw("block_configs")
    if not isinstance(blocks, list) or len(blocks) < count:
        raise fields.error(f"block_configs does not describe {count} layers")
    layers = tuple(_nas_layer(fields, block, hidden) for block in blocks[:count])
    fields.check()
    return Stack(layers)


def _nas_layer(fields: ConfigFields, block: Any, hidden: int) -> LayerGroup:
    parts = block if isinstance(block, Mapping) else {}
    attention, feed_forward = parts.get("attention"), parts.get("ffn")
    if not isinstance(attention, Mapping) or not isinstance(feed_forward, Mapping):
        raise fields.error("an entry of block_configs lacks attention or ffn")
    unknown = [name for name in ("window_length", "sparsify", "mamba") if attention.get(name)]
    unknown += [name for name in ("sparsify", "moe") if feed_forward.get(name)]
    if unknown:
        raise fields.error(f"block_configs with {', '.join(unknown)} is not supported")
    mixer: Attention = NO_MIXER
    matrices = vectors = size = 0
    if attention.get("replace_with_linear"):
        mixer = RecurrentMixer(matrices=hidden * hidden, vectors=0)
    elif attention.get("no_op"):
        vectors -= hidden  # its norm is skipped too
    else:
        mixer = _nas_attention(fields, attention, hidden)
    if feed_forward.get("replace_with_linear"):
        matrices = hidden * hidden
    elif feed_forward.get("no_op"):
        vectors -= hidden
    else:
        size = _nas_size(fields, feed_forward, hidden)
    return LayerGroup(1, mixer, None, size, extras=Extras(matrices, vectors))


def _nas_attention(
    fields: ConfigFields, settings: Mapping[str, Any], hidden: int
) -> GroupedAttention:
    heads = fields.require("num_attention_heads")
    fields.check()
    group = fields.whole("n_heads_in_group", settings.get("n_heads_in_group"))
    key_value_heads = fields.whole("num_key_value_heads", settings.get("num_key_value_heads"))
    if not key_value_heads:
        if not group or heads % group:
            raise fields.error(f"n_heads_in_group is {group!r} for {heads} heads")
        key_value_heads = heads // group
    return GroupedAttention(heads, key_value_heads, fields.integer("head_dim") or hidden // heads)


def _nas_size(fields: ConfigFields, settings: Mapping[str, Any], hidden: int) -> int:
    size = fields.whole("intermediate_size", settings.get("intermediate_size"))
    factor = settings.get("ffn_mult")
    if size:
        return size
    if not isinstance(factor, int | float) or not 0 < factor <= 64:
        raise fields.error(f"ffn_mult is {factor!r}")
    return -(-int(2 * factor * hidden / 3) // _ROUNDED_TO) * _ROUNDED_TO


def longcat_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the blocks of a LongCat-Flash model: two per layer, the first also with experts.

    A token is routed to `moe_topk` of all experts, both computing and identity experts. The split
    depends on the token; on average the model's load control makes it use all experts equally.
    """
    count = layer_total(fields)
    real, zero = fields.require("num_experts"), fields.integer("zero_expert_num") or 0
    chosen = fields.require("num_experts_per_tok")
    kind = fields.raw("zero_expert_type")
    if kind not in (None, "identity"):
        raise fields.error(f"zero_expert_type {kind!r} is not supported")
    attention = latent_attention(fields)
    size = fields.require("intermediate_size")
    expert_size = fields.require("moe_intermediate_size")
    fields.check()
    if chosen * real % (real + zero):
        raise fields.error(
            f"{chosen} of {real} + {zero} experts do not give a whole number of computing experts"
        )
    mixture = MixtureOfExperts(
        experts=real,
        active_experts=chosen * real // (real + zero),
        intermediate_size=expert_size,
        router_bias=family.router_bias,
        zero_experts=zero,
    )
    first = LayerGroup(1, attention, None, size, mixture)
    second = LayerGroup(1, attention, None, size)
    return Stack((first, second) * count)


def windowed_heads_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the layers of Step 3.5 or MiMo-V2: windowed and full layers have different heads."""
    count = layer_total(fields)
    kinds = kinds_of(fields, "layer_types", count, (_FULL, _SLIDING))
    marks = fields.raw("hybrid_layer_pattern")
    if kinds is None and isinstance(marks, list) and len(marks) >= count:
        kinds = tuple(_SLIDING if mark else _FULL for mark in marks[:count])
    if kinds is None:
        raise fields.error("the file does not say which layers have a window")
    window = fields.require("sliding_window") if _SLIDING in kinds else 0
    mixture = MixtureOfExperts(
        experts=fields.require("num_experts"),
        active_experts=fields.require("num_experts_per_tok"),
        intermediate_size=fields.require("moe_intermediate_size"),
        shared_intermediate_size=fields.integer("share_expert_dim") or 0,
        router_bias=family.router_bias,
    )
    sizes = _sizes_by_list(fields, count)
    layers = tuple(
        LayerGroup(
            1,
            _windowed_attention(fields, family, layer, windowed=kind == _SLIDING),
            window if kind == _SLIDING else None,
            sizes[layer],
            None if sizes[layer] else mixture,
        )
        for layer, kind in enumerate(kinds)
    )
    fields.check()
    return Stack(layers)


def step3_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the layers of a Step 3 text model: multi-matrix factorization attention.

    All query heads share one key and value head and a low-rank projection. Source: StepFun, arXiv
    2507.19427.
    """
    count = layer_total(fields)
    attention = GroupedAttention(
        query_heads=fields.require("num_attention_heads"),
        key_value_heads=fields.integer("num_key_value_heads") or 1,
        head_size=fields.require("head_dim"),
        query_rank=fields.require("share_q_dim"),
    )
    mixture = MixtureOfExperts(
        experts=fields.require("num_experts"),
        active_experts=fields.require("num_experts_per_tok"),
        intermediate_size=fields.require("moe_intermediate_size"),
        shared_intermediate_size=fields.require("share_expert_dim"),
    )
    sizes = _sizes_by_list(fields, count)
    fields.check()
    return Stack(
        tuple(LayerGroup(1, attention, None, size, None if size else mixture) for size in sizes)
    )


def _sizes_by_list(fields: ConfigFields, count: int) -> tuple[int, ...]:
    listed = fields.raw("moe_layers_enum")
    if listed is None:
        return dense_or_experts(fields, count, "intermediate_size")
    numbers = listed.split(",") if isinstance(listed, str) else listed
    try:
        experts = {int(number) for number in numbers}
    except (TypeError, ValueError, OverflowError):
        raise fields.error(f"moe_layers_enum is {listed!r}") from None
    size = fields.require("intermediate_size")
    return tuple(0 if layer in experts else size for layer in range(count))


def _windowed_attention(
    fields: ConfigFields, family: ModelFamily, layer: int, *, windowed: bool
) -> GroupedAttention:
    settings = fields.raw("attention_other_setting")
    other: Mapping[str, Any] = settings if windowed and isinstance(settings, Mapping) else {}

    def size(name: str, older: str, swa: str) -> int:
        own = layer_override(fields, layer, name)
        own = own or fields.whole(name, other.get(name) or other.get(older))
        if windowed and not own:
            own = fields.integer(swa)
            if not own and name == "num_key_value_heads" and family.sinks:
                own = 2 * fields.require(name)  # MiMo-V2's class doubles them
        return own or fields.require(name)

    head_size = size("head_dim", "head_dim", "swa_head_dim")
    heads = size("num_attention_heads", "num_attention_heads", "swa_num_attention_heads")
    gate = fields.flag("use_head_wise_attn_gate", default=family.head_gate)
    sinks = "add_swa_attention_sink_bias" if windowed else "add_full_attention_sink_bias"
    return GroupedAttention(
        query_heads=heads,
        key_value_heads=size(
            "num_key_value_heads", "num_attention_groups", "swa_num_key_value_heads"
        ),
        head_size=head_size,
        value_head_size=size("v_head_dim", "v_head_dim", "swa_v_head_dim")
        if fields.integer("v_head_dim")
        else 0,
        query_key_norm_size=2 * head_size if family.query_key_norm == "head" else 0,
        sinks=fields.flag(sinks, default=family.sinks and windowed),
        head_gate=gate,
    )


def whisper_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the decoder's layers; the encoder is counted per prompt."""
    hidden = fields.require("hidden_size")
    positions = fields.require("max_source_positions")
    count = fields.require("decoder_layers")
    heads = fields.require("decoder_attention_heads")
    size = fields.require("decoder_ffn_dim")
    prologue = _audio_encoder(fields, hidden, positions, count)
    fields.check()
    if count > LARGEST_LAYER_COUNT:
        raise fields.error(f"decoder_layers is {count}")
    attention = GroupedAttention(
        query_heads=heads,
        key_value_heads=heads,
        head_size=hidden // heads,
        query_key_value_bias=True,
        output_bias=True,
    )
    # Cross-attention: its own queries, output and norm. Keys have no bias.
    extras = Extras(
        matrices=2 * hidden * hidden,
        vectors=4 * hidden - hidden,
        token_flop=4 * hidden * positions,
    )
    layer = LayerGroup(1, attention, None, size, extras=extras)
    return Stack(
        (layer,) * count,
        {"learned_positions": fields.require("max_target_positions"), "prologue": prologue},
    )


def _audio_encoder(
    fields: ConfigFields, hidden: int, positions: int, decoder_layers: int
) -> Prologue:
    """Two convolutions, the encoder's layers, and the keys and values of the decoder's layers."""
    layers = fields.require("encoder_layers")
    size = fields.require("encoder_ffn_dim")
    mel_bins = fields.require("num_mel_bins")
    layer = 4 * hidden * hidden + 2 * hidden * size
    crossed = decoder_layers * 2 * hidden * hidden
    first, second = _AUDIO_KERNEL * mel_bins * hidden, _AUDIO_KERNEL * hidden * hidden
    # The second convolution has stride 2.
    flop = 2 * first * 2 * positions + 2 * second * positions
    flop += positions * 2 * (layers * layer + crossed) + layers * 4 * hidden * positions * positions
    return Prologue(
        flop=flop,
        matrices=first + second + layers * layer + crossed,
        # Biases of the convolutions, positions, biases and norms of each layer, the last norm,
        # biases of the decoder's values.
        vectors=2 * hidden
        + positions * hidden
        + layers * (3 * hidden + size + hidden + 4 * hidden)
        + 2 * hidden
        + decoder_layers * hidden,
        cached_values=decoder_layers * 2 * hidden * positions,
    )
