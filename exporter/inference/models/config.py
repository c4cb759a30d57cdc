"""A model description from a Hugging Face config.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.inference.models.attention import (
    Attention,
    CompressedAttention,
    GroupedAttention,
    Indexer,
    LatentAttention,
)
from exporter.inference.models.deepseek_v4 import deepseek_v4_stack
from exporter.inference.models.description import (
    LayerGroup,
    MixtureOfExperts,
    ModelDescription,
    ModelDescriptionError,
    Stack,
    UnknownArchitectureError,
    WeightBytes,
)
from exporter.inference.models.families import FAMILIES, FOREIGN_FIELDS, REFUSED, ModelFamily
from exporter.inference.models.fields import LARGEST_LAYER_COUNT, ConfigFields, language_model
from exporter.inference.models.gemma import gemma_stack
from exporter.inference.models.hybrid import (
    FULL_ATTENTION,
    MLP,
    MOE,
    NO_MIXER,
    layer_kinds,
    mixer_of,
)
from exporter.inference.models.irregular import (
    longcat_stack,
    minimax_m3_stack,
    nemotron_nas_stack,
    step3_stack,
    whisper_stack,
    windowed_heads_stack,
)
from exporter.inference.models.layers import mixtures, windows
from exporter.inference.models.quantization import (
    BYTES_PER_VALUE,
    MXFP4_BYTES,
    LayerKinds,
    cache_scheme,
    cache_value_bytes,
    data_type,
    weight_bytes,
    weight_scheme,
)


_V4_ENTRY_BYTES, _V4_ENTRY_VALUES = 584, 512
# Real files take a few kilobytes; with the longest lists of unquantized modules, a few hundred.
LARGEST_FILE_BYTES = 4 * 1024 * 1024


def load_description(
    path: Path | str, *, cache_data_type: str | None = None, precision: str | None = None
) -> ModelDescription:
    """Return the description of the model whose config.json is at `path` (a file or its folder).

    `cache_data_type` (as the engine names it) and `precision` override what the file says.
    Raises ModelDescriptionError with one line naming the file and what is wrong.
    """
    place = Path(path)
    if place.is_dir():
        place = place / "config.json"
    try:
        values = _read_json(place)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDescriptionError(f"{place}: {_one_line(error)}") from error
    if not isinstance(values, Mapping):
        raise ModelDescriptionError(f"{place}: not a JSON object")
    values = {**_quantization_file(place), **values}
    try:
        return describe(values, cache_data_type=cache_data_type, precision=precision)
    except UnknownArchitectureError as error:
        raise ModelDescriptionError(f"{place}: {error}") from error


def _read_json(place: Path) -> Any:
    if not place.is_file():
        raise ModelDescriptionError(f"{place}: no such file")
    if place.stat().st_size > LARGEST_FILE_BYTES:
        raise ModelDescriptionError(f"{place}: larger than {LARGEST_FILE_BYTES} bytes")
    return json.loads(place.read_text(encoding="utf-8"))


def _quantization_file(place: Path) -> dict[str, Any]:
    """ModelOpt's file next to config.json, used if the latter has no quantization settings.

    Raises ModelDescriptionError if the file exists but cannot be read: the weights are then
    quantized in an unknown way.
    """
    file = place.parent / "hf_quant_config.json"
    try:
        if not file.exists():
            return {}
        values = _read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDescriptionError(f"{file}: {_one_line(error)}") from error
    if not isinstance(values, Mapping):
        raise ModelDescriptionError(f"{file}: not a JSON object")
    return {"quantization_config": dict(values)}


def describe(
    config: Mapping[str, Any], *, cache_data_type: str | None = None, precision: str | None = None
) -> ModelDescription:
    """Return the description of a parsed config.json.

    Raises UnknownArchitectureError, naming the missing fields, if the formulas do not apply.
    """
    outer = str(config.get("model_type") or "unknown")
    if outer in REFUSED:
        raise UnknownArchitectureError(outer, reason=REFUSED[outer])
    values = language_model(config)
    family = _family(str(values.get("model_type") or "unknown"))
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
    layers = LayerKinds(len(stack.layers), stack.dense, stack.experts)
    return _with_formats(model, fields, layers, cache_data_type, precision)


def _common_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """The layers of a family that follows the common rules."""
    kinds = layer_kinds(fields, family)
    hidden = fields.require("hidden_size")
    layer_count = len(kinds) if kinds else fields.require("num_hidden_layers")
    attends = not kinds or FULL_ATTENTION in kinds
    attention = _attention(fields, family) if attends else NO_MIXER
    chosen = fields.integer("index_topk")
    experts = mixtures(fields, family, min(layer_count, LARGEST_LAYER_COUNT), kinds)
    denses = (
        _dense_sizes(fields, hidden, experts, kinds) if family.feed_forward else (0,) * layer_count
    )
    fields.check()
    if layer_count > LARGEST_LAYER_COUNT:
        raise fields.error(f"num_hidden_layers is {layer_count}")
    spans = (chosen,) * layer_count if chosen else windows(fields, family, layer_count, kinds)
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


def _family(model_type: str) -> ModelFamily:
    """The family of an architecture that is known exactly; raises UnknownArchitectureError."""
    family = FAMILIES.get(model_type)
    if family is None:
        reason = REFUSED.get(model_type, "it is not in the list of supported architectures")
        raise UnknownArchitectureError(model_type, reason=reason)
    return family


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
    fields: ConfigFields,
    hidden: int,
    experts: Sequence[MixtureOfExperts | None],
    kinds: Sequence[str],
) -> tuple[int, ...]:
    """Intermediate size of each layer's dense feed-forward part; 0 without one."""
    if kinds and set(kinds) & {MLP, MOE}:  # each layer has only one part
        size = fields.require("intermediate_size") if MLP in kinds else 0
        return tuple(size if kind == MLP else 0 for kind in kinds)
    if experts and all(mixture is not None for mixture in experts):
        return (0,) * len(experts)
    size = _dense_size(fields, hidden)
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
    heads = fields.require("num_attention_heads")
    if fields.integer("kv_lora_rank"):
        return LatentAttention(
            query_heads=heads,
            query_rank=fields.integer("q_lora_rank") or 0,
            latent_rank=fields.require("kv_lora_rank"),
            plain_head_size=fields.require("qk_nope_head_dim"),
            rotary_head_size=fields.require("qk_rope_head_dim"),
            value_head_size=fields.require("v_head_dim"),
            indexer=_indexer(fields),
        )
    hidden = fields.integer("hidden_size") or 0
    head_size = fields.integer("head_dim") or (hidden // heads if heads else 0)
    key_value_heads = _key_value_heads(fields, heads)
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


def _indexer(fields: ConfigFields) -> Indexer | None:
    """The indexer of sparse attention (DeepSeek-V3.2 and related models)."""
    if not fields.integer("index_topk"):
        return None
    return Indexer(fields.require("index_n_heads"), fields.require("index_head_dim"))


def _of_layer(fields: ConfigFields, attention: Attention, layer: int) -> Attention:
    """The attention of one layer; some share the indexer of a layer below (GLM 5.2)."""
    kinds = fields.raw("indexer_types")
    shared = isinstance(kinds, list) and layer < len(kinds) and kinds[layer] != "full"
    if shared and isinstance(attention, LatentAttention):
        return replace(attention, indexer=None)
    return attention


def _key_value_heads(fields: ConfigFields, heads: int) -> int:
    # Falcon writes both; its older models ignore num_kv_heads when multi_query is set.
    if fields.flag("multi_query") and not fields.flag("new_decoder_architecture"):
        return 1
    return fields.integer("num_key_value_heads") or heads


def _dense_size(fields: ConfigFields, hidden: int) -> int:
    """Intermediate size of a dense feed-forward part; in old families 4 times the hidden size."""
    size = (
        fields.integer("intermediate_size_mlp")
        or fields.integer("dense_intermediate_size")
        or fields.integer("intermediate_size")
    )
    if size:
        return size
    if fields.model_type in {"falcon", "gpt2", "gptj", "gpt_bigcode"} and hidden:
        return 4 * hidden
    return fields.require("intermediate_size")


def _positions(fields: ConfigFields) -> int:
    positions = fields.integer("n_positions") or fields.integer("max_position_embeddings") or 0
    # OPT reserves two rows for padding.
    return positions + 2 if fields.model_type == "opt" else positions


def _with_formats(
    model: ModelDescription,
    fields: ConfigFields,
    layers: LayerKinds,
    cache_data_type: str | None,
    precision: str | None,
) -> ModelDescription:
    """Add the storage formats of weights and cache, and the precision of the products."""
    own = data_type(fields.raw("torch_dtype") or fields.raw("dtype"))
    plain = BYTES_PER_VALUE[own]
    weights = WeightBytes(plain, plain, plain, plain, plain, plain)
    compute, cache = own, None
    quantization = fields.raw("quantization_config")
    if isinstance(quantization, Mapping) and quantization:
        scheme = weight_scheme(quantization)
        cache = cache_scheme(quantization)
        if scheme is None:
            method = str(quantization.get("quant_method") or quantization.get("quant_algo"))
            raise fields.error(f"quantization {method[:60]!r} is not supported")
        weights = weight_bytes(scheme, quantization, plain, layers)
        compute = scheme.compute or own
        if _four_bit_experts(fields, quantization):
            weights = replace(weights, experts=MXFP4_BYTES)
    chosen = cache_data_type if cache_data_type and cache_data_type != "auto" else cache
    return replace(
        model,
        weights=weights,
        data_type=own,
        compute_precision=precision or compute,
        cache_value_bytes=_cache_bytes(model, chosen, own),
        state_value_bytes=4.0 if _full_states(fields) else 2.0,
    )


def _four_bit_experts(fields: ConfigFields, quantization: Mapping[str, Any]) -> bool:
    """Whether experts are stored in fewer bits than the rest (DeepSeek-V4: fp8 with MXFP4)."""
    return str(fields.raw("expert_dtype") or quantization.get("expert_dtype")).lower() == "fp4"


def _cache_bytes(model: ModelDescription, chosen: object, own: str) -> float:
    """Bytes of a cached number. Sparse attention in fp8 has a special layout in vLLM and SGLang.

    DeepSeek-V3.2: 512 numbers in fp8 with 4 scales of 32 bits, 64 rotary numbers in bf16.
    DeepSeek-V4, which engines keep in fp8 by default: 448 in fp8, 64 in bf16, 8 bytes of scales.
    """
    plain = cache_value_bytes(chosen, own)
    kinds = {type(group.attention) for group in model.layers}
    if CompressedAttention in kinds and (plain == 1.0 or chosen in (None, "auto")):
        return _V4_ENTRY_BYTES / _V4_ENTRY_VALUES
    latent = next((g.attention for g in model.layers if type(g.attention) is LatentAttention), None)
    if plain == 1.0 and latent is not None and any(_is_sparse(group) for group in model.layers):
        scales = 4 * (latent.latent_rank // 128)
        stored = latent.latent_rank + scales + 2 * latent.rotary_head_size
        return stored / latent.cached_values
    return plain


def _is_sparse(group: LayerGroup) -> bool:
    return isinstance(group.attention, LatentAttention) and group.attention.indexer is not None


def _full_states(fields: ConfigFields) -> bool:
    """Whether the states of recurrent layers are kept in 32 bits, as set in some files."""
    stored = fields.raw("mamba_ssm_dtype") or fields.raw("mamba_ssm_cache_dtype")
    return str(stored).removeprefix("torch.") == "float32"


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
