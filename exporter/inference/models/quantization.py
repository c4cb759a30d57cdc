"""What `quantization_config` says about stored weights, arithmetic and the KV cache."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.inference.models.description import WeightBytes


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How one quantization method stores a weight and multiplies with it.

    `bits` includes scales and zero points. `compute` is the precision of the matrix product, None
    where weights are expanded to the model's own data type first (weight-only quantization).
    """

    bits: float
    compute: str | None
    experts_only: bool = False


# Zero points and scales of GPTQ and AWQ in groups of 128: a 16-bit scale and a 4-bit zero point.
_GROUP_OVERHEAD_BITS = (16 + 4) / 128
# OCP Microscaling: one 8-bit scale per 32 weights. NVFP4: one 8-bit scale per 16.
_MX_OVERHEAD_BITS = 8 / 32
_NVFP4_OVERHEAD_BITS = 8 / 16

_DATA_TYPE_NAMES = {"float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}
BYTES_PER_VALUE = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}


def data_type(name: object) -> str:
    """Return our name of the data type in which engines serve weights stored as `name`.

    bf16 where the file is silent, and for 32-bit checkpoints, which every engine here halves
    unless told otherwise (vLLM: `--dtype auto`).
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
    if text.startswith(("nvfp4", "fp4", "int4", "mxfp4")):
        return 0.5
    return BYTES_PER_VALUE.get(text) or BYTES_PER_VALUE[_DATA_TYPE_NAMES.get(text, model_data_type)]


def weight_scheme(config: Mapping[str, Any]) -> WeightScheme | None:
    """Return the scheme of a `quantization_config`, None for one that we do not know."""
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
    if method in {"modelopt", "modelopt_fp4", "nvfp4", "w4a8_nvfp4_fp8"} or "quant_algo" in config:
        return _modelopt(config)
    if method in {"compressed-tensors", "compressed_tensors"}:
        return _compressed_tensors(config)
    return None


def cache_scheme(config: Mapping[str, Any]) -> str | None:
    """Return the KV-cache data type that a `quantization_config` fixes, or None."""
    algorithm = config.get("kv_cache_quant_algo")
    if isinstance(algorithm, str):
        return algorithm.lower()
    scheme = config.get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and scheme.get("num_bits") == 8:
        return "fp8" if scheme.get("type") == "float" else "int8"
    return None


def weight_bytes(
    scheme: WeightScheme, config: Mapping[str, Any], plain_bytes: float, layer_count: int
) -> WeightBytes:
    """Return the bytes per parameter of each part, given what the file leaves unquantized."""
    quantized = scheme.bits / 8
    ignored = _ignored(config)

    def part(*words: str, quantizable: bool = True) -> float:
        if not quantizable:
            return plain_bytes
        share = _plain_share(ignored, words, layer_count)
        return share * plain_bytes + (1 - share) * quantized

    whole = not scheme.experts_only
    return WeightBytes(
        attention=part("attn", "attention", quantizable=whole),
        dense=part("mlp", "feed_forward", quantizable=whole),
        experts=part("experts"),
        shared_experts=part("shared_expert", quantizable=whole),
        # Engines keep the output head in the model's data type unless a file says otherwise.
        head=quantized if config.get("lm_head") is True else plain_bytes,
        other=plain_bytes,
    )


def _bitsandbytes(config: Mapping[str, Any]) -> WeightScheme:
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return WeightScheme(8.0, "int8")  # LLM.int8(), arXiv 2208.07339
    # NF4 in blocks of 64 with a 32-bit scale; double quantization makes it about 8 bits.
    scale_bits = 8 if config.get("bnb_4bit_use_double_quant") else 32
    return WeightScheme(4.0 + scale_bits / 64, None)


def _modelopt(config: Mapping[str, Any]) -> WeightScheme:
    nested = config.get("quantization")
    inner = nested if isinstance(nested, Mapping) else config
    algorithm = str(inner.get("quant_algo") or "").upper()
    if "NVFP4" in algorithm or "FP4" in str(config.get("quant_method") or "").upper():
        return WeightScheme(4.0 + _NVFP4_OVERHEAD_BITS, "fp8" if "FP8" in algorithm else "fp4")
    if algorithm.startswith("W4A16"):
        return WeightScheme(4.0 + _GROUP_OVERHEAD_BITS, None)
    return WeightScheme(8.0, "int8" if "INT8" in algorithm or "SQ" in algorithm else "fp8")


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
    """A width of a weight in bits, None for what is none."""
    return value if isinstance(value, int) and 2 <= value <= 16 else None


def _ignored(config: Mapping[str, Any]) -> tuple[str, ...]:
    names: list[str] = []
    for key in ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules"):
        value = config.get(key)
        if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
            names.extend(str(name) for name in value)
    return tuple(names)


def _plain_share(ignored: Iterable[str], words: tuple[str, ...], layer_count: int) -> float:
    """Return the share of layers in which a part stays unquantized, by the names of modules.

    A name without a layer number speaks for all layers. The router, called `mlp.gate`, and shared
    experts are parts of their own and do not stand for the feed-forward part.
    """
    layers: set[str] = set()
    for name in ignored:
        if not any(word in name for word in words):
            continue
        if name.endswith(("mlp.gate", "router", "gate_up_proj_bias")) or (
            "shared_expert" in name and "shared_expert" not in words
        ):
            continue
        number = re.search(r"layers\.(\d+)\.", name)
        if number is None:
            return 1.0
        layers.add(number.group(1))
    return min(1.0, len(layers) / layer_count)
