"""Properties fixed by a model's family and not given in its config.json.

Source: the modelling code of Hugging Face transformers for each family, and the papers and
model cards of the models themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType


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
    defaults: Mapping[str, int | bool] = field(default_factory=lambda: MappingProxyType({}))


_OLD_STYLE = ModelFamily(
    gated=False,
    query_key_value_bias=True,
    output_bias=True,
    feed_forward_bias=True,
    norm_bias=True,
)
_LLAMA = ModelFamily(
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

_GEMMA3N_SIZES = MappingProxyType(
    {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "vocab_size": 262_400,
        "sliding_window": 512,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256,
        "altup_num_inputs": 4,
        "num_kv_shared_layers": 15,
        "laurel_rank": 64,
    }
)
_GEMMA4_SIZES = MappingProxyType(
    {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_144,
        "sliding_window": 512,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256,
    }
)
_JAMBA_SIZES = MappingProxyType(
    {
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    }
)
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
_GPT2 = replace(_OLD_STYLE, tied_embeddings=True, learned_positions=True)
_BERT = replace(_GPT2, encoder=True)

FAMILIES: Mapping[str, ModelFamily] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": ModelFamily(windows="all", defaults=_MISTRAL_SIZES),
        "mistral3": ModelFamily(windows="all"),
        "ministral": ModelFamily(windows="all"),
        "mixtral": ModelFamily(windows="all"),
        "qwen2": ModelFamily(query_key_value_bias=True),
        "qwen2_vl": ModelFamily(query_key_value_bias=True),
        "qwen2_vl_text": ModelFamily(query_key_value_bias=True),
        "qwen2_5_vl": ModelFamily(query_key_value_bias=True),
        "qwen2_5_vl_text": ModelFamily(query_key_value_bias=True),
        "qwen2_moe": ModelFamily(query_key_value_bias=True, shared_gate=True),
        "qwen3": ModelFamily(query_key_norm="head"),
        "qwen3_vl_text": ModelFamily(query_key_norm="head"),
        "qwen3_moe": ModelFamily(query_key_norm="head"),
        "qwen3_vl_moe_text": ModelFamily(query_key_norm="head"),
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
        "phi3": ModelFamily(windows="all"),
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
        "deepseek": ModelFamily(),
        "deepseek_v2": ModelFamily(),
        "deepseek_v3": ModelFamily(router_bias=True),
        "deepseek_v32": ModelFamily(router_bias=True),
        "glm_moe_dsa": ModelFamily(router_bias=True),
        "kimi_k2": ModelFamily(router_bias=True),
        "glm": ModelFamily(query_key_value_bias=True),
        "glm4": ModelFamily(query_key_value_bias=True, norms_per_layer=4),
        "glm4_moe": ModelFamily(router_bias=True),
        "glm4v_text": ModelFamily(query_key_value_bias=True, norms_per_layer=4),
        "glm4v_moe_text": ModelFamily(router_bias=True),
        "llama4_text": ModelFamily(windows=4),
        "olmo": ModelFamily(norms_per_layer=0),
        "olmo2": ModelFamily(query_key_norm="all"),
        "olmo3": ModelFamily(query_key_norm="all", windows=4),
        "olmoe": ModelFamily(query_key_norm="all"),
        "granite": ModelFamily(),
        "granitemoe": ModelFamily(),
        "cohere": ModelFamily(norms_per_layer=1, tied_embeddings=True),
        "cohere2": ModelFamily(norms_per_layer=1, tied_embeddings=True, windows=4),
        "exaone4": ModelFamily(query_key_norm="head"),
        "internlm2": ModelFamily(),
        "internlm3": ModelFamily(),
        "seed_oss": ModelFamily(query_key_value_bias=True),
        "smollm3": ModelFamily(tied_embeddings=True),
        "ernie4_5": ModelFamily(),
        "ernie4_5_moe": ModelFamily(),
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
        "glm4_moe_lite": ModelFamily(router_bias=True),
        "hunyuan_v1_dense": ModelFamily(query_key_norm="head"),
        "hunyuan_v1_moe": ModelFamily(query_key_norm="head"),
        "hy_v3": ModelFamily(query_key_norm="head", router_bias=True),
        "exaone": ModelFamily(),
        "exaone_moe": ModelFamily(query_key_norm="head", router_bias=True),
        "cwm": ModelFamily(),
        "helium": ModelFamily(),
        "hyperclovax": ModelFamily(),
        "iquestcoder": ModelFamily(),
        "ministral3": ModelFamily(),
        "minicpm3": ModelFamily(),
        "youtu": ModelFamily(),
        "cohere2_moe": ModelFamily(norms_per_layer=1, tied_embeddings=True, windows=4),
        "flex_olmo": ModelFamily(query_key_norm="all"),
        "aria_text": ModelFamily(),
        "granitemoeshared": ModelFamily(),
        "solar_open": ModelFamily(router_bias=True),
        "sarvam_moe": ModelFamily(query_key_norm="head", router_bias=True),
        "sarvam_mla": ModelFamily(router_bias=True),
        "vaultgemma": ModelFamily(norms_per_layer=2, tied_embeddings=True, windows="even"),
        "bert": _BERT,
        "roberta": _BERT,
        "xlm-roberta": _BERT,
        "camembert": _BERT,
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
        "modernbert": ModelFamily(
            encoder=True, tied_embeddings=True, outer_norms=2, windows="file"
        ),
    }
)

# Fields and field values of layers other than plain attention: state-space, linear, convolution or
# sparse-index attention. Their FLOPs follow other formulas, so they are rejected by name.
FOREIGN_FIELDS = (
    "routed_expert_hidden_size",
    "attn_res_block_size",
    "mla_use_output_gate",
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


# Known architectures that need other formulas, with the reason for rejecting them.
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "arctic": "a dense feed-forward part in parallel with the experts is not supported",
        "falcon_h1": "attention in parallel with a state-space layer is not supported",
        "kimi_k3": "attention over residuals and experts behind a latent projection are not supported",
        "lfm2": "convolution layers are not supported",
        "minimax": "lightning attention is not supported",
        "recurrent_gemma": "recurrent layers (Griffin) are not supported",
        "t5": "encoder-decoder models are not supported",
    }
)
