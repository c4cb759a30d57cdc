"""Families with other mixers than plain attention: recurrent layers, and attention to selected keys.

Source of DeepSeek-V4: DeepSeek-AI, "DeepSeek-V4" (2026). Source of the others: the classes in Hugging
Face transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exporter.inference.models import Extras, LayerGroup, MixtureOfExperts, Stack
from exporter.inference.models.attention import (
    Attention,
    BlockSelector,
    CompressedAttention,
    GroupedAttention,
    Indexer,
    LatentAttention,
)
from exporter.inference.models.families import (
    LARGEST_LAYER_COUNT,
    ConfigFields,
    ModelFamily,
    dense_or_experts,
    kinds_of,
    layer_total,
)


FULL_ATTENTION, RECURRENT, MLP, MOE = "full_attention", "linear_attention", "mlp", "moe"
# The letters of Nemotron-H's layer string, and the names used in older files.
_LETTERS = {"M": RECURRENT, "*": FULL_ATTENTION, "-": MLP, "E": MOE}
_NAMES = {
    "mamba": RECURRENT,
    "linear_attention": RECURRENT,
    "attention": FULL_ATTENTION,
    "full_attention": FULL_ATTENTION,
    "mlp": MLP,
    "moe": MOE,
}
_V4_WINDOW, _V4_SPARSE, _V4_HEAVY = (
    "sliding_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
)
# Older files list the ratio of each layer instead of its kind.
_KIND_OF_RATIO = {0: _V4_WINDOW, 4: _V4_SPARSE, 128: _V4_HEAVY}
_RATIOS = {_V4_SPARSE: 4, _V4_HEAVY: 128}
# Hyper-connections are stored and multiplied in 32 bits.
_CONNECTION_BYTES = 4.0
_BLOCKS = "minimax_m3_sparse"


@dataclass(frozen=True, slots=True)
class RecurrentMixer(Attention):
    """A layer with a state of fixed size instead of attention to its context.

    Gated delta networks (Yang et al., arXiv 2412.06464), Kimi delta attention (arXiv 2510.26692),
    Mamba (Gu and Dao, arXiv 2312.00752), Mamba-2 (Dao and Gu, arXiv 2405.21060). Work per token
    does not depend on the context; it is counted in the recurrent form, whatever chunk size an
    engine uses for prompts.
    """

    # Projections and the short convolution before the state.
    matrices: int
    vectors: int
    # Numbers of the state of one sequence, in this layer.
    state_values: int = 0
    # FLOPs of one token's reads and writes of the state.
    token_flop: int = 0

    def matrix_parameters(self, hidden_size: int) -> int:
        """Parameters of projections and convolution; the sizes are in them already."""
        return self.matrices

    def vector_parameters(self, hidden_size: int) -> int:
        """Parameters of biases, decays and norms."""
        return self.vectors

    # It attends to no other token and caches none.
    prefill_pair_flop = 0
    decode_pair_flop = 0
    cached_values = 0

    def cache_copies(self, tensor_parallel: int) -> float:
        """The state is split over the heads."""
        return 1.0


# A layer with only a feed-forward part (Nemotron-H, Nemotron-NAS).
NO_MIXER = RecurrentMixer(matrices=0, vectors=0)


def layer_kinds(fields: ConfigFields, family: ModelFamily) -> tuple[str, ...]:
    """Return the kind of each layer; empty for a family with attention in all layers."""
    if not family.recurrent:
        return ()
    count = fields.integer("num_hidden_layers")
    kinds = _written(fields)
    if kinds is None and family.recurrent == "kimi":
        kinds = _kimi(fields, count or 0)
    if kinds is None and family.recurrent == "delta":
        every = fields.integer("full_attention_interval") or 4
        layers = range(min(count or 0, LARGEST_LAYER_COUNT))
        kinds = [FULL_ATTENTION if (layer + 1) % every == 0 else RECURRENT for layer in layers]
    if kinds is None and family.recurrent in {"mamba", "mamba2"} and count:
        kinds = _attending(fields, min(count, LARGEST_LAYER_COUNT))
    if not kinds:
        raise fields.error("the file does not say which layers are recurrent")
    if count and len(kinds) < count:
        raise fields.error(f"{len(kinds)} kinds of layers for {count} layers")
    return tuple(kinds[: min(count or len(kinds), LARGEST_LAYER_COUNT)])


def mixer_of(fields: ConfigFields, family: ModelFamily, kind: str) -> RecurrentMixer:
    """Return the mixer of a layer without attention."""
    if kind in {MLP, MOE}:
        return NO_MIXER
    if family.recurrent == "delta":
        return _gated_delta(fields)
    if family.recurrent == "mamba":
        return _mamba(fields)
    return _kimi_delta(fields) if family.recurrent == "kimi" else _mamba2(fields)


def _written(fields: ConfigFields) -> list[str] | None:
    """The kinds, if the file lists them."""
    pattern = fields.raw("hybrid_override_pattern")
    if isinstance(pattern, str) and pattern:
        letters = [letter for letter in pattern if letter != "|"]
        if not set(letters) <= set(_LETTERS):
            raise fields.error("hybrid_override_pattern has letters that are not supported")
        return [_LETTERS[letter] for letter in letters]
    for name in ("layers_block_type", "layer_types"):
        listed = fields.raw(name)
        if isinstance(listed, Sequence) and not isinstance(listed, str) and listed:
            unknown = {str(kind) for kind in listed} - set(_NAMES)
            if unknown:
                raise fields.error(f"layer type {min(unknown)!r} is not supported")
            return [_NAMES[str(kind)] for kind in listed]
    return None


def _kimi(fields: ConfigFields, count: int) -> list[str] | None:
    """Kimi Linear numbers its attention layers from 1."""
    settings = fields.raw("linear_attn_config")
    full = settings.get("full_attn_layers") if isinstance(settings, dict) else None
    if not isinstance(full, list) or count > LARGEST_LAYER_COUNT:
        return None
    return [FULL_ATTENTION if layer + 1 in full else RECURRENT for layer in range(count)]


def _attending(fields: ConfigFields, count: int) -> list[str]:
    """Jamba gives a period and an offset of its attention layers; Mamba has none."""
    period = fields.integer("attn_layer_period")
    if not period:
        return [RECURRENT] * count
    offset = fields.integer("attn_layer_offset") or 0
    return [FULL_ATTENTION if layer % period == offset else RECURRENT for layer in range(count)]


def _gated_delta(fields: ConfigFields) -> RecurrentMixer:
    """Gated delta network: convolved queries, keys, values; per head a state of key by value size.

    Per value head the state is read with the key, corrected by an outer product, and read with the
    query: three products of key size by value size.
    """
    hidden = fields.require("hidden_size")
    key_size = fields.require("linear_key_head_dim")
    value_size = fields.require("linear_value_head_dim")
    value_heads = fields.require("linear_num_value_heads")
    keys = key_size * fields.require("linear_num_key_heads")
    values = value_size * value_heads
    convolved = 2 * keys + values
    state = value_heads * key_size * value_size
    return RecurrentMixer(
        matrices=hidden * (2 * keys + 2 * values + 2 * value_heads)
        + values * hidden
        + convolved * fields.require("linear_conv_kernel_dim"),
        vectors=2 * value_heads + value_size,
        state_values=state,
        token_flop=6 * state,
    )


def _kimi_delta(fields: ConfigFields) -> RecurrentMixer:
    """Kimi delta attention: as above, with a decay for each channel and low-rank gates."""
    raw = fields.raw("linear_attn_config")
    settings = raw if isinstance(raw, dict) else {}
    hidden = fields.require("hidden_size")

    def size_of(name: str, otherwise: str) -> int:
        found = fields.whole(f"linear_attn_config.{name}", settings.get(name))
        return found or fields.require(otherwise)

    heads = size_of("num_heads", "linear_num_heads")
    size = size_of("head_dim", "linear_head_dim")
    kernel = size_of("short_conv_kernel_size", "linear_conv_kernel_dim")
    wide = heads * size
    state = heads * size * size
    return RecurrentMixer(
        matrices=4 * hidden * wide
        + 3 * wide * kernel
        + 2 * (hidden + wide) * size
        + hidden * heads,
        vectors=wide + heads + size,
        state_values=state,
        token_flop=6 * state,
    )


def _mamba(fields: ConfigFields) -> RecurrentMixer:
    """Mamba-1: each channel has its own state, written and read once per token.

    The time step has a low-rank projection. Jamba normalizes it, and the input and output.
    """
    hidden = fields.require("hidden_size")
    inner = fields.integer("mamba_expand") or fields.integer("expand") or 2
    inner *= hidden
    if fields.model_type != "jamba" and fields.integer("intermediate_size"):
        inner = fields.require("intermediate_size")
    states = fields.integer("mamba_d_state") or fields.require("state_size")
    kernel = fields.integer("mamba_d_conv") or fields.require("conv_kernel")
    rank = -(-hidden // 16)
    for name in ("mamba_dt_rank", "time_step_rank"):
        if fields.raw(name) not in (None, "auto"):
            rank = fields.require(name)
    norms = rank + 2 * states if fields.model_type == "jamba" else 0
    bias = fields.flag("mamba_proj_bias") or fields.flag("use_bias")
    convolved = fields.flag("mamba_conv_bias", default=fields.flag("use_conv_bias", default=True))
    return RecurrentMixer(
        matrices=hidden * 2 * inner
        + inner * kernel
        + inner * (rank + 2 * states)
        + rank * inner
        + inner * hidden,
        # Decays and skips, the bias of the time step, and the biases set in the file.
        vectors=inner * (states + 2) + norms + inner * convolved + (2 * inner + hidden) * bias,
        state_values=inner * states,
        token_flop=4 * inner * states,
    )


def _mamba2(fields: ConfigFields) -> RecurrentMixer:
    """Mamba-2: per head a state of head size by state size, written and read once per token."""
    hidden = fields.require("hidden_size")
    heads = fields.integer("mamba_num_heads") or fields.require("num_heads")
    inner = heads * (fields.integer("mamba_head_dim") or fields.require("head_dim"))
    states = fields.integer("ssm_state_size") or fields.require("state_size")
    groups = fields.require("n_groups") * states
    convolved = inner + 2 * groups
    return RecurrentMixer(
        matrices=hidden * (2 * inner + 2 * groups + heads)
        + inner * hidden
        + convolved * fields.require("conv_kernel"),
        vectors=convolved * fields.flag("use_conv_bias", default=True) + 3 * heads + inner,
        state_values=inner * states,
        token_flop=4 * inner * states,
    )


def latent_attention(fields: ConfigFields, indexer: Indexer | None = None) -> LatentAttention:
    """Return multi-head latent attention, with an indexer if it is sparse."""
    return LatentAttention(
        query_heads=fields.require("num_attention_heads"),
        query_rank=fields.integer("q_lora_rank") or 0,
        latent_rank=fields.require("kv_lora_rank"),
        plain_head_size=fields.require("qk_nope_head_dim"),
        rotary_head_size=fields.require("qk_rope_head_dim"),
        value_head_size=fields.require("v_head_dim"),
        indexer=indexer,
    )


def deepseek_v4_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the layers of a DeepSeek-V4 model."""
    count = layer_total(fields)
    hidden = fields.require("hidden_size")
    window = fields.require("sliding_window")
    kinds = _v4_kinds(fields, count)
    mixture = MixtureOfExperts(
        experts=fields.require("num_experts"),
        active_experts=fields.require("num_experts_per_tok"),
        intermediate_size=fields.require("moe_intermediate_size"),
        shared_intermediate_size=(fields.integer("n_shared_experts") or 0)
        * fields.require("moe_intermediate_size"),
    )
    streams = fields.require("hc_mult")
    attentions = {kind: _v4_attention(fields, kind) for kind in dict.fromkeys(kinds)}
    fields.check()
    layers = tuple(
        LayerGroup(
            count=1,
            attention=attentions[kind],
            window=window,
            intermediate_size=0,
            mixture=mixture,
            extras=_v4_extras(attentions[kind], hidden, streams),
        )
        for kind in kinds
    )
    # At the end one more projection joins the streams.
    head = Extras(streams * streams * hidden, streams + 1, 2 * streams * hidden, _CONNECTION_BYTES)
    return Stack(layers, {"extras": head})


