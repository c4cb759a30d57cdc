"""Families whose layers differ, one by one, worked by hand on tiny models."""

import json
import math
from pathlib import Path
from typing import ClassVar

import pytest

from exporter.inference.models import (
    ModelDescriptionError,
    UnknownArchitectureError,
    count_parameters,
)
from exporter.inference.models.config import describe
from exporter.inference.models.cost import (
    Stretch,
    Work,
    cache_bytes_per_token,
    cache_bytes_read,
    cache_bytes_read_by,
    cost_of,
    decode_attention_flop,
    decode_attention_flop_after,
    experts_touched,
    linear_flop_per_token,
    prefill_attention_flop,
    stored_weight_bytes,
    weight_bytes_per_pass,
)


CONFIGS = Path(__file__).parent / "configs"


def flop_and_parameters(model):
    """FLOPs of a token without attention, and the number of weights that it is multiplied with."""
    return linear_flop_per_token(model), count_parameters(model).matrices_per_token


class TestNemotronNas:
    """Hidden 8, 2 heads of 4. Four layers: whole, without attention, without a feed-forward part, linear."""

    CONFIG: ClassVar = {
        "model_type": "nemotron-nas",
        "hidden_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "vocab_size": 10,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 60.0}},
            {"attention": {"n_heads_in_group": 1}, "ffn": {"no_op": True}},
            {"attention": {"replace_with_linear": True}, "ffn": {"replace_with_linear": True}},
        ],
    }

    def test_parameters(self):
        """Attention 8·(8 + 8 + 4 + 4) = 192 and 8·32 = 256, a linear layer in its place 64.

        Feed-forward sizes 2·2·8/3 = 10 and 2·60·8/3 = 320, rounded up to 256 and 512: 3·8·768 = 18432;
        a linear layer in its place 64.
        """
        counts = count_parameters(describe(self.CONFIG))

        assert (counts.attention, counts.dense, counts.extras) == (192 + 256 + 64, 18432, 64)
        # Two norms a layer, without the two of the missing parts, plus the last one.
        assert counts.vectors == 6 * 8 + 8

    def test_only_two_layers_attend_and_cache(self):
        """10 pairs of a prompt of 4, 4·2·4 FLOPs each; caches of 2·4 and 2·8 numbers."""
        model = describe(self.CONFIG)

        assert prefill_attention_flop(model, 4) == 2 * 10 * 32
        assert cache_bytes_per_token(model) == (8 + 16) * 2

    @pytest.mark.parametrize("part", [{"window_length": 8}, {"sparsify": ["q"]}])
    def test_what_is_not_described(self, part):
        """Windows and sparsified parts are refused by name."""
        blocks = [{"attention": {"n_heads_in_group": 2, **part}, "ffn": {"ffn_mult": 1.0}}] * 4

        with pytest.raises(UnknownArchitectureError, match=next(iter(part))):
            describe({**self.CONFIG, "block_configs": blocks})


class TestLongCat:
    """One layer of two blocks; 4 experts that compute and 2 that do not, 3 chosen: 2 on average."""

    CONFIG: ClassVar = {
        "model_type": "longcat_flash",
        "hidden_size": 8,
        "num_layers": 1,
        "num_attention_heads": 2,
        "q_lora_rank": 4,
        "kv_lora_rank": 4,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 2,
        "v_head_dim": 4,
        "ffn_hidden_size": 16,
        "expert_ffn_hidden_size": 5,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 3,
        "vocab_size": 10,
    }

    def test_parameters(self):
        """Attention, twice: 8·4 + 4·12 + 8·6 + 4·16 + 8·8 = 256. Dense, twice: 384. Experts: 120 each."""
        counts = count_parameters(describe(self.CONFIG))

        assert (counts.attention, counts.dense) == (512, 768)
        assert (counts.experts, counts.active_experts, counts.router) == (480, 240, 8 * 6)

    def test_work_of_a_token(self):
        """2·(512 + 768 + 240 + 48)."""
        assert linear_flop_per_token(describe(self.CONFIG)) == 2 * 1568

    def test_both_blocks_attend_and_cache(self):
        """10 pairs, 2·2·(4 + 2 + 4) FLOPs, twice; a latent of 4 + 2 numbers, twice."""
        model = describe(self.CONFIG)

        assert prefill_attention_flop(model, 4) == 2 * 10 * 40
        assert cache_bytes_per_token(model) == 2 * 6 * 2

    def test_experts_that_compute_nothing_are_not_read(self):
        """Two tokens pick 3 of 6 each: an expert is touched with probability 1 - 1/4."""
        assert experts_touched(4, 2, 2) == 3
        assert weight_bytes_per_pass(describe(self.CONFIG), 2, with_head=False) == 2 * (
            512 + 768 + 48 + 3 * 120
        )

    def test_a_mean_that_is_not_an_integer(self):
        """Refused: nothing says how a fraction of an expert is meant."""
        with pytest.raises(UnknownArchitectureError, match="whole number of computing experts"):
            describe({**self.CONFIG, "moe_topk": 2})


