"""A model description from the values of a Hugging Face config.json."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporter.inference.models import (
    LayerGroup,
    MixtureOfExperts,
    ModelDescription,
    Stack,
    UnknownArchitectureError,
)
from exporter.inference.models.attention import (
    Attention,
    GroupedAttention,
    Indexer,
    LatentAttention,
)
from exporter.inference.models.families import (
    FAMILIES,
    FOREIGN_FIELDS,
    LARGEST_LAYER_COUNT,
    REFUSED,
    ConfigFields,
    ModelFamily,
    language_model,
)
from exporter.inference.models.irregular import (
    gemma_stack,
    longcat_stack,
    nemotron_nas_stack,
    step3_stack,
    whisper_stack,
    windowed_heads_stack,
)
from exporter.inference.models.mixers import (
    FULL_ATTENTION,
    MLP,
    MOE,
    NO_MIXER,
    deepseek_v4_stack,
    latent_attention,
    layer_kinds,
    minimax_m3_stack,
    mixer_of,
)
from exporter.inference.models.quantization import with_formats


FULL = ("full_attention", "attention", "global")
SLIDING = ("sliding_attention", "local_attention", "local")
CHUNKED = ("chunked_attention",)


def describe(
    config: Mapping[str, Any], *, cache_data_type: str | None = None, precision: str | None = None
) -> ModelDescription:
    """Return the description of a parsed config.json.

    Raises UnknownArchitectureError, naming the missing fields, if the formulas do not apply.
    """
    values = language_model(config)
    outer, inner = (str(part.get("model_type") or "unknown") for part in (config, values))
    for name in (outer, inner):
        if name in REFUSED:
            raise UnknownArchitectureError(name, reason=REFUSED[name])
    family = FAMILIES.get(inner)
    if family is None:
        reason = "it is not in the list of supported architectures"
        raise UnknownArchitectureError(inner, reason=reason)
    fields = ConfigFields(values, family.defaults)
    _refuse_foreign(fields, family)

    hidden, vocabulary = fields.require("hidden_size"), fields.require("vocab_size")
    stack = STACKS[family.stack](fields, family)
    fields.check()
    for mixture in {layer.mixture for layer in stack.layers}:
        if mixture is not None and mixture.active_experts > mixture.experts:
            raise fields.error(f"{mixture.active_experts} of {mixture.experts} experts are active")
    traits = {
        "feed_forward_bias": fields.flag("mlp_bias", default=family.feed_forward_bias),
        "tied_embeddings": fields.flag("tie_word_embeddings", default=family.tied_embeddings),
        "learned_positions": _positions(fields) if family.learned_positions else 0,
        "other_vectors": _encoder_vectors(fields, family, hidden),
        **stack.traits,
    }
    model = ModelDescription(
        model_type=fields.model_type,
        hidden_size=hidden,
        vocabulary_size=vocabulary,
        layers=stack.groups(),
        feed_forward_matrices=3 if family.gated else 2,
        norms_per_layer=family.norms_per_layer,
        norm_bias=family.norm_bias,
        causal=not family.encoder,
        output_head=not family.encoder,
        not_counted=_towers(config),
        **traits,
    )
    return with_formats(model, fields, stack, cache_data_type, precision)


def _common_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """The layers of a family that follows the common rules."""
    kinds = layer_kinds(fields, family)
    fields.require("hidden_size")
    layer_count = len(kinds) if kinds else fields.require("num_hidden_layers")
    attends = not kinds or FULL_ATTENTION in kinds
    attention = _attention(fields, family) if attends else NO_MIXER
    chosen = fields.integer("index_topk")
    experts = _mixtures(fields, family, min(layer_count, LARGEST_LAYER_COUNT), kinds)
    denses = _dense_sizes(fields, experts, kinds) if family.feed_forward else (0,) * layer_count
    fields.check()
    if layer_count > LARGEST_LAYER_COUNT:
        raise fields.error(f"num_hidden_layers is {layer_count}")
    spans = (chosen,) * layer_count if chosen else _windows(fields, family, layer_count, kinds)
    return Stack(
        tuple(
            LayerGroup(
                1,
                mixer_of(fields, family, kinds[layer])
                if kinds and kinds[layer] != FULL_ATTENTION
                else _of_layer(fields, attention, layer),
                spans[layer],
                denses[layer],
                experts[layer],
            )
            for layer in range(layer_count)
        )
    )


STACKS: Mapping[str, Callable[[ConfigFields, ModelFamily], Stack]] = {
    "": _common_stack,
    "gemma": gemma_stack,
    "deepseek_v4": deepseek_v4_stack,
    "longcat": longcat_stack,
    "minimax_m3": minimax_m3_stack,
    "nemotron_nas": nemotron_nas_stack,
    "step3": step3_stack,
    "windowed_heads": windowed_heads_stack,
    "whisper": whisper_stack,
}


def _towers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The towers next to the language model. No engine's metrics show how much they encode."""
    found = {
        name
        for part in (config, config.get("thinker_config"))
        if isinstance(part, Mapping)
        for key, name in (("vision_config", "vision tower"), ("audio_config", "audio tower"))
        if isinstance(part.get(key), Mapping)
    }
    return tuple(sorted(found))


