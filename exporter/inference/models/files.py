"""A model description from a file: a Hugging Face config.json, or the header of a GGUF file.

Source of the latter: ggml-org/ggml, docs/gguf.md. The header has the model's sizes and every tensor's
shape and type; weights are never read. The parameters counted by the formulas must agree with the
tensors in the file.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from exporter.inference.models import (
    ModelDescription,
    ModelDescriptionError,
    UnknownArchitectureError,
    WeightBytes,
    count_parameters,
)
from exporter.inference.models.config import describe
from exporter.inference.models.families import ConfigFields
from exporter.inference.models.quantization import cache_value_bytes


# Real files take a few kilobytes; with the longest lists of unquantized modules, a few hundred.
LARGEST_FILE_BYTES = 4 * 1024 * 1024
MAGIC = b"GGUF"
# Headers take about ten megabytes, mostly the vocabulary; anything larger is invalid.
LARGEST_HEADER_BYTES = 128 * 1024 * 1024
LARGEST_COUNT = 1_000_000
LONGEST_TEXT = 1024 * 1024
# The share by which counted parameters may differ from those of the tensors.
TOLERANCE = 0.001

# Bytes of a block and numbers in it, by ggml's type number.
_TYPES: Mapping[int, tuple[int, int]] = {
    0: (4, 1), 1: (2, 1), 2: (18, 32), 3: (20, 32), 6: (22, 32), 7: (24, 32), 8: (34, 32),
    9: (36, 32), 10: (84, 256), 11: (110, 256), 12: (144, 256), 13: (176, 256), 14: (210, 256),
    15: (292, 256), 16: (66, 256), 17: (74, 256), 18: (98, 256), 19: (50, 256), 20: (18, 32),
    21: (110, 256), 22: (82, 256), 23: (136, 256), 24: (1, 1), 25: (2, 1), 26: (4, 1),
    27: (8, 1), 28: (8, 1), 29: (56, 256), 30: (2, 1), 34: (54, 256), 35: (66, 256),
    39: (17, 32),
}  # fmt: skip
# Types that are multiplied directly. All others are multiplied with activations in 8 bits.
_PLAIN = {0: "fp32", 1: "fp16", 30: "bf16"}
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9

# ggml's names of architectures with the same tensors as a Hugging Face family.
_SAME_NAME = (
    "llama", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "granite", "smollm3",
    "seed_oss", "starcoder2",
)  # fmt: skip
_FAMILIES = {name: name for name in _SAME_NAME} | {
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3_text",
    "gpt-oss": "gpt_oss",
    "deepseek2": "deepseek_v3",
    "glm4moe": "glm4_moe",
}
_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "context_length": "max_position_embeddings",
}


def load_model(
    path: Path | str, *, cache_data_type: str | None = None, precision: str | None = None
) -> ModelDescription:
    """Return the description of the model at `path`: a config.json, its folder, or a GGUF file.

    `cache_data_type` (as the engine names it) and `precision` override what the file says.
    Raises ModelDescriptionError with one line naming the file and what is wrong.
    """
    place = Path(path)
    if place.is_dir():
        place /= "config.json"
    try:
        if _is_gguf(place):
            with place.open("rb") as file:
                header = read_header(file)
            return describe_gguf(header, cache_data_type=cache_data_type, precision=precision)
        values = _read_object(place)
        values = {**_quantization_file(place), **values}
        return describe(values, cache_data_type=cache_data_type, precision=precision)
    except UnknownArchitectureError as error:
        raise ModelDescriptionError(f"{place}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDescriptionError(f"{place}: {_one_line(error)}") from error


def _read_object(place: Path) -> Mapping[str, Any]:
    """The object in a JSON file. Raises ModelDescriptionError."""
    try:
        if not place.is_file():
            raise ModelDescriptionError(f"{place}: no such file")
        if place.stat().st_size > LARGEST_FILE_BYTES:
            raise ModelDescriptionError(f"{place}: larger than {LARGEST_FILE_BYTES} bytes")
        values = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDescriptionError(f"{place}: {_one_line(error)}") from error
    if not isinstance(values, Mapping):
        raise ModelDescriptionError(f"{place}: not a JSON object")
    return values


def _quantization_file(place: Path) -> dict[str, Any]:
    """ModelOpt's file next to config.json, used if the latter has no quantization settings.

    Raises ModelDescriptionError if the file exists but cannot be read: the weights are then
    quantized in an unknown way.
    """
    file = place.parent / "hf_quant_config.json"
    return {"quantization_config": dict(_read_object(file))} if file.exists() else {}


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _is_gguf(path: Path) -> bool:
    """Whether the file starts like a GGUF file."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the header."""

    name: str
    parameters: int
    type_number: int

    @property
    def stored_bytes(self) -> float:
        """Its size in bytes."""
        size, numbers = _TYPES[self.type_number]
        return self.parameters * size / numbers


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata and the tensors."""

    values: Mapping[str, Any]
    tensors: tuple[Tensor, ...]


def read_header(file: BinaryIO) -> Header:
    """Read the metadata and the tensors' shapes. Raises ValueError if it is not a GGUF header."""
    reader = _Reader(file)
    if reader.take(4) != MAGIC:
        raise ValueError("not a GGUF file")
    version = reader.number("<I")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}")
    tensor_count, value_count = reader.count(), reader.count()
    values = {reader.text(): reader.value(int(reader.number("<I"))) for _ in range(value_count)}
    tensors = []
    for _ in range(tensor_count):
        name = reader.text()
        dimensions = [reader.number("<Q") for _ in range(int(reader.number("<I")) & 7)]
        type_number = int(reader.number("<I"))
        reader.number("<Q")
        if type_number not in _TYPES:
            raise ValueError(f"tensor type {type_number} is not supported")
        tensors.append(Tensor(name, int(math.prod(dimensions)), type_number))
    return Header(values, tuple(tensors))


