"""Descriptions from GGUF headers: the sizes, every tensor's type, and what is refused."""

import contextlib
import math

import pytest

from benchmarks.engine_accuracy.truth import SERVED
from benchmarks.gguf import F16, write
from exporter.inference.models import ModelDescriptionError, count_parameters
from exporter.inference.models.attention import GroupedAttention
from exporter.inference.models.cost import stored_weight_bytes
from exporter.inference.models.files import load_model


@pytest.fixture(name="file")
def _file(tmp_path):
    return write(tmp_path / "tiny.gguf", SERVED, F16, words=True)


def test_a_llama(file):
    """4 layers of 8 query and 2 key-value heads of 32, MLP 704, 1024 words, an own output head."""
    model = load_model(file)

    assert model.layers[0].attention == GroupedAttention(8, 2, 32)
    assert (model.layer_count, model.layers[0].intermediate_size) == (4, 704)
    assert count_parameters(model).total == 2 * 1024 * 256 + 4 * (704_512 + 512) + 256
    assert (model.weights.attention, model.compute_precision) == (2.0, "fp16")
    assert stored_weight_bytes(model) == 2 * count_parameters(model).total


def test_a_quantized_cache(file):
    """`--cache-type-k q8_0`: 34 bytes for 32 numbers."""
    assert load_model(file, cache_data_type="q8_0").cache_value_bytes == 34 / 32


def test_tensors_that_the_formulas_do_not_count(file, tmp_path):
    """A tensor more than a Llama has: refused, with both numbers."""
    data = file.read_bytes().replace(b"blk.0.ffn_gate.weight", b"rope_freqs_gateweight")
    other = tmp_path / "other.gguf"
    other.write_bytes(data)

    with pytest.raises(
        ModelDescriptionError, match=r"other\.gguf: .* parameters, but the formulas"
    ):
        load_model(other)


def test_an_architecture_that_is_not_known(file, tmp_path):
    """Refused by its name."""
    other = tmp_path / "other.gguf"
    other.write_bytes(
        file.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1)
    )

    with pytest.raises(ModelDescriptionError, match="'mamba'"):
        load_model(other)


@pytest.mark.parametrize("size", [5, 30, 400, 20_000])
def test_a_file_cut_short(file, tmp_path, size):
    """An engine may still be downloading it: one line, no traceback."""
    other = tmp_path / "short.gguf"
    other.write_bytes(file.read_bytes()[:size])

    with pytest.raises(ModelDescriptionError, match="truncated"):
        load_model(other)


@pytest.mark.parametrize(
    ("key", "form", "value"),
    [
        ("llama.embedding_length", 6, math.inf),
        ("llama.embedding_length", 6, math.nan),
        ("llama.rope.dimension_count", 6, math.inf),
        ("llama.embedding_length", 8, "wide"),
        ("llama.rope.dimension_count", 9, (4, [1, 2])),
    ],
)
def test_a_size_that_is_no_number(tmp_path, key, form, value):
    """A size of another type is refused in one line that names the file and the size."""
    others = [entry for entry in SERVED.facts(F16) if entry[0] != key]
    latent = ("llama.attention.kv_lora_rank", 4, 64)
    facts = [*others, latent, (key, form, value)]
    file = write(tmp_path / "odd.gguf", SERVED, F16, facts=facts)

    name = key.removeprefix("llama.")
    with pytest.raises(ModelDescriptionError, match=rf"odd\.gguf: .*{name} is .*whole number"):
        load_model(file)


@pytest.mark.parametrize("position", range(4, 200, 7))
def test_broken_headers_are_refused_or_read(file, tmp_path, position):
    """Whatever byte is changed, only our own error is raised."""
    data = bytearray(file.read_bytes()[:30_000])
    data[position] ^= 0xFF
    other = tmp_path / "broken.gguf"
    other.write_bytes(bytes(data))

    with contextlib.suppress(ModelDescriptionError):
        load_model(other)
