"""Writes the tiny model as a GGUF file with random weights, for llama.cpp."""

import random
import struct
from pathlib import Path
from typing import BinaryIO

from benchmarks.engine_accuracy.truth import GROUPS, HEAD, HEADS, HIDDEN, INNER, LAYERS, WORDS


_ALIGNMENT = 32
_F16, _F32 = 1, 0
_U32, _F32_VALUE, _TEXT, _ARRAY, _I32 = 4, 6, 8, 9, 5


def write_gguf(path: Path) -> Path:
    """Write the model; half precision, norms in full."""
    tensors = _tensors()
    values = _values()
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)))
        for name, kind, value in values:
            _text(file, name)
            _value(file, kind, value)
        offset = 0
        for name, shape, kind in tensors:
            _text(file, name)
            file.write(struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", kind, offset))
            offset += _padded(_size(shape, kind))
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        source = random.Random(1)
        # One block of noise, over and over: the weights' values do not matter.
        noise = struct.pack("<4096e", *(source.gauss(0, 0.02) for _ in range(4096)))
        for _name, shape, kind in tensors:
            size = _size(shape, kind)
            data = (
                struct.pack("<f", 1.0) * (size // 4) if kind == _F32 else noise * (size // 8192 + 1)
            )
            file.write(data[:size] + b"\0" * (_padded(size) - size))
    return path


def _tensors() -> list[tuple[str, tuple[int, ...], int]]:
    tensors: list[tuple[str, tuple[int, ...], int]] = [
        ("token_embd.weight", (HIDDEN, WORDS), _F16),
        ("output_norm.weight", (HIDDEN,), _F32),
        ("output.weight", (HIDDEN, WORDS), _F16),
    ]
    for layer in range(LAYERS):
        tensors += [
            (f"blk.{layer}.{name}.weight", shape, kind)
            for name, shape, kind in (
                ("attn_norm", (HIDDEN,), _F32),
                ("attn_q", (HIDDEN, HEADS * HEAD), _F16),
                ("attn_k", (HIDDEN, GROUPS * HEAD), _F16),
                ("attn_v", (HIDDEN, GROUPS * HEAD), _F16),
                ("attn_output", (HEADS * HEAD, HIDDEN), _F16),
                ("ffn_norm", (HIDDEN,), _F32),
                ("ffn_gate", (HIDDEN, INNER), _F16),
                ("ffn_up", (HIDDEN, INNER), _F16),
                ("ffn_down", (INNER, HIDDEN), _F16),
            )
        ]
    return tensors


def _values() -> list[tuple[str, int, object]]:
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    words += [f"w{n}" for n in range(WORDS - len(words))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (WORDS - 259)
    return [
        ("general.architecture", _TEXT, "llama"),
        ("general.name", _TEXT, "tiny"),
        ("llama.block_count", _U32, LAYERS),
        ("llama.context_length", _U32, 4096),
        ("llama.embedding_length", _U32, HIDDEN),
        ("llama.feed_forward_length", _U32, INNER),
        ("llama.attention.head_count", _U32, HEADS),
        ("llama.attention.head_count_kv", _U32, GROUPS),
        ("llama.attention.layer_norm_rms_epsilon", _F32_VALUE, 1e-5),
        ("llama.rope.dimension_count", _U32, HEAD),
        ("llama.vocab_size", _U32, WORDS),
        ("general.file_type", _U32, 1),
        ("tokenizer.ggml.model", _TEXT, "llama"),
        ("tokenizer.ggml.tokens", _ARRAY, (_TEXT, words)),
        ("tokenizer.ggml.scores", _ARRAY, (_F32_VALUE, [0.0] * WORDS)),
        ("tokenizer.ggml.token_type", _ARRAY, (_I32, kinds)),
        ("tokenizer.ggml.bos_token_id", _U32, 1),
        ("tokenizer.ggml.eos_token_id", _U32, 2),
    ]


def _text(file: BinaryIO, text: str) -> None:
    data = text.encode()
    file.write(struct.pack("<Q", len(data)) + data)


def _value(file: BinaryIO, kind: int, value: object) -> None:
    file.write(struct.pack("<I", kind))
    _payload(file, kind, value)


def _payload(file: BinaryIO, kind: int, value: object) -> None:
    if kind == _TEXT:
        _text(file, str(value))
    elif kind == _ARRAY:
        inner, entries = value  # type: ignore[misc]  # a pair, see _values
        file.write(struct.pack("<IQ", inner, len(entries)))
        for entry in entries:
            _payload(file, inner, entry)
    else:
        file.write(struct.pack({_U32: "<I", _F32_VALUE: "<f", _I32: "<i"}[kind], value))


def _size(shape: tuple[int, ...], kind: int) -> int:
    numbers = 1
    for length in shape:
        numbers *= length
    return numbers * (2 if kind == _F16 else 4)


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT
