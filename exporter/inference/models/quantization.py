"""How a model's weights and KV cache are stored, and the arithmetic: from `quantization_config`."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exporter.inference.models import ModelDescription, Stack, WeightBytes
from exporter.inference.models.attention import CompressedAttention, LatentAttention
from exporter.inference.models.families import ConfigFields


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How one quantization method stores a weight and multiplies with it.

    `bits` includes scales and zero points. `compute` is the precision of the matrix product, None
    if weights are first expanded to the model's own data type (weight-only quantization).
    """

    bits: float
    compute: str | None
    experts_only: bool = False


# Zero points and scales of GPTQ and AWQ in groups of 128: a 16-bit scale and a 4-bit zero point.
_GROUP_OVERHEAD_BITS = (16 + 4) / 128
# OCP Microscaling: one 8-bit scale per 32 weights. NVFP4: one 8-bit scale per 16.
_MX_OVERHEAD_BITS = 8 / 32
_NVFP4_OVERHEAD_BITS = 8 / 16
MXFP4_BYTES = (4 + _MX_OVERHEAD_BITS) / 8

_MODELOPT = frozenset({"modelopt", "modelopt_fp4", "modelopt_mixed", "nvfp4", "w4a8_nvfp4_fp8"})
_DATA_TYPE_NAMES = {"float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}
# llama.cpp's cache types, scales included.
_LLAMA_CACHES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
# DeepSeek-V4's cache entries: see `_cache_value_bytes`.
_V4_ENTRY_BYTES, _V4_ENTRY_VALUES = 584, 512
BYTES_PER_VALUE = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}


def with_formats(
    model: ModelDescription,
    fields: ConfigFields,
    stack: Stack,
    cache_data_type: str | None,
    precision: str | None,
) -> ModelDescription:
    """Return the model with the storage formats of weights and cache, and the products' precision.

    Raises UnknownArchitectureError for a quantization method that is not known.
    """
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
        weights = weight_bytes(scheme, quantization, plain, stack)
        compute = scheme.compute or own
        # DeepSeek-V4 stores the experts in fewer bits than the rest: fp8 with MXFP4.
        experts = fields.raw("expert_dtype") or quantization.get("expert_dtype")
        if str(experts).lower() == "fp4":
            weights = replace(weights, experts=MXFP4_BYTES)
    # States of recurrent layers are kept in 32 bits, if the file says so.
    states = str(fields.raw("mamba_ssm_dtype") or fields.raw("mamba_ssm_cache_dtype"))
    chosen = cache_data_type if cache_data_type and cache_data_type != "auto" else cache
    return replace(
        model,
        weights=weights,
        data_type=own,
        compute_precision=precision or compute,
        cache_value_bytes=_cache_value_bytes(model, chosen, own),
        state_value_bytes=4.0 if states.removeprefix("torch.") == "float32" else 2.0,
    )


def _cache_value_bytes(model: ModelDescription, chosen: object, own: str) -> float:
    """Bytes of a cached number. Sparse attention in fp8 has a special layout in vLLM and SGLang.

    DeepSeek-V3.2: 512 numbers in fp8 with 4 scales of 32 bits, 64 rotary numbers in bf16.
    DeepSeek-V4, which engines keep in fp8 by default: 448 in fp8, 64 in bf16, 8 bytes of scales.
    """
    plain = cache_value_bytes(chosen, own)
    attentions = [group.attention for group in model.layers]
    if any(isinstance(attention, CompressedAttention) for attention in attentions) and (
        plain == 1.0 or chosen in (None, "auto")
    ):
        return _V4_ENTRY_BYTES / _V4_ENTRY_VALUES
    latent = [attention for attention in attentions if isinstance(attention, LatentAttention)]
    if plain == 1.0 and any(attention.indexer for attention in latent):
        rank = latent[0].latent_rank
        stored = rank + 4 * (rank // 128) + 2 * latent[0].rotary_head_size
        return stored / latent[0].cached_values
    return plain


def data_type(name: object) -> str:
    """Return our name for the data type in which engines serve weights stored as `name`.

    bf16 if the file does not say, and for 32-bit checkpoints, which every engine here halves by
    default (vLLM: `--dtype auto`).
    """
    text = str(name or "bfloat16").removeprefix("torch.").lower()
    return "fp16" if _DATA_TYPE_NAMES.get(text) == "fp16" else "bf16"


def cache_value_bytes(name: object, model_data_type: str) -> float:
    """Return the bytes of one cached number for a KV-cache data type as engines name them.

    `auto` and None mean the model's own data type.
    """
    text = str(name or "auto").removeprefix("torch.").lower()
    if text.startswith(("fp8", "float8", "int8", "e4m3", "e5m2")):
        return 1.0
    if text in _LLAMA_CACHES:
        return _LLAMA_CACHES[text]
    if text.startswith(("nvfp4", "fp4", "int4", "mxfp4")):
        return 0.5
    return BYTES_PER_VALUE.get(text) or BYTES_PER_VALUE[_DATA_TYPE_NAMES.get(text, model_data_type)]


def weight_scheme(config: Mapping[str, Any]) -> WeightScheme | None:
    """Return the scheme of a `quantization_config`; None if it is unknown."""
    method = str(config.get("quant_method") or config.get("quant_algo") or "").lower()
    if method in {"gptq", "awq", "auto-round", "intel/auto-round", "hqq", "aqlm", "gptq_marlin"}:
        bits = _bits(config.get("bits") or config.get("w_bit")) or 4
        return WeightScheme(bits + _GROUP_OVERHEAD_BITS, None)
    if method in {"fp8", "fbgemm_fp8", "ptpc_fp8"}:
        return WeightScheme(8.0, "fp8")
    if method == "mxfp4":
        return WeightScheme(4.0 + _MX_OVERHEAD_BITS, None, experts_only=True)
    if method in {"bitsandbytes", "bnb"}:
        return _bitsandbytes(config)
    if method in {"experts_int8", "eetq", "quanto", "int8"}:
        return WeightScheme(8.0, None, experts_only=method == "experts_int8")
    if method in _MODELOPT or "quant_algo" in _inner(config):
        return _modelopt(config)
    if method in {"compressed-tensors", "compressed_tensors"}:
        return _compressed_tensors(config)
    return None


def cache_scheme(config: Mapping[str, Any]) -> str | None:
    """Return the KV-cache data type set by a `quantization_config`, or None."""
    inner = _inner(config)
    for name in ("kv_cache_quant_algo", "kv_cache_scheme"):
        stated = inner.get(name) or config.get(name)
        if isinstance(stated, str) and stated.lower() not in {"none", "auto", ""}:
            return stated.lower()
        if isinstance(stated, Mapping) and stated.get("num_bits") in (4, 8):
            return f"{'fp' if stated.get('type') == 'float' else 'int'}{stated['num_bits']}"
    return None


def weight_bytes(
    scheme: WeightScheme, config: Mapping[str, Any], plain_bytes: float, stack: Stack
) -> WeightBytes:
    """Return the bytes per parameter of each part, allowing for unquantized modules."""
    quantized = scheme.bits / 8
    patterns = _patterns(config)
    listed = _listed_layers(config)

    def part(kind: str, numbers: Sequence[int]) -> float:
        if scheme.experts_only and kind != "experts":
            return plain_bytes
        if listed is not None:
            return listed.bytes_of(kind, numbers, plain_bytes)
        share = _plain_share(patterns, kind, numbers)
        return share * plain_bytes + (1 - share) * quantized

    return WeightBytes(
        attention=part("attention", range(len(stack.layers))),
        dense=part("dense", stack.dense),
        experts=part("experts", stack.experts),
        shared_experts=part("shared_experts", stack.experts),
        # By default, engines keep the output head in the model's data type.
        head=quantized if config.get("lm_head") is True else plain_bytes,
        other=plain_bytes,
    )


def _bitsandbytes(config: Mapping[str, Any]) -> WeightScheme:
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return WeightScheme(8.0, "int8")  # LLM.int8(), arXiv 2208.07339
    # NF4 in blocks of 64 with a 32-bit scale; double quantization makes it about 8 bits.
    scale_bits = 8 if config.get("bnb_4bit_use_double_quant") else 32
    return WeightScheme(4.0 + scale_bits / 64, None)


def _inner(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """ModelOpt's own file nests the settings; copied into config.json they are flat."""
    nested = config.get("quantization")
    return nested if isinstance(nested, Mapping) else config


def _modelopt(config: Mapping[str, Any]) -> WeightScheme | None:
    inner = _inner(config)
    algorithm = str(inner.get("quant_algo") or "").upper()
    if algorithm == "MIXED_PRECISION":
        listed = _listed_layers(config)
        return listed.most_common() if listed is not None else None
    if not algorithm and "FP4" in str(config.get("quant_method") or "").upper():
        algorithm = "NVFP4"
    return _algorithm(algorithm)


def _algorithm(name: str) -> WeightScheme | None:
    """The scheme of one of ModelOpt's algorithms."""
    if "NVFP4" in name:
        return WeightScheme(4.0 + _NVFP4_OVERHEAD_BITS, "fp8" if "FP8" in name else "fp4")
    if "MXFP8" in name:
        return WeightScheme(8.0 + _MX_OVERHEAD_BITS, "fp8")
    if name.startswith("W4A16"):
        return WeightScheme(4.0 + _GROUP_OVERHEAD_BITS, None)
    if name.startswith("W4A8"):
        return WeightScheme(4.0 + _GROUP_OVERHEAD_BITS, "fp8")
    if "INT8" in name or "SQ" in name:
        return WeightScheme(8.0, "int8")
    return WeightScheme(8.0, "fp8") if "FP8" in name else None


def _compressed_tensors(config: Mapping[str, Any]) -> WeightScheme | None:
    groups = config.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        return None
    bits = _bits(weights.get("num_bits"))
    if bits is None:
        return None
    is_float = weights.get("type") == "float"
    size = weights.get("group_size")
    overhead = (8 if is_float else 16) / size if isinstance(size, int) and size > 0 else 0.0
    activations = group.get("input_activations")
    if not isinstance(activations, Mapping):
        return WeightScheme(bits + overhead, None)
    width = max(bits, _bits(activations.get("num_bits")) or bits)
    return WeightScheme(bits + overhead, f"{'fp' if is_float else 'int'}{width}")


def _bits(value: object) -> int | None:
    """The width of a weight in bits; None if invalid."""
    return value if isinstance(value, int) and 2 <= value <= 16 else None


@dataclass(frozen=True, slots=True)
class _Listed:
    """Modules with individually listed algorithms; all others are not quantized."""

    schemes: Mapping[str, WeightScheme]

    def bytes_of(self, kind: str, numbers: Sequence[int], plain_bytes: float) -> float:
        """Mean bytes per parameter of a part over these layers."""
        sizes = []
        for number in numbers:
            for names in _module_names(kind, number):
                schemes = [self._scheme_of(name) for name in names]
                if any(schemes):
                    sizes += [scheme.bits / 8 if scheme else plain_bytes for scheme in schemes]
                    break
            else:
                sizes.append(plain_bytes)
        return sum(sizes) / len(sizes) if sizes else plain_bytes

    def most_common(self) -> WeightScheme | None:
        """The most common scheme of the modules."""
        counted = Counter(self.schemes.values()).most_common(1)
        return counted[0][0] if counted else None

    def _scheme_of(self, name: str) -> WeightScheme | None:
        while name:
            if name in self.schemes:
                return self.schemes[name]
            name = name.rpartition(".")[0]
        return None


def _listed_layers(config: Mapping[str, Any]) -> _Listed | None:
    layers = _inner(config).get("quantized_layers")
    if not isinstance(layers, Mapping):
        return None
    schemes: dict[str, WeightScheme] = {}
    for name, stated in layers.items():
        algorithm = stated.get("quant_algo") if isinstance(stated, Mapping) else None
        scheme = _algorithm(str(algorithm or "").upper())
        if scheme is not None:
            schemes[_canonical(str(name))] = scheme
    return _Listed(schemes)


# Module names of each part in Hugging Face; alternatives are for different families.
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_MODULES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "attention": (
        tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")),
        tuple(
            f"self_attn.{name}"
            for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
        ),
    ),
    "dense": (tuple(f"mlp.{name}" for name in _PROJECTIONS),),
    "experts": (
        tuple(f"mlp.experts.0.{name}" for name in _PROJECTIONS),
        tuple(f"block_sparse_moe.experts.0.{name}" for name in ("w1", "w2", "w3")),
    ),
    "shared_experts": (
        tuple(f"mlp.shared_expert.{name}" for name in _PROJECTIONS),
        tuple(f"mlp.shared_experts.{name}" for name in _PROJECTIONS),
    ),
}
# The limit of patterns: one for every module of the largest models.
LARGEST_PATTERN_COUNT = 20_000
LONGEST_PATTERN = 300


def _module_names(kind: str, number: int) -> list[list[str]]:
    return [[f"model.layers.{number}.{name}" for name in names] for names in _MODULES[kind]]


def _canonical(name: str) -> str:
    """A module's name without the prefixes of multimodal models."""
    return re.sub(
        r"^(?:model\.)?(?:language_model\.)?(?:model|backbone)\.layers\b", "model.layers", name
    )


def _patterns(config: Mapping[str, Any]) -> tuple[re.Pattern[str], ...]:
    """Regular expressions of the modules left unquantized, for all notations in files."""
    names: list[str] = []
    for settings in (config, _inner(config)):
        for key in ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules"):
            value = settings.get(key)
            if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
                names.extend(str(name) for name in value)
    compiled = []
    for name in dict.fromkeys(names[:LARGEST_PATTERN_COUNT]):
        try:
            compiled.append(re.compile(_expression(name[:LONGEST_PATTERN])))
        except re.error:
            continue  # no module has such a name
    return tuple(compiled)


def _expression(name: str) -> str:
    """The expression for one entry: a regular expression, a glob, or a part of a module's path."""
    if name.startswith("re:"):
        return _canonical(name.removeprefix("re:"))
    plain = re.escape(_canonical(name)).replace(r"\*", ".*")
    return rf"(?:.*\.)?{plain}(?:\..*)?$"


def _plain_share(patterns: Sequence[re.Pattern[str]], kind: str, numbers: Sequence[int]) -> float:
    """Return the share of a part's modules that are not quantized."""
    if not patterns or not numbers:
        return 0.0
    shares = []
    for number in numbers:
        alternatives = [
            sum(any(pattern.match(name) for pattern in patterns) for name in names) / len(names)
            for names in _module_names(kind, number)
        ]
        shares.append(max(alternatives))
    return sum(shares) / len(shares)