class TestMiniMaxM3:
    """One dense full layer, one of experts that chooses 2 blocks of 3 keys by 1 head of 2."""

    CONFIG: ClassVar = {
        "model_type": "minimax_m3_vl_text",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": 5,
        "dense_intermediate_size": 16,
        "shared_intermediate_size": 6,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 10,
        "moe_layer_freq": [0, 1],
        "sparse_attention_config": {
            "sparse_attention_freq": [0, 1],
            "sparse_num_index_heads": 1,
            "sparse_index_dim": 2,
            "sparse_block_size": 3,
            "sparse_topk_blocks": 2,
            "sparse_local_block": 1,
        },
    }

    def test_parameters(self):
        """Attention 192 twice and an index of 8·(2 + 2) = 32; 384 dense; 3·8·6 = 144 shared."""
        counts = count_parameters(describe(self.CONFIG))

        assert (counts.attention, counts.dense, counts.shared_experts) == (416, 384, 144)
        assert (counts.experts, counts.active_experts, counts.router) == (480, 240, 32)

    def test_attention(self):
        """A prompt of 9: 45 pairs in the full layer, 36 in the other, of 32 FLOPs; 45 scores of 4."""
        assert prefill_attention_flop(describe(self.CONFIG), 9) == (45 + 36) * 32 + 45 * 4

    def test_a_decoded_token(self):
        """The tenth token begins a block: 10 keys in the full layer, 3 + 1 in the other, 10 scores."""
        model = describe(self.CONFIG)

        assert decode_attention_flop_after(model, 1, 9) == (10 + 4) * 32 + 10 * 4
        # 8 numbers a key, and an index key of 2, in 16 bits.
        assert cache_bytes_read_by(model, 1, 9) == (10 + 4) * 16 + 10 * 4
        assert cache_bytes_per_token(model) == 2 * 16 + 4


class TestWindowedHeads:
    CONFIG: ClassVar = {
        "model_type": "step3_text",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_attention_groups": 1,
        "head_dim": 4,
        "share_q_dim": 4,
        "intermediate_size": 16,
        "moe_intermediate_size": 5,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "share_expert_dim": 5,
        "moe_layers_enum": [0],
        "vocab_size": 10,
    }

    def test_step(self):
        """A full layer of 2 heads, a windowed one of 3: 8·(8 + 8 + 8 + 2) and 8·(12 + 12 + 8 + 3)."""
        config = {
            "model_type": "step3p5",
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_attention_groups": 1,
            "head_dim": 4,
            "intermediate_size": 16,
            "moe_intermediate_size": 5,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "share_expert_dim": 6,
            "moe_layers_enum": "1",
            "sliding_window": 3,
            # One more than there are layers: that of the draft head.
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "attention_other_setting": {"num_attention_heads": 3, "num_attention_groups": 1},
            "vocab_size": 10,
        }
        model = describe(config)
        counts = count_parameters(model)

        assert counts.attention == 8 * (8 + 8 + 8 + 2) + 8 * (12 + 12 + 8 + 3)
        assert (counts.dense, counts.shared_experts, counts.active_experts) == (384, 144, 240)
        # A prompt of 4: 10 pairs of 32 FLOPs, and 1 + 2 + 3 + 3 = 9 of 48.
        assert prefill_attention_flop(model, 4) == 10 * 32 + 9 * 48

    def test_mimo(self):
        """Keys of 4 and values of 2; twice the key-value heads, and sinks, behind a window."""
        config = {
            "model_type": "mimo_v2_flash",
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "swa_num_key_value_heads": 2,
            "head_dim": 4,
            "v_head_dim": 2,
            "intermediate_size": 16,
            "moe_intermediate_size": 5,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_layer_freq": [0, 1],
            "hybrid_layer_pattern": [0, 1],
            "sliding_window": 3,
            "vocab_size": 10,
        }
        model = describe(config)

        # Queries 8, output 4, keys and values 6 a head.
        assert count_parameters(model).attention == 8 * (8 + 4 + 6) + 8 * (8 + 4 + 12)
        assert prefill_attention_flop(model, 4) == (10 + 9) * 2 * 2 * (4 + 2)
        assert cache_bytes_per_token(model) == (6 + 12) * 2

    def test_step_3(self):
        """Queries through a rank of 4: 8·4 + 4·8; one key and value head: 8·8; output 8·8."""
        counts = count_parameters(describe(self.CONFIG))

        assert counts.attention == 32 + 32 + 64 + 64
        assert (counts.active_experts, counts.shared_experts) == (240, 120)

    @pytest.mark.parametrize("listed", ["first", [None], [math.inf], 0])
    def test_a_list_of_layers_that_is_none(self, listed):
        """Refused by its name; JSON has infinite numbers."""
        with pytest.raises(UnknownArchitectureError, match="moe_layers_enum is"):
            describe(self.CONFIG | {"moe_layers_enum": listed})


