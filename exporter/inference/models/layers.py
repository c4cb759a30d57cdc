"""The layers of a model: which ones have a window, and which ones have experts."""

from collections.abc import Sequence

from exporter.inference.models.description import MixtureOfExperts
from exporter.inference.models.families import ModelFamily
from exporter.inference.models.fields import ConfigFields


FULL = ("full_attention", "attention", "global")
SLIDING = ("sliding_attention", "local_attention", "local")
CHUNKED = ("chunked_attention",)


def windows(
    fields: ConfigFields, family: ModelFamily, layer_count: int, hybrid: Sequence[str] = ()
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


def mixtures(
    fields: ConfigFields, family: ModelFamily, layer_count: int, hybrid: Sequence[str] = ()
) -> tuple[MixtureOfExperts | None, ...]:
    """Return each layer's experts, None for a layer with one dense feed-forward part."""
    if not fields.integer("num_experts") or (set(hybrid) & {"mlp"} and "moe" not in hybrid):
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
    if "moe" in hybrid:  # each layer has only one part
        return tuple(mixture if kind == "moe" else None for kind in hybrid)
    if set(hybrid) & {"mlp", "moe"}:
        return (None,) * layer_count
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
    if isinstance(pattern, str) and pattern and not pattern.strip("LG"):
        # EXAONE 4 gives one period of local and global layers: LLLG.
        period = len(pattern)
        return tuple(
            window if pattern[layer % period] == "L" else None for layer in range(layer_count)
        )
    layout = pattern if isinstance(pattern, int) and pattern > 0 else family.windows
    no_rotary = fields.raw("no_rope_layers")
    if isinstance(no_rotary, list) and len(no_rotary) >= layer_count:
        # Llama 4 marks the layers that use rotary embedding (1), which are the chunked ones.
        return tuple(window if rotary else None for rotary in no_rotary[:layer_count])
    if layout == "none":
        return (None,) * layer_count
    if layout == "even":
        return tuple(window if layer % 2 == 0 else None for layer in range(layer_count))
    if isinstance(layout, int):
        return tuple(None if (layer + 1) % layout == 0 else window for layer in range(layer_count))
    return (window,) * layer_count


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