def _v4_kinds(fields: ConfigFields, count: int) -> tuple[str, ...]:
    kinds = kinds_of(fields, "layer_types", count, (_V4_WINDOW, _V4_SPARSE, _V4_HEAVY))
    if kinds is not None:
        return kinds
    ratios = fields.raw("compress_ratios")
    if isinstance(ratios, list) and len(ratios) >= count:
        whole = [fields.whole("compress_ratios", ratio) for ratio in ratios[:count]]
        kinds = tuple(_KIND_OF_RATIO.get(-1 if ratio is None else ratio, "") for ratio in whole)
        if not all(kinds):
            raise fields.error("compress_ratios has ratios other than 0, 4 and 128")
        return kinds
    raise fields.error("the file does not give the attention of each layer")


def _v4_attention(fields: ConfigFields, kind: str) -> CompressedAttention:
    rates = fields.raw("compress_rates")
    ratio = _RATIOS.get(kind, 0)
    if ratio and isinstance(rates, Mapping):
        ratio = fields.whole("compress_rates", rates.get(kind)) or ratio
    sparse = kind == _V4_SPARSE
    return CompressedAttention(
        query_heads=fields.require("num_attention_heads"),
        head_size=fields.require("head_dim"),
        query_rank=fields.require("q_lora_rank"),
        output_groups=fields.require("o_groups"),
        output_rank=fields.require("o_lora_rank"),
        ratio=ratio,
        chosen=fields.require("index_topk") if sparse else 0,
        index_heads=fields.require("index_n_heads") if sparse else 0,
        index_head_size=fields.require("index_head_dim") if sparse else 0,
    )


