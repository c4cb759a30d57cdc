"""What a model's family fixes and its config.json does not say.

Source: the modelling code of Hugging Face transformers for each family, and the papers and
model cards of the models themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Family:
    """The traits of one `model_type`."""

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
    # How sliding windows are laid out where the file has no `layer_types`:
    # all, none, even (every other layer, the first one windowed), or a number n: one in n is full.
    windows: str | int = "none"
    # The class's own defaults, for files that leave them out.
    defaults: Mapping[str, int | bool] = field(default_factory=lambda: MappingProxyType({}))


_OLD_STYLE = Family(
    gated=False,
    query_key_value_bias=True,
    output_bias=True,
    feed_forward_bias=True,
    norm_bias=True,
)
_LLAMA = Family(
    defaults=MappingProxyType(
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        }
    )
)
_MISTRAL_SIZES = MappingProxyType(
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
)
_GEMMA3_SIZES = MappingProxyType(
    {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "sliding_window": 4096,
    }
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": Family(windows="all", defaults=_MISTRAL_SIZES),
        "mistral3": Family(windows="all"),
        "ministral": Family(windows="all"),
        "mixtral": Family(windows="all"),
        "qwen2": Family(query_key_value_bias=True),
        "qwen2_vl": Family(query_key_value_bias=True),
        "qwen2_vl_text": Family(query_key_value_bias=True),
        "qwen2_5_vl": Family(query_key_value_bias=True),
        "qwen2_5_vl_text": Family(query_key_value_bias=True),
        "qwen2_moe": Family(query_key_value_bias=True, shared_gate=True),
        "qwen3": Family(query_key_norm="head"),
        "qwen3_vl_text": Family(query_key_norm="head"),
        "qwen3_moe": Family(query_key_norm="head"),
        "qwen3_vl_moe_text": Family(query_key_norm="head"),
        "gemma": Family(tied_embeddings=True),
        "gemma2": Family(norms_per_layer=4, tied_embeddings=True, windows="even"),
        "gemma3_text": Family(
            norms_per_layer=4,
            query_key_norm="head",
            tied_embeddings=True,
            windows=6,
            defaults=_GEMMA3_SIZES,
        ),
        "phi": _OLD_STYLE,
        "phi3": Family(windows="all"),
        "phimoe": Family(
            query_key_value_bias=True, output_bias=True, norm_bias=True, windows="all"
        ),
        "gpt_oss": Family(
            query_key_value_bias=True,
            output_bias=True,
            sinks=True,
            expert_bias=True,
            router_bias=True,
            windows="even",
        ),
        "deepseek": Family(),
        "deepseek_v2": Family(),
        "deepseek_v3": Family(router_bias=True),
        "deepseek_v32": Family(router_bias=True),
        "glm_moe_dsa": Family(router_bias=True),
        "kimi_k2": Family(router_bias=True),
        "glm": Family(query_key_value_bias=True),
        "glm4": Family(query_key_value_bias=True, norms_per_layer=4),
        "glm4_moe": Family(router_bias=True),
        "llama4_text": Family(windows=4),
        "olmo": Family(norms_per_layer=0),
        "olmo2": Family(query_key_norm="all"),
        "olmo3": Family(query_key_norm="all", windows=4),
        "olmoe": Family(query_key_norm="all"),
        "granite": Family(),
        "granitemoe": Family(),
        "cohere": Family(norms_per_layer=1, tied_embeddings=True),
        "cohere2": Family(norms_per_layer=1, tied_embeddings=True, windows=4),
        "exaone4": Family(query_key_norm="head"),
        "internlm2": Family(),
        "internlm3": Family(),
        "seed_oss": Family(query_key_value_bias=True),
        "smollm3": Family(tied_embeddings=True),
        "ernie4_5": Family(),
        "ernie4_5_moe": Family(),
        "stablelm": Family(norm_bias=True),
        "falcon": Family(gated=False, norm_bias=True, tied_embeddings=True),
        "gpt2": Family(
            gated=False,
            query_key_value_bias=True,
            output_bias=True,
            feed_forward_bias=True,
            norm_bias=True,
            tied_embeddings=True,
            learned_positions=True,
        ),
        "gpt_bigcode": Family(
            gated=False,
            query_key_value_bias=True,
            output_bias=True,
            feed_forward_bias=True,
            norm_bias=True,
            tied_embeddings=True,
            learned_positions=True,
        ),
        "gpt_neox": _OLD_STYLE,
        "gptj": Family(gated=False, feed_forward_bias=True, norms_per_layer=1, norm_bias=True),
        "opt": Family(
            gated=False,
            query_key_value_bias=True,
            output_bias=True,
            feed_forward_bias=True,
            norm_bias=True,
            tied_embeddings=True,
            learned_positions=True,
        ),
        "starcoder2": Family(
            gated=False,
            query_key_value_bias=True,
            output_bias=True,
            feed_forward_bias=True,
            norm_bias=True,
            tied_embeddings=True,
            windows="all",
        ),
        "nemotron": Family(gated=False, norm_bias=True),
        "arcee": Family(gated=False),
    }
)

# Fields and field values of layers that are no plain attention: state-space, linear, convolution
# or sparse-index attention. Their FLOPs follow other formulas, so they are refused by name.
FOREIGN_FIELDS = (
    "altup_num_inputs",
    "attn_layer_period",
    "compress_ratios",
    "conv_L_cache",
    "global_head_dim",
    "hybrid_layer_pattern",
    "hybrid_override_pattern",
    "layers_block_type",
    "linear_attn_config",
    "linear_num_key_heads",
    "mamba_d_state",
    "num_kv_shared_layers",
    "rwkv_version",
    "ssm_cfg",
    "ssm_state_size",
    "state_size",
)


def family_of(model_type: str) -> Family | None:
    """Return the family called `model_type`, or None."""
    return FAMILIES.get(model_type)
