"""Writes a small Llama with random weights as GGUF, llama.cpp's file format (version 3).

Source: the format's specification in ggml's repository (docs/gguf.md).
"""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from exporter.inference.models import LayerGroup, ModelDescription, WeightBytes
from exporter.inference.models.attention import GroupedAttention


F16, BF16 = 1, 30  # enum ggml_type
_F32 = 0
_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9  # enum gguf_metadata_value_type
_FORMS = {_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f"}
_FILE_TYPES = {F16: 1, BF16: 32}  # "mostly" of this type
_ALIGNMENT = 32
_NOISE_VALUES = 1 << 16

# The key, type and value of each fact; of an array the pair of its entries' type and its entries.
Facts = list[tuple[str, int, Any]]


@dataclass(frozen=True, slots=True)
class Llama:
    """The shape of the model: large enough that its weights do not fit in a cache."""

    hidden: int = 1024
    layers: int = 12
    heads: int = 16
    key_value_heads: int = 8
    intermediate: int = 2816
    vocabulary: int = 8192

    @property
    def head_size(self) -> int:
        """Size of one attention head."""
        return self.hidden // self.heads

    def description(self, weight_bytes: float = 2.0) -> ModelDescription:
        """The description that flopwatch works with; every matrix takes `weight_bytes` a number."""
        attention = GroupedAttention(self.heads, self.key_value_heads, self.head_size)
        return ModelDescription(
            model_type="llama",
            hidden_size=self.hidden,
            vocabulary_size=self.vocabulary,
            layers=(LayerGroup(self.layers, attention, None, self.intermediate),),
            weights=WeightBytes(attention=weight_bytes, dense=weight_bytes, head=weight_bytes),
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, rows first."""
        cached = self.key_value_heads * self.head_size
        tensors: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (self.vocabulary, self.hidden),
            "output_norm.weight": (self.hidden,),
            "output.weight": (self.vocabulary, self.hidden),
        }
        for layer in range(self.layers):
            prefix = f"blk.{layer}."
            tensors |= {
                prefix + "attn_norm.weight": (self.hidden,),
                prefix + "attn_q.weight": (self.hidden, self.hidden),
                prefix + "attn_k.weight": (cached, self.hidden),
                prefix + "attn_v.weight": (cached, self.hidden),
                prefix + "attn_output.weight": (self.hidden, self.hidden),
                prefix + "ffn_norm.weight": (self.hidden,),
                prefix + "ffn_gate.weight": (self.intermediate, self.hidden),
                prefix + "ffn_up.weight": (self.intermediate, self.hidden),
                prefix + "ffn_down.weight": (self.hidden, self.intermediate),
            }
        return tensors

    def facts(self, kind: int = BF16, *, words: bool = True) -> Facts:
        """The header's facts about the model, with matrices in `kind`.

        llama.cpp's server needs `words`, a made-up vocabulary; its library does not.
        """
        numbers = {
            "llama.context_length": 4096,
            "llama.embedding_length": self.hidden,
            "llama.block_count": self.layers,
            "llama.feed_forward_length": self.intermediate,
            "llama.attention.head_count": self.heads,
            "llama.attention.head_count_kv": self.key_value_heads,
            "llama.vocab_size": self.vocabulary,
            "llama.rope.dimension_count": self.head_size,
            "general.file_type": _FILE_TYPES[kind],
        }
        return [
            ("general.architecture", _STRING, "llama"),
            *((key, _UINT32, number) for key, number in numbers.items()),
            ("llama.attention.layer_norm_rms_epsilon", _FLOAT32, 1e-5),
            *(_vocabulary(self) if words else [("tokenizer.ggml.model", _STRING, "no_vocab")]),
        ]


def write(
    path: Path, model: Llama, kind: int = BF16, *, words: bool = False, facts: Facts | None = None
) -> Path:
    """Write the model with matrices in `kind`; vectors stay in 32 bits, as converters leave them.

    `facts` replaces those of the model.
    """
    facts = model.facts(kind, words=words) if facts is None else facts
    tensors = model.tensors()
    head, offset = b"", 0
    for name, shape in tensors.items():
        stored = _F32 if len(shape) == 1 else kind
        head += _payload(_STRING, name)
        head += struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", stored, offset)
        size = prod(shape) * (4 if stored == _F32 else 2)
        offset += size + -size % _ALIGNMENT
    noise = _noise(kind)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)))
        for key, form, value in facts:
            file.write(_payload(_STRING, key) + struct.pack("<I", form) + _payload(form, value))
        file.write(head)
        file.write(bytes(-file.tell() % _ALIGNMENT))
        for shape in tensors.values():
            # Blocks of noise: the values of the weights do not matter.
            block = struct.pack("<f", 1.0) if len(shape) == 1 else noise
            size = prod(shape) * (4 if len(shape) == 1 else 2)
            file.write((block * (size // len(block) + 1))[:size] + bytes(-size % _ALIGNMENT))
    return path


def _vocabulary(model: Llama) -> Facts:
    """Three special words, all bytes, and numbered words, as SentencePiece has them."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    words += [f"w{n}" for n in range(model.vocabulary - len(words))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (model.vocabulary - 259)
    return [
        ("tokenizer.ggml.model", _STRING, "llama"),
        ("tokenizer.ggml.tokens", _ARRAY, (_STRING, words)),
        ("tokenizer.ggml.scores", _ARRAY, (_FLOAT32, [0.0] * model.vocabulary)),
        ("tokenizer.ggml.token_type", _ARRAY, (_INT32, kinds)),
        ("tokenizer.ggml.bos_token_id", _UINT32, 1),
        ("tokenizer.ggml.eos_token_id", _UINT32, 2),
    ]


def _noise(kind: int) -> bytes:
    source = random.Random(1)
    values: Sequence[float] = [source.gauss(0, 0.02) for _ in range(_NOISE_VALUES)]
    if kind == F16:
        return struct.pack(f"<{len(values)}e", *values)
    # bf16 is the upper half of a 32-bit number.
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def _payload(form: int, value: Any) -> bytes:
    if form == _STRING:
        data = value.encode()
        return struct.pack("<Q", len(data)) + data
    if form == _ARRAY:
        inner, entries = value
        head = struct.pack("<IQ", inner, len(entries))
        return head + b"".join(_payload(inner, entry) for entry in entries)
    return struct.pack(_FORMS[form], value)