def _v4_extras(attention: CompressedAttention, hidden: int, streams: int) -> Extras:
    """The compressor, and a hyper-connection before attention and one before the experts.

    Each projects all streams to the weights that join them into one input and mix them with the
    output: `streams` weights to join, as many to distribute, and `streams` squared to mix.
    """
    connection = (2 + streams) * streams
    compressor = attention.compressor_parameters(hidden)
    matrices = 2 * connection * streams * hidden
    mean_bytes = (2.0 * compressor + _CONNECTION_BYTES * matrices) / (compressor + matrices)
    return Extras(
        matrices=compressor + matrices,
        vectors=2 * (connection + 3),
        # Joining the streams, and mixing them.
        token_flop=2 * (2 * streams * hidden + 2 * streams**2 * hidden),
        value_bytes=mean_bytes,
    )


def minimax_m3_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the layers of a MiniMax-M3 text model: most of them select blocks of keys."""
    count = layer_total(fields)
    settings = fields.raw("sparse_attention_config")
    sparse: Mapping[str, Any] = settings if isinstance(settings, Mapping) else {}
    kinds = kinds_of(fields, "layer_types", count, (FULL_ATTENTION, _BLOCKS))
    if kinds is None:
        marks = sparse.get("sparse_attention_freq")
        listed = marks if isinstance(marks, list) and len(marks) >= count else [0] * count
        kinds = tuple(_BLOCKS if mark else FULL_ATTENTION for mark in listed[:count])

    def setting(name: str, older: str) -> int:
        return fields.whole(older, sparse.get(older)) or fields.require(name)

    plain = GroupedAttention(
        query_heads=fields.require("num_attention_heads"),
        key_value_heads=fields.require("num_key_value_heads"),
        head_size=fields.require("head_dim"),
        query_key_norm_size=2 * fields.require("head_dim"),
    )
    chooser = None
    if _BLOCKS in kinds:
        chooser = BlockSelector(
            heads=setting("index_n_heads", "sparse_num_index_heads"),
            head_size=setting("index_head_dim", "sparse_index_dim"),
            block_tokens=setting("index_block_size", "sparse_block_size"),
            blocks=setting("index_topk_blocks", "sparse_topk_blocks"),
        )
        if not setting("index_local_blocks", "sparse_local_block"):
            raise fields.error("attention that leaves out the query's own block is not supported")
    mixture = MixtureOfExperts(
        experts=fields.require("num_experts"),
        active_experts=fields.require("num_experts_per_tok"),
        intermediate_size=fields.require("intermediate_size"),
        shared_intermediate_size=fields.integer("shared_intermediate_size") or 0,
        router_bias=family.router_bias,
    )
    fields.check()
    sizes = dense_or_experts(fields, count, "dense_intermediate_size")
    layers = tuple(
        LayerGroup(
            1,
            replace(plain, selector=chooser if kinds[layer] == _BLOCKS else None),
            None,
            sizes[layer],
            None if sizes[layer] else mixture,
        )
        for layer in range(count)
    )
    fields.check()
    return Stack(layers)
