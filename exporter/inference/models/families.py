"""What a Hugging Face config.json says about a model, and what its family fixes without saying so.

Source: the modelling code of Hugging Face transformers for each family, and the papers and
model cards of the models themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from exporter.inference.models import UnknownArchitectureError


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """The traits of one `model_type`, as in the class of that name in transformers."""

    gated: bool = True
    query_key_value_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    norms_per_layer: int = 2
    norm_bias: bool = False
    # "head": one norm of head size for queries, one for keys; "all": over all heads at once.
    query_key_norm: str = ""
    sinks: bool = False
    expert_bias: bool = False
    router_bias: bool = False
    shared_gate: bool = False
    tied_embeddings: bool = False
    learned_positions: bool = False
    # A projection of the input gates the output of attention.
    gated_output: bool = False
    # One number per head gates the output (Step 3.5).
    head_gate: bool = False
    # The builder of the layers, for a family that the common rules do not cover (see config.py).
    stack: str = ""
    # Layers other than attention: "delta" (gated delta network), "kimi" (Kimi delta attention),
    # "mamba" or "mamba2"; and their fields.
    recurrent: str = ""
    # Whether layers have a feed-forward part at all.
    feed_forward: bool = True
    own_fields: frozenset[str] = frozenset()
    # Attends to all tokens and generates none.
    encoder: bool = False
    outer_norms: int = 1
    # The layout of sliding windows in files without `layer_types`: all, none, even (every other
    # layer, starting with the first), or a number n: one layer in n is full.
    windows: str | int = "none"
    # The class's own defaults, for files that leave them out.
    defaults: Mapping[str, int | bool] = field(default_factory=dict)


_OLD_STYLE = ModelFamily(
    gated=False,
    query_key_value_bias=True,
    output_bias=True,
    feed_forward_bias=True,
    norm_bias=True,
)
_GPT2 = replace(_OLD_STYLE, tied_embeddings=True, learned_positions=True)
_LLAMA_SIZES = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip
_MISTRAL_SIZES = {**_LLAMA_SIZES, "intermediate_size": 14336, "num_key_value_heads": 8}
_GEMMA3_SIZES = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
    "sliding_window": 4096,
}  # fmt: skip
_GEMMA3N_SIZES = {
    "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 262_400,
    "sliding_window": 512, "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256, "altup_num_inputs": 4, "num_kv_shared_layers": 15,
    "laurel_rank": 64,
}  # fmt: skip
_GEMMA4_SIZES = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_144,
    "sliding_window": 512, "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
}  # fmt: skip
_JAMBA_SIZES = {
    "attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2,
    "expert_layer_offset": 1, "num_experts": 16, "num_experts_per_tok": 2, "mamba_d_state": 16,
    "mamba_d_conv": 4, "mamba_expand": 2,
}  # fmt: skip
_MAMBA = ModelFamily(
    norms_per_layer=1,
    tied_embeddings=True,
    recurrent="mamba",
    feed_forward=False,
    own_fields=frozenset({"state_size"}),
)
_DELTA = ModelFamily(
    query_key_norm="head",
    gated_output=True,
    recurrent="delta",
    own_fields=frozenset({"linear_num_key_heads"}),
)

# Families without a trait of their own, and those that differ in one or two.
_PLAIN = (
    "aria_text", "cwm", "deepseek", "deepseek_v2", "ernie4_5", "ernie4_5_moe", "exaone", "granite",
    "granitemoe", "granitemoeshared", "helium", "hyperclovax", "internlm2", "internlm3",
    "iquestcoder", "minicpm3", "ministral3", "youtu",
)  # fmt: skip
_WINDOW_IN_ALL = ("mistral3", "ministral", "mixtral", "phi3")
_QUERY_BIAS = (
    "glm", "qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "seed_oss",
)  # fmt: skip
_NORM_PER_HEAD = (
    "exaone4", "hunyuan_v1_dense", "hunyuan_v1_moe", "qwen3", "qwen3_moe", "qwen3_vl_moe_text",
    "qwen3_vl_text",
)  # fmt: skip
_ROUTER_BIAS = (
    "deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm4v_moe_text", "glm_moe_dsa",
    "kimi_k2", "sarvam_mla", "solar_open",
)  # fmt: skip
_NORM_AND_ROUTER_BIAS = ("exaone_moe", "hy_v3", "sarvam_moe")
_COHERE2 = ModelFamily(norms_per_layer=1, tied_embeddings=True, windows=4)
_GLM4 = ModelFamily(query_key_value_bias=True, norms_per_layer=4)
_ENCODERS = ("bert", "camembert", "roberta", "xlm-roberta")

FAMILIES: Mapping[str, ModelFamily] = {
    **dict.fromkeys(_PLAIN, ModelFamily()),
    **dict.fromkeys(_WINDOW_IN_ALL, ModelFamily(windows="all")),
    **dict.fromkeys(_QUERY_BIAS, ModelFamily(query_key_value_bias=True)),
    **dict.fromkeys(_NORM_PER_HEAD, ModelFamily(query_key_norm="head")),
    **dict.fromkeys(_ROUTER_BIAS, ModelFamily(router_bias=True)),
    **dict.fromkeys(_NORM_AND_ROUTER_BIAS, ModelFamily(query_key_norm="head", router_bias=True)),
    **dict.fromkeys(_ENCODERS, replace(_GPT2, encoder=True)),
    "llama": ModelFamily(defaults=_LLAMA_SIZES),
    "mistral": ModelFamily(windows="all", defaults=_MISTRAL_SIZES),
    "qwen2_moe": ModelFamily(query_key_value_bias=True, shared_gate=True),
    "gemma": ModelFamily(tied_embeddings=True),
    "gemma2": ModelFamily(norms_per_layer=4, tied_embeddings=True, windows="even"),
    "gemma3_text": ModelFamily(
        norms_per_layer=4,
        query_key_norm="head",
        tied_embeddings=True,
        windows=6,
        defaults=_GEMMA3_SIZES,
    ),
    "phi": _OLD_STYLE,
    "phimoe": ModelFamily(
        query_key_value_bias=True, output_bias=True, norm_bias=True, windows="all"
    ),
    "gpt_oss": ModelFamily(
        query_key_value_bias=True,
        output_bias=True,
        sinks=True,
        expert_bias=True,
        router_bias=True,
        windows="even",
    ),
    "glm4": _GLM4,
    "glm4v_text": _GLM4,
    "llama4_text": ModelFamily(windows=4),
    "olmo": ModelFamily(norms_per_layer=0),
    "olmo2": ModelFamily(query_key_norm="all"),
    "olmo3": ModelFamily(query_key_norm="all", windows=4),
    "olmoe": ModelFamily(query_key_norm="all"),
    "cohere": ModelFamily(norms_per_layer=1, tied_embeddings=True),
    "cohere2": _COHERE2,
    "smollm3": ModelFamily(tied_embeddings=True),
    "stablelm": ModelFamily(norm_bias=True),
    "falcon": ModelFamily(gated=False, norm_bias=True, tied_embeddings=True),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": _OLD_STYLE,
    "gptj": ModelFamily(gated=False, feed_forward_bias=True, norms_per_layer=1, norm_bias=True),
    "opt": _GPT2,
    "starcoder2": replace(_OLD_STYLE, tied_embeddings=True, windows="all"),
    "nemotron": ModelFamily(gated=False, norm_bias=True),
    "arcee": ModelFamily(gated=False),
    "apertus": ModelFamily(gated=False, query_key_norm="head"),
    "jais2": ModelFamily(gated=False, output_bias=True, norm_bias=True),
    "persimmon": replace(_OLD_STYLE, query_key_norm="head"),
    "qwen3_next": replace(_DELTA, shared_gate=True),
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": replace(_DELTA, shared_gate=True),
    "kimi_linear": ModelFamily(
        router_bias=True, recurrent="kimi", own_fields=frozenset({"linear_attn_config"})
    ),
    "nemotron_h": ModelFamily(
        gated=False,
        norms_per_layer=1,
        router_bias=True,
        recurrent="mamba2",
        own_fields=frozenset(
            {"hybrid_override_pattern", "layers_block_type", "ssm_state_size", "state_size"}
        ),
    ),
    "minimax_m2": ModelFamily(query_key_norm="all", router_bias=True),
    "cohere2_moe": _COHERE2,
    "flex_olmo": ModelFamily(query_key_norm="all"),
    "vaultgemma": ModelFamily(norms_per_layer=2, tied_embeddings=True, windows="even"),
    "gemma3n_text": ModelFamily(
        norms_per_layer=4,
        tied_embeddings=True,
        stack="gemma",
        defaults=_GEMMA3N_SIZES,
        own_fields=frozenset({"altup_num_inputs", "num_kv_shared_layers"}),
    ),
    "gemma4_text": ModelFamily(
        norms_per_layer=4,
        tied_embeddings=True,
        stack="gemma",
        defaults=_GEMMA4_SIZES,
        own_fields=frozenset({"global_head_dim", "num_kv_shared_layers"}),
    ),
    "deepseek_v4": ModelFamily(stack="deepseek_v4", own_fields=frozenset({"compress_ratios"})),
    "longcat_flash": ModelFamily(stack="longcat"),
    "minimax_m3_vl_text": ModelFamily(stack="minimax_m3"),
    "nemotron-nas": ModelFamily(stack="nemotron_nas"),
    "step3p5": ModelFamily(query_key_norm="head", head_gate=True, stack="windowed_heads"),
    "step3_text": ModelFamily(stack="step3"),
    "mimo_v2_flash": ModelFamily(
        sinks=True, stack="windowed_heads", own_fields=frozenset({"hybrid_layer_pattern"})
    ),
    "whisper": ModelFamily(
        gated=False,
        feed_forward_bias=True,
        norm_bias=True,
        tied_embeddings=True,
        stack="whisper",
    ),
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "mamba2": ModelFamily(
        norms_per_layer=1,
        recurrent="mamba2",
        feed_forward=False,
        own_fields=frozenset({"state_size"}),
    ),
    "jamba": ModelFamily(
        recurrent="mamba",
        own_fields=frozenset({"attn_layer_period", "mamba_d_state"}),
        defaults=_JAMBA_SIZES,
    ),
    "modernbert": ModelFamily(encoder=True, tied_embeddings=True, outer_norms=2, windows="file"),
}

# Fields and field values of layers other than plain attention: state-space, linear, convolution or
# sparse-index attention. Their FLOPs follow other formulas, so they are rejected by name.
FOREIGN_FIELDS = (
    "routed_expert_hidden_size", "attn_res_block_size", "mla_use_output_gate", "altup_num_inputs",
    "attn_layer_period", "compress_ratios", "conv_L_cache", "global_head_dim",
    "hybrid_layer_pattern", "hybrid_override_pattern", "layers_block_type", "linear_attn_config",
    "linear_num_key_heads", "mamba_d_state", "num_kv_shared_layers", "rwkv_version", "ssm_cfg",
    "ssm_state_size", "state_size",
)  # fmt: skip
# Known architectures that need other formulas, with the reason for rejecting them.
REFUSED: Mapping[str, str] = {
    "arctic": "a dense feed-forward part in parallel with the experts is not supported",
    "falcon_h1": "attention in parallel with a state-space layer is not supported",
    "kimi_k3": "attention over residuals and experts behind a latent projection are not supported",
    "lfm2": "convolution layers are not supported",
    "minimax": "lightning attention is not supported",
    "recurrent_gemma": "recurrent layers (Griffin) are not supported",
    "t5": "encoder-decoder models are not supported",
}


# Canonical name: other names of the same field, in the order in which they are tried.
ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": (
        "num_kv_heads",
        "n_head_kv",
        "kv_n_heads",
        "multi_query_group_num",
        "num_attention_groups",
    ),
    "head_dim": ("kv_channels", "attention_head_dim"),
    "intermediate_size": ("ffn_dim", "n_inner", "ffn_hidden_size"),
    "vocab_size": ("padded_vocab_size",),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": (
        "num_experts_per_token",
        "experts_per_token",
        "moe_topk",
        "moe_top_k",
        "moe_k",
    ),
    "moe_intermediate_size": ("expert_intermediate_size", "expert_ffn_hidden_size"),
    "share_expert_dim": ("share_expert_dims",),
    "n_shared_experts": ("num_shared_experts", "num_shared_expert", "moe_num_shared_experts"),
}
# Keys under which multimodal models nest their language model.
NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
# Fields that some families list once per layer (Hunyuan); a list of equal values counts as that
# value.
LISTED = frozenset({"num_experts_per_tok", "n_shared_experts", "moe_intermediate_size"})
# Larger than in any real model; a larger value means a broken file.
LARGEST_FIELD = 10**9
LARGEST_LAYER_COUNT = 10_000


class ConfigFields:
    """One config.json object; remembers which required fields were missing."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._values = values
        self._defaults = defaults
        self.missing: list[str] = []
        self.model_type = str(values.get("model_type") or "unknown")

    def raw(self, name: str) -> Any:
        """The value under `name` or one of its aliases, else the family's default, else None."""
        for key in (name, *ALIASES.get(name, ())):
            if self._values.get(key) is not None:
                return self._values[key]
        return self._defaults.get(name)

    def integer(self, name: str) -> int | None:
        """The field as a non-negative whole number, or None if it is missing."""
        value = self.raw(name)
        if name in LISTED and isinstance(value, list) and len(set(map(str, value))) == 1:
            value = value[0]  # the same for every layer
        return self.whole(name, value)

    def whole(self, name: str, value: Any) -> int | None:
        """`value` as a non-negative whole number in range, called `name` in errors; else None."""
        if value is None or isinstance(value, bool):
            return None
        # Some exporters write 0.0 and 8.0, and some families list one value per layer.
        whole = value.is_integer() if isinstance(value, float) else isinstance(value, int)
        if not whole:
            raise self.error(f"{name} is {value!r}, not a whole number")
        if not 0 <= value <= LARGEST_FIELD:
            raise self.error(f"{name} is {value!r}, out of range")
        return int(value)

    def require(self, name: str) -> int:
        """The field as a positive whole number; if it is missing, 0, and the name is recorded."""
        value = self.integer(name)
        if not value:
            self.missing.append(name)
            return 0
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """The field as a boolean."""
        value = self.raw(name)
        return default if value is None else bool(value)

    def check(self) -> None:
        """Raise UnknownArchitectureError if a required field was missing."""
        if self.missing:
            raise UnknownArchitectureError(self.model_type, missing_fields=sorted(self.missing))

    def error(self, reason: str) -> UnknownArchitectureError:
        """An error about this configuration."""
        return UnknownArchitectureError(self.model_type, reason=reason)


