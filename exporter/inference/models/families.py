"""What a model's family fixes and its config.json does not say.

Source: the modelling code of Hugging Face transformers for each family, and the papers and
model cards of the models themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Family:
    """The traits of one `model_type`, as the class of that name in transformers has them."""

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
    # Layers beside attention: "delta" (gated delta network), "kimi" (Kimi delta attention) or
    # "mamba2"; and the fields that belong to them.
    recurrent: str = ""
    own_fields: frozenset[str] = frozenset()
    # Attends to all tokens and generates none.
    encoder: bool = False
    outer_norms: int = 1
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

_DELTA_FIELDS = frozenset({"linear_num_key_heads"})
_BERT = Family(
    gated=False,
    query_key_value_bias=True,
    output_bias=True,
    feed_forward_bias=True,
    norm_bias=True,
    tied_embeddings=True,
    learned_positions=True,
    encoder=True,
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
        "apertus": Family(gated=False, query_key_norm="head"),
        "jais2": Family(gated=False, output_bias=True, norm_bias=True),
        "persimmon": Family(
            gated=False,
            query_key_value_bias=True,
            output_bias=True,
            feed_forward_bias=True,
            norm_bias=True,
            query_key_norm="head",
        ),
        "qwen3_next": Family(
            query_key_norm="head",
            gated_output=True,
            shared_gate=True,
            recurrent="delta",
            own_fields=_DELTA_FIELDS,
        ),
        "qwen3_5_text": Family(
            query_key_norm="head", gated_output=True, recurrent="delta", own_fields=_DELTA_FIELDS
        ),
        "qwen3_5_moe_text": Family(
            query_key_norm="head",
            gated_output=True,
            shared_gate=True,
            recurrent="delta",
            own_fields=_DELTA_FIELDS,
        ),
        "kimi_linear": Family(
            router_bias=True, recurrent="kimi", own_fields=frozenset({"linear_attn_config"})
        ),
        "nemotron_h": Family(
            gated=False,
            norms_per_layer=1,
            router_bias=True,
            recurrent="mamba2",
            own_fields=frozenset(
                {"hybrid_override_pattern", "layers_block_type", "ssm_state_size", "state_size"}
            ),
        ),
        "minimax_m2": Family(query_key_norm="all", router_bias=True),
        "glm4_moe_lite": Family(router_bias=True),
        "hunyuan_v1_dense": Family(query_key_norm="head"),
        "hunyuan_v1_moe": Family(query_key_norm="head"),
        "hy_v3": Family(query_key_norm="head", router_bias=True),
        "exaone": Family(),
        "exaone_moe": Family(query_key_norm="head", router_bias=True),
        "cwm": Family(),
        "helium": Family(),
        "hyperclovax": Family(),
        "iquestcoder": Family(),
        "ministral3": Family(),
        "minicpm3": Family(),
        "youtu": Family(),
        "cohere2_moe": Family(norms_per_layer=1, tied_embeddings=True, windows=4),
        "flex_olmo": Family(query_key_norm="all"),
        "aria_text": Family(),
        "granitemoeshared": Family(),
        "solar_open": Family(router_bias=True),
        "sarvam_moe": Family(query_key_norm="head", router_bias=True),
        "sarvam_mla": Family(router_bias=True),
        "vaultgemma": Family(norms_per_layer=2, tied_embeddings=True, windows="even"),
        "bert": _BERT,
        "roberta": _BERT,
        "xlm-roberta": _BERT,
        "camembert": _BERT,
        "modernbert": Family(encoder=True, tied_embeddings=True, outer_norms=2, windows="file"),
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


# Architectures that are known, and known to need other formulas: why they are refused.
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "arctic": "a dense feed-forward part beside the experts is not described",
        "deepseek_v4": "its compressed sparse attention is not described",
        "falcon_h1": "attention and a state-space layer side by side are not described",
        "gemma3n_text": "its alternating updates and shared caches are not described",
        "gemma4_text": "its per-layer embeddings are not described",
        "jamba": "state-space layers of Mamba-1 are not described",
        "lfm2": "convolution layers are not described",
        "longcat_flash": "two blocks a layer and experts that compute nothing are not described",
        "mamba": "state-space layers of Mamba-1 are not described",
        "minimax": "lightning attention is not described",
        "minimax_m3_vl_text": "its block-sparse attention is not described",
        "mimo_v2_flash": "layers with other head counts in their windows are not described",
        "nemotron-nas": "layers that differ one by one are not described",
        "recurrent_gemma": "recurrent layers of Griffin are not described",
        "step3p5": "layers with other head counts in their windows are not described",
        "step3_text": "multi-matrix factorization attention is not described",
        "t5": "an encoder beside a decoder is not described",
        "whisper": "an encoder beside a decoder is not described",
    }
)


def family_of(model_type: str) -> Family | None:
    """Return the family called `model_type`, or None."""
    return FAMILIES.get(model_type)