def _encoder_vectors(fields: ConfigFields, family: ModelFamily, hidden: int) -> int:
    """Vectors of an encoder outside its layers: the norm, and the two segment types (BERT)."""
    if not family.encoder:
        return 0
    segments = (fields.integer("type_vocab_size") or 0) * hidden
    return segments + family.outer_norms * hidden * (1 + family.norm_bias)


def _dense_sizes(
    fields: ConfigFields, experts: Sequence[MixtureOfExperts | None], kinds: Sequence[str]
) -> tuple[int, ...]:
    """Intermediate size of each layer's dense feed-forward part; 0 without one."""
    if kinds and set(kinds) & {MLP, MOE}:  # each layer has only one part
        size = fields.require("intermediate_size") if MLP in kinds else 0
        return tuple(size if kind == MLP else 0 for kind in kinds)
    if experts and all(mixture is not None for mixture in experts):
        return (0,) * len(experts)
    size = _dense_size(fields)
    return tuple(0 if mixture else size for mixture in experts)


def _refuse_foreign(fields: ConfigFields, family: ModelFamily) -> None:
    foreign = [
        name
        for name in FOREIGN_FIELDS
        if name not in family.own_fields and fields.raw(name) not in (None, 0, False, [])
    ]
    if foreign:
        raise fields.error(f"it has layers that are not supported ({', '.join(foreign)})")
    kinds = fields.raw("attn_type_list")
    if isinstance(kinds, list) and not all(kinds):
        # MiniMax marks its linear-attention layers with 0.
        raise fields.error("it has layers that are not supported (attn_type_list)")
    latent = fields.integer("kv_lora_rank") or family.stack
    if fields.integer("index_topk") and not latent:
        raise fields.error("sparse attention is only supported with latent attention (index_topk)")