def language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a config.json, which is nested in multimodal models.

    Settings only in the outer object (quantization, data type) are copied into the inner one.
    """
    for name in NESTED:
        inner = config.get(name)
        if isinstance(inner, Mapping):
            carried = {
                key: config[key]
                for key in ("quantization_config", "torch_dtype", "dtype", "tie_word_embeddings")
                if key in config
            }
            # Nested twice: a thinker around a text model.
            return language_model({**carried, **inner})
    return config


def layer_total(fields: ConfigFields) -> int:
    """The number of layers; raises UnknownArchitectureError if it is implausible or missing."""
    count = fields.require("num_hidden_layers")
    fields.check()
    if count > LARGEST_LAYER_COUNT:
        raise fields.error(f"num_hidden_layers is {count}")
    return count


def kinds_of(
    fields: ConfigFields, name: str, count: int, allowed: Sequence[str]
) -> tuple[str, ...] | None:
    """The entries of a list with one kind per layer, or None if the file has no such list.

    Files may list draft layers after the model's own. Raises UnknownArchitectureError for kinds
    that are not `allowed`.
    """
    listed = fields.raw(name)
    if not isinstance(listed, list) or not listed:
        return None
    if len(listed) < count:
        raise fields.error(f"{name} has {len(listed)} entries for {count} layers")
    kinds = tuple(str(kind) for kind in listed[:count])
    unknown = set(kinds) - set(allowed)
    if unknown:
        raise fields.error(f"layer type {min(unknown)!r} is not supported")
    return kinds


def dense_or_experts(fields: ConfigFields, count: int, dense_name: str) -> tuple[int, ...]:
    """The size of each layer's dense feed-forward part; 0 in layers with experts."""
    kinds = kinds_of(fields, "mlp_layer_types", count, ("dense", "sparse"))
    if kinds is not None:
        dense = [kind == "dense" for kind in kinds]
    else:
        marks = fields.raw("moe_layer_freq")
        listed = marks if isinstance(marks, list) and len(marks) >= count else [1] * count
        dense = [not mark for mark in listed[:count]]
    size = fields.require(dense_name) if any(dense) else 0
    return tuple(size if is_dense else 0 for is_dense in dense)


def layer_override(fields: ConfigFields, layer: int, name: str) -> int | None:
    """A whole number that `per_layer_config` gives for one layer, or None."""
    table = fields.raw("per_layer_config")
    if not isinstance(table, Mapping):
        return None
    for key in (str(layer), f"{layer:02d}", layer):
        entry = table.get(key)
        if isinstance(entry, Mapping):
            return fields.whole(name, entry.get(name))
    return None