class TestGemma3n:
    """Two windowed layers and a full one, the last two of which share the caches before them."""

    CONFIG: ClassVar = {
        "model_type": "gemma3n_text",
        "hidden_size": 8,
        "intermediate_size": [16, 16, 16, 16],
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": 10,
        "vocab_size_per_layer_input": 6,
        "hidden_size_per_layer_input": 2,
        "altup_num_inputs": 2,
        "laurel_rank": 1,
        "num_kv_shared_layers": 2,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }

    def test_parameters(self):
        """Attention 192, without keys and values 128. Beside it a layer has 2·8·2 for its embedding.

        8·2 for the residual of rank 1, 2·8 for the router of two streams, 8 + 4 for their mixing; the
        model 8·2·4 for the embeddings of all layers, and 2·8·8 to make and join the second stream.
        """
        counts = count_parameters(describe(self.CONFIG))

        assert counts.attention == 2 * 192 + 2 * 128
        assert counts.extras == 4 * (32 + 16 + 16 + 12) + 64 + 128
        assert counts.looked_up == 6 * 2 * 4

    def test_work_of_a_token(self):
        """The look-up costs nothing; the router looks twice (2·2·8) and mixes 2·2 by 8 (2·4·8)."""
        flop, parameters = flop_and_parameters(describe(self.CONFIG))

        assert parameters == 640 + 4 * 384 + 496
        assert flop == 2 * parameters + 4 * (32 + 64)

    def test_every_layer_attends_and_two_cache(self):
        """A prompt of 4: 10 pairs in full layers, 9 behind windows; 8 numbers cached, twice."""
        model = describe(self.CONFIG)

        assert prefill_attention_flop(model, 4) == 2 * (10 + 9) * 32
        assert cache_bytes_per_token(model) == 2 * 8 * 2
        # All four read: 5 keys in full layers and 3 in the others.
        assert cache_bytes_read_by(model, 1, 4) == 2 * (5 + 3) * 16


class TestGemma4:
    """A windowed layer and a full one with larger heads whose keys are its values; experts beside."""

    CONFIG: ClassVar = {
        "model_type": "gemma4_text",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 4,
        "global_head_dim": 6,
        "attention_k_eq_v": True,
        "vocab_size": 10,
        "hidden_size_per_layer_input": 0,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 5,
    }

    def test_parameters(self):
        """8·(8 + 8 + 16) behind the window, 8·(12 + 12 + 6) in the full layer; a dense part each."""
        counts = count_parameters(describe(self.CONFIG))

        assert counts.attention == 256 + 240
        assert (counts.dense, counts.experts, counts.active_experts) == (768, 960, 480)

    def test_caches_keys_and_values(self):
        """2·2·4 and 2·1·6 numbers: values are normalized otherwise than keys, so both are kept."""
        assert cache_bytes_per_token(describe(self.CONFIG)) == (16 + 12) * 2

    def test_attention_both_ways(self):
        """A model made for embeddings is refused."""
        with pytest.raises(UnknownArchitectureError, match="later tokens"):
            describe({**self.CONFIG, "use_bidirectional_attention": "all"})

    def test_more_active_experts_than_there_are(self):
        """A token cannot use 5 of 4 experts: the file is wrong, whatever its family."""
        with pytest.raises(UnknownArchitectureError, match="5 of 4 experts are active"):
            describe({**self.CONFIG, "top_k_experts": 5})