def describe_gguf(
    header: Header, *, cache_data_type: str | None = None, precision: str | None = None
) -> ModelDescription:
    """Return the description of a header; raises UnknownArchitectureError."""
    architecture = str(header.values.get("general.architecture") or "unknown")
    family = _FAMILIES.get(architecture)
    if family is None:
        raise UnknownArchitectureError(architecture, reason="it is not supported in GGUF files")
    names = {tensor.name for tensor in header.tensors}
    config = _config(header, architecture, names) | {"model_type": family}
    model = describe(config)
    _check(model, header, architecture)
    weights, compute = _weights(header, "output.weight" in names)
    return replace(
        model,
        weights=weights,
        data_type="fp16",
        compute_precision=precision or compute,
        cache_value_bytes=cache_value_bytes(cache_data_type or "float16", "fp16"),
    )


def _config(header: Header, architecture: str, names: set[str]) -> dict[str, Any]:
    values = header.values
    config: dict[str, Any] = {}
    for key, field in _FIELDS.items():
        value = values.get(f"{architecture}.{key}")
        if isinstance(value, list):
            value = value[0] if len(set(value)) == 1 else None
        if value is not None:
            config[field] = value
    config.setdefault("vocab_size", values.get("tokenizer.ggml.tokens"))
    fields = ConfigFields({"model_type": architecture}, {})

    def size(name: str) -> int:
        return fields.whole(name, values.get(f"{architecture}.{name}")) or 0

    embedding = next((t for t in header.tensors if t.name == "token_embd.weight"), None)
    hidden = fields.whole("embedding_length", config.get("hidden_size"))
    if embedding is not None and hidden:
        config["vocab_size"] = embedding.parameters // hidden
    config["tie_word_embeddings"] = "output.weight" not in names
    if config.get("kv_lora_rank"):
        rotary = size("rope.dimension_count")
        key_size = size("attention.key_length_mla") or size("attention.key_length")
        config |= {
            "qk_rope_head_dim": rotary,
            "qk_nope_head_dim": key_size - rotary,
            "v_head_dim": size("attention.value_length_mla") or size("attention.value_length"),
        }
    config["attention_bias"] = "blk.0.attn_q.bias" in names
    return config


def _check(model: ModelDescription, header: Header, architecture: str) -> None:
    """Reject a model whose tensors do not match the formulas."""
    counted = count_parameters(model).total
    there = sum(t.parameters for t in header.tensors if not t.name.startswith("rope_"))
    if there <= 0 or abs(counted / there - 1) > TOLERANCE:
        reason = f"its tensors have {there} parameters, but the formulas give {counted}"
        raise UnknownArchitectureError(architecture, reason=reason)


def _weights(header: Header, own_head: bool) -> tuple[WeightBytes, str]:
    """Bytes per parameter of each part, and the precision of the matrix products."""
    stored: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    kinds: Counter[int] = Counter()
    for tensor in header.tensors:
        part = _part(tensor.name, own_head)
        stored[part] += tensor.stored_bytes  # type: ignore[assignment]  # bytes may be fractions
        numbers[part] += tensor.parameters
        if part in {"attention", "dense", "experts"}:
            kinds[tensor.type_number] += tensor.parameters

    def mean(part: str) -> float:
        return stored[part] / numbers[part] if numbers[part] else 2.0

    weights = WeightBytes(
        attention=mean("attention"),
        dense=mean("dense"),
        experts=mean("experts"),
        shared_experts=mean("shared_experts"),
        head=mean("head") if numbers["head"] else mean("embedding"),
        other=mean("embedding"),
    )
    most = kinds.most_common(1)[0][0] if kinds else 1
    return weights, _PLAIN.get(most, "int8")


def _part(name: str, own_head: bool) -> str:
    if name == "output.weight":
        return "head"
    if name == "token_embd.weight":
        return "embedding"
    if "shexp" in name:
        return "shared_experts"
    if "_exps" in name:
        return "experts"
    if ".attn_" in name and not name.endswith(("norm.weight", ".bias")):
        return "attention"
    return "dense" if ".ffn_" in name and "norm" not in name and "_inp" not in name else "small"


class _Reader:
    """Reads numbers and strings, up to the size limit of a header."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = LARGEST_HEADER_BYTES

    def take(self, size: int) -> bytes:
        """The next bytes."""
        self._left -= size
        if self._left < 0:
            raise ValueError(f"the header is larger than {LARGEST_HEADER_BYTES} bytes")
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("the header is truncated")
        return data

    def number(self, form: str) -> float:
        """The next number."""
        value: float = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def count(self) -> int:
        """The number of items that follow."""
        value = int(self.number("<Q"))
        if value > LARGEST_COUNT:
            raise ValueError(f"the header has a count of {value}")
        return value

    def text(self) -> str:
        """The next string."""
        size = int(self.number("<Q"))
        if size > LONGEST_TEXT:
            raise ValueError(f"the header has a string of {size} bytes")
        return self.take(size).decode(errors="replace")

    def value(self, kind: int) -> Any:
        """The next value; the contents of long arrays and of string arrays are skipped."""
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"the header has a value of unknown type {kind}")
        inner, count = int(self.number("<I")), self.count()
        if inner in _SCALARS:
            if count <= 4096:
                return [self.number(_SCALARS[inner]) for _ in range(count)]
            self.take(count * struct.calcsize(_SCALARS[inner]))
            return None
        if inner != _TEXT:
            raise ValueError("the header has nested arrays")
        for _ in range(count):
            self.text()
        return count