def _attention(fields: ConfigFields, family: ModelFamily) -> Attention:
    if fields.integer("kv_lora_rank"):
        # Sparse attention: DeepSeek-V3.2 and related models.
        sparse = fields.integer("index_topk")
        return latent_attention(
            fields,
            Indexer(fields.require("index_n_heads"), fields.require("index_head_dim"))
            if sparse
            else None,
        )
    heads = fields.require("num_attention_heads")
    hidden = fields.integer("hidden_size") or 0
    head_size = fields.integer("head_dim") or (hidden // heads if heads else 0)
    key_value_heads = fields.integer("num_key_value_heads") or heads
    # Falcon writes both; its older models ignore num_kv_heads when multi_query is set.
    if fields.flag("multi_query") and not fields.flag("new_decoder_architecture"):
        key_value_heads = 1
    norm = {"head": 2 * head_size, "all": (heads + key_value_heads) * head_size}
    # Llama 4 normalizes queries and keys too, but without parameters.
    learned = fields.flag("use_qk_norm") and fields.model_type != "llama4_text"
    query_key_norm = family.query_key_norm or ("head" if learned else "")
    bias = fields.raw("attention_bias")
    if bias is None:
        bias = fields.raw("bias")
    return GroupedAttention(
        query_heads=heads,
        key_value_heads=key_value_heads,
        head_size=head_size,
        query_key_value_bias=family.query_key_value_bias if bias is None else bool(bias),
        # GLM 4 MoE and Seed OSS apply attention_bias only to queries, keys and values.
        output_bias=family.output_bias
        or (bool(bias) and fields.model_type in {"llama", "mistral", "qwen3", "granite"}),
        query_key_norm_size=norm.get(query_key_norm, 0),
        sinks=family.sinks,
        gated_output=family.gated_output,
    )


def _of_layer(fields: ConfigFields, attention: Attention, layer: int) -> Attention:
    """The attention of one layer; some share the indexer of a layer below (GLM 5.2)."""
    kinds = fields.raw("indexer_types")
    shared = isinstance(kinds, list) and layer < len(kinds) and kinds[layer] != "full"
    if shared and isinstance(attention, LatentAttention):
        return replace(attention, indexer=None)
    return attention


def _dense_size(fields: ConfigFields) -> int:
    """Intermediate size of a dense feed-forward part; in old families 4 times the hidden size."""
    size = (
        fields.integer("intermediate_size_mlp")
        or fields.integer("dense_intermediate_size")
        or fields.integer("intermediate_size")
    )
    if size:
        return size
    hidden = fields.integer("hidden_size")
    if fields.model_type in {"falcon", "gpt2", "gptj", "gpt_bigcode"} and hidden:
        return 4 * hidden
    return fields.require("intermediate_size")


def _positions(fields: ConfigFields) -> int:
    positions = fields.integer("n_positions") or fields.integer("max_position_embeddings") or 0
    # OPT reserves two rows for padding.
    return positions + 2 if fields.model_type == "opt" else positions


def _windows(
    fields: ConfigFields, family: ModelFamily, layer_count: int, hybrid: Sequence[str]
) -> tuple[int | None, ...]:
    """Return each layer's window in tokens; None if it attends to the whole context.

    A chunked layer (Llama 4) attends to its own chunk, on average half of it; the chunk is taken
    as its window, an upper bound.
    """
    if hybrid:  # full attention, and layers without attention
        return (None,) * layer_count
    if family.windows == "file":
        return _modern_bert(fields, layer_count)
    chunk = fields.integer("attention_chunk_size")
    window = fields.integer("sliding_window") or chunk
    kinds = fields.raw("layer_types")
    if isinstance(kinds, Sequence) and not isinstance(kinds, str):
        if len(kinds) < layer_count:
            raise fields.error(f"layer_types has {len(kinds)} entries for {layer_count} layers")
        return tuple(_window_of(fields, str(kind), window, chunk) for kind in kinds[:layer_count])
    if not window or fields.raw("use_sliding_window") is False:
        return (None,) * layer_count
    if fields.raw("use_sliding_window") is True:
        # Qwen 2: the first `max_window_layers` layers keep full attention.
        first = fields.integer("max_window_layers") or 0
        return tuple(window if layer >= first else None for layer in range(layer_count))
    return _laid_out(fields, family, layer_count, window)


def _modern_bert(fields: ConfigFields, layer_count: int) -> tuple[int | None, ...]:
    """Every third layer attends to all, the others to half of `local_attention` on each side."""
    window = fields.require("local_attention") + 1
    every = fields.integer("global_attn_every_n_layers") or 3
    return tuple(None if layer % every == 0 else window for layer in range(layer_count))


def _mixtures(
    fields: ConfigFields, family: ModelFamily, layer_count: int, hybrid: Sequence[str]
) -> tuple[MixtureOfExperts | None, ...]:
    """Return each layer's experts, None for a layer with one dense feed-forward part."""
    if not fields.integer("num_experts") or (MLP in hybrid and MOE not in hybrid):
        return (None,) * layer_count
    if fields.integer("moe_latent_size"):
        raise fields.error("experts behind a latent projection are not supported (moe_latent_size)")
    mixture = MixtureOfExperts(
        experts=fields.require("num_experts"),
        active_experts=fields.require("num_experts_per_tok"),
        intermediate_size=_expert_size(fields),
        shared_intermediate_size=_shared_size(fields),
        shared_gate=family.shared_gate,
        expert_bias=family.expert_bias,
        router_bias=family.router_bias,
    )
    if MOE in hybrid:  # each layer has only one part
        return tuple(mixture if kind == MOE else None for kind in hybrid)
    return tuple(mixture if _holds_experts(fields, layer) else None for layer in range(layer_count))


def _window_of(
    fields: ConfigFields, kind: str, window: int | None, chunk: int | None
) -> int | None:
    if kind in FULL:
        return None
    if kind in SLIDING and window:
        return window
    if kind in CHUNKED and chunk:
        return chunk
    raise fields.error(f"layer type {kind!r} is not supported")


def _laid_out(
    fields: ConfigFields, family: ModelFamily, layer_count: int, window: int
) -> tuple[int | None, ...]:
    """Windows for files without a list of layer types: by the pattern, else by the family."""
    pattern = fields.raw("sliding_window_pattern") or fields.raw("_sliding_window_pattern")
    layout = pattern if isinstance(pattern, int) and pattern > 0 else family.windows
    no_rotary = fields.raw("no_rope_layers")
    layers = range(layer_count)
    if isinstance(pattern, str) and pattern and not pattern.strip("LG"):
        # EXAONE 4 gives one period of local and global layers: LLLG.
        windowed = [pattern[layer % len(pattern)] == "L" for layer in layers]
    elif isinstance(no_rotary, list) and len(no_rotary) >= layer_count:
        # Llama 4 marks the layers that use rotary embedding (1), which are the chunked ones.
        windowed = no_rotary[:layer_count]
    elif isinstance(layout, int):
        windowed = [(layer + 1) % layout != 0 for layer in layers]
    else:
        windowed = [layout == "all" or (layout == "even" and layer % 2 == 0) for layer in layers]
    return tuple(window if has_window else None for has_window in windowed)


def _expert_size(fields: ConfigFields) -> int:
    """Intermediate size of one expert; Mixtral and Llama 4 use the general field."""
    size = fields.integer("moe_intermediate_size")
    return size or fields.require("intermediate_size")


def _shared_size(fields: ConfigFields) -> int:
    """Intermediate size of all shared experts together; 0 without any."""
    explicit = (
        fields.integer("shared_expert_intermediate_size")
        or fields.integer("shared_intermediate_size")
        or fields.integer("moe_shared_expert_intermediate_size")
    )
    if explicit:
        return explicit
    count = fields.integer("n_shared_experts") or 0
    if not count and fields.model_type in {"llama4_text", "hunyuan_v1_moe"}:
        count = 1
    return count * _expert_size(fields) if count else 0


def _holds_experts(fields: ConfigFields, layer: int) -> bool:
    """Whether a layer has experts, by the rule of its family."""
    listed = fields.raw("moe_layers")
    if isinstance(listed, list) and listed:
        return layer in listed
    kinds = fields.raw("mlp_layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        return str(kinds[layer]) != "dense"
    dense_only = fields.raw("mlp_only_layers")
    if isinstance(dense_only, list) and layer in dense_only:
        return False
    period = fields.integer("expert_layer_period")
    if period:  # Jamba
        return layer % period == (fields.integer("expert_layer_offset") or 0)
    step = fields.integer("interleave_moe_layer_step") or fields.integer("decoder_sparse_step")
    if step:
        return (layer + 1) % step == 0
    frequency = fields.raw("moe_layer_freq")
    if isinstance(frequency, list):
        return layer < len(frequency) and bool(frequency[layer])
    first = fields.integer("first_k_dense_replace") or fields.integer("moe_layer_start_index") or 0
    every = fields.integer("moe_layer_freq") or fields.integer("moe_layer_interval") or 1
    return layer >= first and layer % every == 0