class TestDeepSeekV4:
    """Hidden 8, 2 heads of 4, rank 4, 2 output groups of rank 3, 2 streams, a window of 3.

    One layer each: window alone; 1 of the entries of 4 tokens, chosen by 1 head of 2; all of 128.
    """

    CONFIG: ClassVar = {
        "model_type": "deepseek_v4",
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 4,
        "q_lora_rank": 4,
        "o_groups": 2,
        "o_lora_rank": 3,
        "hc_mult": 2,
        "sliding_window": 3,
        "index_topk": 1,
        "index_n_heads": 1,
        "index_head_dim": 2,
        "moe_intermediate_size": 5,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        # The last is the draft layer's.
        "compress_ratios": [0, 4, 128, 0],
        "vocab_size": 10,
    }

    def test_parameters(self):
        """Attention: 8·4 + 4·8, a key of 8·4, output 8·3 + 6·8: 168; the index query 4·2.

        Beside it two hyper-connections of 8·16 each a layer, and one of 2·16 at the end; compressors of
        8·(2·2·(4 + 2) + 1) = 200 and 8·2·4 = 64.
        """
        counts = count_parameters(describe(self.CONFIG))

        assert counts.attention == 3 * 168 + 8
        assert counts.extras == 3 * 256 + 32 + 200 + 64
        assert (counts.active_experts, counts.shared_experts) == (3 * 240, 3 * 120)

    def test_work_of_a_token(self):
        """Joining the streams (2·2·8) and mixing them (2·4·8), twice a layer, and once at the end."""
        flop, parameters = flop_and_parameters(describe(self.CONFIG))

        assert flop == 2 * parameters + 3 * 2 * (32 + 64) + 32

    def test_attention(self):
        """A prompt of 9: 1 + 2 + 7·3 = 24 pairs behind the window, in three layers.

        Tokens 4 to 9 also see one entry each, 6 pairs, of the 4·1 + 2·2 = 8 that are scored with
        2·(2 + 1) FLOPs. No group of 128 is full.
        """
        assert prefill_attention_flop(describe(self.CONFIG), 9) == (3 * 24 + 6) * 32 + 8 * 6

    def test_a_token_after_a_long_context(self):
        """At token 256: 3 keys thrice, one chosen entry of 64, and two entries of 128."""
        model = describe(self.CONFIG, cache_data_type="bfloat16")

        assert decode_attention_flop(model, 256) == (9 + 1 + 2) * 32 + 64 * 6
        assert decode_attention_flop_after(model, 1, 255) == decode_attention_flop(model, 256)
        # One number is key and value; an index key of 2 bytes.
        assert cache_bytes_read(model, 256) == (9 + 1 + 2) * 4 * 2 + 64 * 2

    def test_what_a_token_adds_to_the_cache(self):
        """A key in each layer, a fourth of an entry and its index key, a 128th of the other."""
        model = describe(self.CONFIG, cache_data_type="bfloat16")

        assert cache_bytes_per_token(model) == 8 * (3 + 1 / 4 + 1 / 128) + 2 / 4

    def test_formats_of_its_checkpoints(self):
        """fp8 with experts in 4 bits and a scale per 32; a cache of 584 bytes for 512 numbers."""
        quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        model = describe(
            {**self.CONFIG, "quantization_config": quantization, "expert_dtype": "fp4"}
        )

        assert (model.weights.attention, model.weights.experts) == (1.0, 4.25 / 8)
        assert model.compute_precision == "fp8"
        assert model.cache_value_bytes == 584 / 512

    def test_other_ratios(self):
        """Refused: nothing says what they mean."""
        with pytest.raises(UnknownArchitectureError, match="compress_ratios"):
            describe({**self.CONFIG, "compress_ratios": [0, 8, 128]})


def test_deepseek_v32_in_fp8():
    """512 numbers of one byte, 4 scales of 4 and 64 rotary numbers of 2: 656 bytes for 576 numbers."""
    config = json.loads((CONFIGS / "deepseek-v3.2.json").read_text())

    assert describe(config, cache_data_type="fp8").cache_value_bytes == 656 / 576


