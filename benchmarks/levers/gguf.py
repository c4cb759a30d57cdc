"""Writes a small Llama with random weights as GGUF, llama.cpp's file format (version 3).

Source: the format's specification in ggml's repository (docs/gguf.md).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from exporter.inference.models import (
    LayerGroup,
    ModelDescription,
    WeightBytes,
)
from exporter.inference.models.attention import GroupedAttention


_F32, _BF16 = 0, 30  # enum ggml_type
_UINT32, _FLOAT32, _STRING = 4, 6, 8  # enum gguf_metadata_value_type
_INT32, _ARRAY = 5, 9
_ALIGNMENT = 32


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


def write(path: Path, model: Llama, seed: int = 1, *, words: bool = False) -> None:
    """Write the model in bf16; vectors stay in 32 bits, as converters leave them.

    llama.cpp's server needs `words`, a made-up vocabulary; its library does not.
    """
    stream = np.random.default_rng(seed)
    tensors = model.tensors()
    head, offset = b"", 0
    for name, shape in tensors.items():
        kind = _F32 if len(shape) == 1 else _BF16
        sizes = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        head += _string(name) + struct.pack("<I", len(shape)) + sizes
        head += struct.pack("<IQ", kind, offset)
        offset += _padded(prod(shape) * (4 if kind == _F32 else 2))
    facts = _facts(model, _vocabulary(model) if words else _NO_VOCABULARY)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)))
        file.write(b"".join(facts) + head)
        file.write(bytes(-file.tell() % _ALIGNMENT))
        for shape in tensors.values():
            if len(shape) == 1:
                data = np.ones(shape, np.float32).tobytes()
            else:
                values = stream.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
                data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            file.write(data + bytes(-len(data) % _ALIGNMENT))


def _facts(model: Llama, vocabulary: Sequence[bytes]) -> Sequence[bytes]:
    numbers = {
        "llama.context_length": 4096,
        "llama.embedding_length": model.hidden,
        "llama.block_count": model.layers,
        "llama.feed_forward_length": model.intermediate,
        "llama.attention.head_count": model.heads,
        "llama.attention.head_count_kv": model.key_value_heads,
        "llama.vocab_size": model.vocabulary,
        "llama.rope.dimension_count": model.head_size,
        "general.file_type": 32,  # mostly bf16
    }
    texts = {"general.architecture": "llama"}
    epsilon = struct.pack("<If", _FLOAT32, 1e-5)
    return [
        *(_string(key) + struct.pack("<I", _STRING) + _string(text) for key, text in texts.items()),
        *(_string(key) + struct.pack("<II", _UINT32, value) for key, value in numbers.items()),
        _string("llama.attention.layer_norm_rms_epsilon") + epsilon,
        *vocabulary,
    ]


def _vocabulary(model: Llama) -> Sequence[bytes]:
    """Three special words, all bytes, and numbered words, as SentencePiece has them."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    words += [f"w{n}" for n in range(model.vocabulary - len(words))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (model.vocabulary - 259)
    count = struct.pack("<Q", model.vocabulary)
    arrays = {
        "tokens": (_STRING, b"".join(map(_string, words))),
        "scores": (_FLOAT32, bytes(4 * model.vocabulary)),
        "token_type": (_INT32, struct.pack(f"<{len(kinds)}i", *kinds)),
    }
    special = {"bos_token_id": 1, "eos_token_id": 2}
    return [
        _string("tokenizer.ggml.model") + struct.pack("<I", _STRING) + _string("llama"),
        *(
            _string(f"tokenizer.ggml.{name}") + struct.pack("<II", _ARRAY, kind) + count + data
            for name, (kind, data) in arrays.items()
        ),
        *(
            _string(f"tokenizer.ggml.{name}") + struct.pack("<II", _UINT32, value)
            for name, value in special.items()
        ),
    ]


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


_NO_VOCABULARY = (
    _string("tokenizer.ggml.model") + struct.pack("<I", _STRING) + _string("no_vocab"),
)


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT
