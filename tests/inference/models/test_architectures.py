"""Architectures beyond plain attention: parameters against their classes, FLOPs by hand."""

import pytest

from benchmarks.model_parameters import BOUND, rows
from exporter.inference.models import UnknownArchitectureError, count_parameters
from exporter.inference.models.config import describe
from exporter.inference.models.cost import (
    cache_bytes_per_token,
    cache_bytes_read_by,
    linear_flop_per_token,
    prefill_attention_flop,
)
from exporter.inference.models.families import FAMILIES


# Each in seconds; `python -m benchmarks.model_parameters` has all of them.
QUICK = ("apertus", "bert", "kimi_linear", "modernbert", "nemotron_h", "qwen3_5_text", "qwen3_next")

# One layer of each kind: hidden 8, attention of 2 query and 1 key-value heads of 4 with an output
# gate (8·(3·8 + 2·4) = 256 parameters); a delta network of 1 key and 2 value heads of 2 by 3.
HYBRID = {
    "model_type": "qwen3_5_text",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 16,
    "vocab_size": 10,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 2,
    "linear_value_head_dim": 3,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}


@pytest.mark.parametrize("name", QUICK)
def test_parameters_of_the_class_in_transformers(name):
    """Within 0.1 %: what is missing are biases and norms."""
    (row,) = rows([name])

    assert row.counted == pytest.approx(row.true, rel=BOUND)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_parameters_of_every_architecture():
    """All families that transformers has a class for."""
    found = list(rows(sorted(FAMILIES)))

    assert len(found) > 60
    assert [row.model_type for row in found if abs(row.error) > BOUND] == []


class TestHybrid:
    """2 keys, 6 values: 8·(4 + 12 + 4) + 6·8 + 10·4 = 248 parameters; a state of 2·2·3 = 12."""

    def test_work_per_token(self):
        """2·(256 + 248 + 2·384) for the matrices, 6·12 on the state."""
        assert linear_flop_per_token(describe(HYBRID)) == 2 * (256 + 248 + 768) + 72

    def test_only_attention_looks_back(self):
        """10 pairs of a prompt of 4 tokens, 4·2·4 FLOPs each, in one layer."""
        assert prefill_attention_flop(describe(HYBRID), 4) == 10 * 32

    def test_only_attention_caches(self):
        """2·4 numbers a token; the state is read and written once a token instead."""
        model = describe(HYBRID)

        assert cache_bytes_per_token(model) == 8 * 2
        # One token after 4: 5 keys of 16 bytes; 12 numbers of 2 bytes, twice.
        assert cache_bytes_read_by(model, 1, 4) == 5 * 16 + 48

    def test_states_in_full_precision(self):
        """Where the file says so."""
        model = describe({**HYBRID, "mamba_ssm_dtype": "float32"})

        assert cache_bytes_read_by(model, 1, 4) == 5 * 16 + 96

    def test_layers_by_interval(self):
        """Older files give the interval between layers with attention."""
        config = {**HYBRID, "num_hidden_layers": 8, "full_attention_interval": 4}
        del config["layer_types"]

        counts = {group.attention.cached_values: group.count for group in describe(config).layers}

        assert counts == {0: 6, 8: 2}

    def test_an_unknown_kind_of_layer(self):
        """Refused by its name."""
        with pytest.raises(UnknownArchitectureError, match="'quantum_attention'"):
            describe({**HYBRID, "layer_types": ["quantum_attention", "full_attention"]})


# Of four layers, M-M*, two are Mamba-2, one is a feed-forward and one attends.
NEMOTRON_H = {
    "model_type": "nemotron_h",
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "hybrid_override_pattern": "M-M*",
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 16,
    "vocab_size": 10,
    "mamba_num_heads": 2,
    "mamba_head_dim": 4,
    "ssm_state_size": 3,
    "n_groups": 1,
    "conv_kernel": 4,
}


class TestNemotronH:
    def test_layers_as_a_word(self):
        """M Mamba-2, * attention, - feed-forward: each layer is one thing."""
        config = NEMOTRON_H

        model = describe(config)
        counts = count_parameters(model)

        # Mamba-2: 8·(16 + 6 + 2) + 8·8 + 14·4 = 312; attention 8·(16 + 8) = 192.
        assert (counts.attention, counts.dense) == (2 * 312 + 192, 2 * 8 * 16)
        # Two states of 24 numbers, 4 FLOPs each.
        assert linear_flop_per_token(model) == 2 * (2 * 312 + 192 + 256) + 2 * 96


class TestEncoders:
    def test_every_token_attends_to_all(self):
        """16 pairs of 4 tokens, where a decoder has 10; no logits, no head."""
        config = {
            "model_type": "bert",
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "vocab_size": 10,
            "max_position_embeddings": 4,
        }

        model = describe(config)

        assert prefill_attention_flop(model, 4) == 16 * 4 * 8
        assert count_parameters(model).head == 0