class TestWhisper:
    """Hidden 8, 2 heads, one encoder and one decoder layer of inner size 16; 6 positions heard."""

    CONFIG: ClassVar = {
        "model_type": "whisper",
        "d_model": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_mel_bins": 2,
        "max_source_positions": 6,
        "max_target_positions": 5,
        "vocab_size": 10,
    }
    # Convolutions 3·2·8 at 12 positions and 3·8·8 at 6; 4·64 + 2·8·16 = 512 in the layer and 2·64 for the
    # decoder's keys and values, at 6; 36 pairs of 4·8.
    HEARD = 2 * 48 * 12 + 2 * 192 * 6 + 2 * (512 + 128) * 6 + 36 * 32

    def test_work_of_a_token(self):
        """Attention 4·64 and 2·64 for what was heard, feed-forward 256; 6 keys heard of 4·8 FLOPs."""
        assert linear_flop_per_token(describe(self.CONFIG)) == 2 * (256 + 128 + 256) + 6 * 32

    def test_each_prompt_is_heard_once(self):
        """Two prompts of 4 tokens (10 pairs of 32) with an answer of 3 each: 2·160 for logits."""
        model = describe(self.CONFIG)
        work = Work(
            prefill_tokens=8,
            decode_tokens=6,
            prompts=2,
            prefills=(Stretch(2, 0, 4),),
            decodes=(Stretch(2, 4, 2),),
            prefill_passes=1,
            decode_passes=2,
        )
        cost = cost_of(model, work)

        assert cost.prefill_flop == 8 * 1472 + 2 * 10 * 32 + 2 * 160 + 2 * self.HEARD
        # 3 passes of 640 + 80 parameters, and one of the encoder's 48 + 192 + 512 + 128; 8 + 4 tokens
        # written of 16 numbers; 2·(5 + 6) keys read; 96 numbers heard: written once a prompt, and
        # read by each of the 4 tokens.
        passes = 3 * 720 + 880
        assert cost.dram_bytes == 2 * (passes + 12 * 16 + 22 * 16 + 2 * 96 + 4 * 96)

    def test_parameters(self):
        """The encoder is stored, and no token of the decoder meets it."""
        counts = count_parameters(describe(self.CONFIG))

        assert counts.active == counts.total - counts.prologue
        assert stored_weight_bytes(describe(self.CONFIG)) == 2 * counts.total


class TestMamba:
    """Hidden 8, inner 16, 3 states a channel, a time step of rank 2, a convolution of 4."""

    CONFIG: ClassVar = {
        "model_type": "mamba",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "state_size": 3,
        "expand": 2,
        "conv_kernel": 4,
        "time_step_rank": 2,
        "vocab_size": 10,
    }

    def test_work_of_a_token(self):
        """8·32 in, 16·4 convolved, 16·(2 + 6) and 2·16 for the step, 16·8 out: 608; 4·48 on the state."""
        model = describe(self.CONFIG)

        assert count_parameters(model).attention == 2 * 608
        assert linear_flop_per_token(model) == 2 * 2 * 608 + 2 * 192

    def test_no_attention_and_no_cache(self):
        """A state of 48 numbers a layer is read and written instead, whatever the context."""
        model = describe(self.CONFIG)

        assert prefill_attention_flop(model, 1000) == 0
        assert cache_bytes_per_token(model) == 0
        assert cache_bytes_read_by(model, 1, 1000) == 2 * 2 * 48 * 2

    def test_jamba(self):
        """Layer 1 of two attends and holds experts; the other is Mamba with a dense part."""
        config = {
            "model_type": "jamba",
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 5,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 3,
            "mamba_dt_rank": 2,
            "vocab_size": 10,
        }
        model = describe(config)
        counts = count_parameters(model)

        assert (counts.attention, counts.dense, counts.active_experts) == (608 + 192, 120, 240)
        assert prefill_attention_flop(model, 4) == 10 * 32


class TestRefusedByName:
    def test_kimi_k3(self):
        """Its language model claims to be Kimi Linear, but is not."""
        config = {"model_type": "kimi_k3", "text_config": {"model_type": "kimi_linear"}}

        with pytest.raises(UnknownArchitectureError, match=r"kimi_k3.*latent projection"):
            describe(config)

    def test_kimi_linear_with_parts_of_k3(self):
        """The text part alone is refused as well."""
        config = {"model_type": "kimi_linear", "routed_expert_hidden_size": 4}

        with pytest.raises(UnknownArchitectureError, match="routed_expert_hidden_size"):
            describe(config)

    @pytest.mark.parametrize("heads", ["x", [1], {}, 1.5, -1])
    def test_kimi_linear_with_a_broken_field(self, heads):
        """The field is named, in one line."""
        config = {
            "model_type": "kimi_linear",
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "vocab_size": 8,
            "linear_attn_config": {"num_heads": heads, "kda_layers": [1], "full_attn_layers": [2]},
        }

        with pytest.raises(ModelDescriptionError, match=r"linear_attn_config\.num_heads is"):
            describe(config)
