"""From config.json to a description, and the error when that is impossible."""

import json
from pathlib import Path

import pytest

from exporter.errors import FlopwatchError
from exporter.inference.models import ModelDescriptionError, UnknownArchitectureError
from exporter.inference.models.attention import GroupedAttention, LatentAttention
from exporter.inference.models.config import describe
from exporter.inference.models.cost import stored_weight_bytes
from exporter.inference.models.files import load_model


CONFIGS = Path(__file__).parent / "configs"
LLAMA = json.loads((CONFIGS / "llama-3.1-8b.json").read_text())


def windows_of(name):
    model = load_model(CONFIGS / f"{name}.json")
    return {group.window: group.count for group in model.layers}


class TestShapes:
    def test_grouped_queries(self):
        """Llama 3.1 8B has 32 query heads of 128 over 8 key-value heads."""
        model = describe(LLAMA)

        assert model.layers[0].attention == GroupedAttention(32, 8, 128)
        assert model.layer_count == 32

    def test_falcon_has_one_key_value_head(self):
        """`multi_query` of the first Falcon models means one key-value head."""
        model = load_model(CONFIGS / "falcon-7b.json")

        assert model.layers[0].attention.key_value_heads == 1
        assert model.feed_forward_matrices == 2

    def test_latent_attention(self):
        """DeepSeek-V3 caches a latent of 512 and a rotary key of 64 per token and layer."""
        attention = load_model(CONFIGS / "deepseek-v3.json").layers[0].attention

        assert attention == LatentAttention(128, 1536, 512, 128, 64, 128)
        assert attention.cached_values == 576

    def test_sparse_attention(self):
        """DeepSeek-V3.2 chooses 2048 keys; a layer may share the indexer of one below."""
        config = json.loads((CONFIGS / "deepseek-v3.2.json").read_text())
        config["indexer_types"] = ["full"] * 31 + ["shared"] * 30

        model = describe(config)

        assert {group.window for group in model.layers} == {2048}
        assert sum(group.count for group in model.layers if group.attention.indexer) == 31

    def test_first_layers_are_dense(self):
        """DeepSeek-V3 starts with three dense layers, then 58 with 256 experts."""
        dense, sparse = load_model(CONFIGS / "deepseek-v3.json").layers

        assert (dense.count, dense.intermediate_size, dense.mixture) == (3, 18432, None)
        assert (sparse.count, sparse.mixture.experts) == (58, 256)
        assert sparse.mixture.shared_intermediate_size == 2048

    def test_interleaved_experts(self):
        """Every second layer of a Llama 4 with step 2 holds experts."""
        config = json.loads((CONFIGS / "llama-4-scout.json").read_text())
        config["text_config"]["interleave_moe_layer_step"] = 2

        model = describe(config)

        assert sum(group.count for group in model.layers if group.mixture) == 24
        assert {group.intermediate_size for group in model.layers} == {0, 16384}

    def test_a_nested_language_model(self):
        """A multimodal config is described by its text_config, missing fields by the class."""
        model = load_model(CONFIGS / "gemma-3-27b.json")

        assert model.model_type == "gemma3_text"
        assert model.vocabulary_size == 262_208
        assert model.tied_embeddings

    def test_towers_beside_it(self):
        """Their work is not known, so what is left out is named."""
        config = json.loads((CONFIGS / "gemma-3-27b.json").read_text())
        seeing = {**config, "vision_config": {"hidden_size": 1152}}

        assert describe(seeing).not_counted == ("vision tower",)
        assert describe(LLAMA).not_counted == ()


class TestWindows:
    @pytest.mark.parametrize(
        ("name", "windows"),
        [
            ("mistral-7b", {4096: 32}),
            ("mixtral-8x7b", {None: 32}),
            ("qwen2.5-7b", {None: 28}),
            ("gemma-2-27b", {4096: 23, None: 23}),
            ("gemma-3-27b", {1024: 52, None: 10}),
            ("gpt-oss-120b", {128: 18, None: 18}),
            ("llama-4-scout", {8192: 36, None: 12}),
        ],
    )
    def test_each_family_lays_them_out_its_own_way(self, name, windows):
        """All layers, every other, five in six, by list, by chunk, or none."""
        assert windows_of(name) == windows

    def test_a_period_in_words(self):
        """LLLG: three layers with a window, one without, over and over."""
        config = {**LLAMA, "model_type": "exaone4", "sliding_window": 4096}
        model = describe({**config, "sliding_window_pattern": "LLLG"})

        assert {group.window: group.count for group in model.layers} == {4096: 24, None: 8}

    def test_upper_layers_only(self):
        """Qwen 2 with use_sliding_window keeps full attention in the first layers."""
        config = {**LLAMA, "model_type": "qwen2", "sliding_window": 4096}
        config |= {"use_sliding_window": True, "max_window_layers": 20}

        assert {group.window: group.count for group in describe(config).layers} == {
            None: 20,
            4096: 12,
        }


class TestFormats:
    def quantized(self, **quantization):
        return describe({**LLAMA, "quantization_config": quantization})

    def test_plain_bf16(self):
        """Without quantization everything takes two bytes."""
        model = describe(LLAMA)

        assert model.weights.attention == 2.0
        assert (model.compute_precision, model.cache_value_bytes) == ("bf16", 2.0)

    def test_fp8_multiplies_in_fp8(self):
        """fp8 weights take one byte and fp8 arithmetic; the head stays bf16."""
        model = self.quantized(quant_method="fp8", activation_scheme="dynamic")

        assert (model.weights.dense, model.weights.head) == (1.0, 2.0)
        assert model.compute_precision == "fp8"

    @pytest.mark.parametrize("method", ["gptq", "awq"])
    def test_four_bit_weights_multiply_in_the_models_own_type(self, method):
        """GPTQ and AWQ: 4 bits plus (16 + 4)/128 of scale and zero point; arithmetic in fp16."""
        config = {**LLAMA, "torch_dtype": "float16"}
        config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}

        model = describe(config)

        assert model.weights.dense == pytest.approx(4.15625 / 8)
        assert model.compute_precision == "fp16"

    def test_mxfp4_is_for_experts_alone(self):
        """GPT-OSS stores experts in 4.25 bits and all else in bf16."""
        weights = load_model(CONFIGS / "gpt-oss-120b.json").weights

        assert (weights.experts, weights.attention, weights.head) == (4.25 / 8, 2.0, 2.0)

    def test_bitsandbytes(self):
        """NF4 multiplies in bf16, LLM.int8() in int8."""
        four = self.quantized(quant_method="bitsandbytes", load_in_4bit=True)
        eight = self.quantized(quant_method="bitsandbytes", load_in_8bit=True)

        assert (four.compute_precision, eight.compute_precision) == ("bf16", "int8")
        assert four.weights.dense == 4.5 / 8

    def test_compressed_tensors_with_and_without_activations(self):
        """Eight-bit weights and activations multiply in int8; four-bit weights alone do not."""
        both = {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {"num_bits": 8}}
        weights = {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}

        int8 = self.quantized(quant_method="compressed-tensors", config_groups={"group_0": both})
        w4a16 = self.quantized(
            quant_method="compressed-tensors", config_groups={"group_0": weights}
        )

        assert int8.compute_precision == "int8"
        assert (w4a16.compute_precision, w4a16.weights.dense) == ("bf16", 4.125 / 8)

    def test_nvfp4(self):
        """ModelOpt's NVFP4: 4.5 bits a weight, fp4 arithmetic, fp8 cache."""
        model = self.quantized(
            quant_method="modelopt", quant_algo="NVFP4", kv_cache_quant_algo="FP8"
        )

        assert (model.weights.dense, model.compute_precision) == (4.5 / 8, "fp4")
        assert model.cache_value_bytes == 1.0

    def test_layers_left_unquantized(self):
        """fbgemm_fp8 that spares one of three matrices in 8 of 32 layers: 1 + 8/32/3 bytes."""
        model = self.quantized(
            quant_method="fbgemm_fp8",
            modules_to_not_convert=[f"model.layers.{n}.mlp.down_proj" for n in range(8)]
            + ["model.layers.0.mlp.gate", "lm_head"],
        )

        assert model.weights.dense == pytest.approx(1 + 8 / 32 / 3)
        assert model.weights.attention == 1.0

    def test_an_unknown_method_is_refused(self):
        """Neither the size of its weights nor their compute precision is known."""
        with pytest.raises(UnknownArchitectureError, match="'zip8' is not supported"):
            self.quantized(quant_method="zip8")

    def test_shared_experts_named_by_a_regular_expression(self):
        """compressed-tensors: `re:.*shared_expert.*` leaves them as they are, and nothing else."""
        weights = {"num_bits": 4, "type": "int", "group_size": None}
        config = json.loads((CONFIGS / "qwen1.5-moe-a2.7b.json").read_text())
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": weights}},
            "ignore": ["re:.*shared_expert.*", "re:.*mlp.gate$", "lm_head"],
        }
        model = describe(config).weights

        assert (model.shared_experts, model.experts, model.attention) == (2.0, 0.5, 0.5)

    def test_a_cache_scheme_in_words(self):
        """Some files say "FP8" where others have an object."""
        model = self.quantized(quant_method="fp8", kv_cache_scheme="FP8")

        assert model.cache_value_bytes == 1.0

    @pytest.mark.parametrize("bits", [[8], {}, "eight", None])
    def test_a_cache_scheme_that_is_not_one(self, bits):
        """A width that is no number sets nothing: the cache has the model's own type, bf16."""
        model = self.quantized(quant_method="fp8", kv_cache_scheme={"num_bits": bits})

        assert model.cache_value_bytes == 2.0

    @pytest.mark.parametrize(
        ("name", "size"),
        [("fp8_e4m3", 1.0), ("auto", 2.0), ("nvfp4", 0.5), ("bfloat16", 2.0), ("fp32", 4.0)],
    )
    def test_the_engine_says_how_the_cache_is_stored(self, name, size):
        """The cache data type of the engine wins over the file."""
        assert describe(LLAMA, cache_data_type=name).cache_value_bytes == size

    def test_the_precision_can_be_overridden(self):
        """The operator's setting wins."""
        assert describe(LLAMA, precision="fp8").compute_precision == "fp8"

    def test_thirty_two_bit_checkpoints_are_served_in_bf16(self):
        """Gemma 2 is stored in 32 bits, which no engine here serves unless told to."""
        model = load_model(CONFIGS / "gemma-2-27b.json")

        assert (model.data_type, model.weights.dense) == ("bf16", 2.0)


class TestRefusals:
    def test_missing_fields_are_named(self):
        """One line names the architecture and every missing field."""
        with pytest.raises(UnknownArchitectureError) as caught:
            describe({"model_type": "qwen3", "hidden_size": 64})

        assert str(caught.value) == (
            "unsupported model architecture 'qwen3': missing fields: "
            "intermediate_size, num_attention_heads, num_hidden_layers, vocab_size"
        )

    def test_a_mixture_without_routing_is_incomplete(self):
        """Experts without the number active per token cannot be counted."""
        with pytest.raises(UnknownArchitectureError, match="num_experts_per_tok"):
            describe({**LLAMA, "model_type": "qwen3_moe", "num_experts": 8})

    @pytest.mark.parametrize(
        "foreign",
        [
            {"mamba_d_state": 16},
            {"layer_types": ["linear_attention"] * 32},
            {"attn_type_list": [0, 1] * 16},
            {"index_topk": 2048},
        ],
    )
    def test_layers_without_attention_are_refused(self, foreign):
        """State-space and linear-attention layers follow other formulas."""
        with pytest.raises(UnknownArchitectureError):
            describe({**LLAMA, **foreign})

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("marvel", "it is not in the list of supported architectures"),
            ("minimax", "lightning attention"),
            ("recurrent_gemma", "recurrent layers"),
            ("t5", "encoder-decoder models"),
        ],
    )
    def test_inexact_architectures_are_refused_by_name(self, name, reason):
        """However similar to a Llama it looks."""
        with pytest.raises(UnknownArchitectureError, match=f"'{name}': .*{reason}"):
            describe({**LLAMA, "model_type": name})

    @pytest.mark.parametrize("value", ["4096", 1.5, -1, 10**12, [4096]])
    def test_nonsense_is_refused(self, value):
        """A field that is not a whole number in range is an error in one line."""
        with pytest.raises(UnknownArchitectureError, match="hidden_size"):
            describe({**LLAMA, "hidden_size": value})

    @pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"a":' * 100_000])
    def test_a_broken_file_is_one_line(self, tmp_path, text):
        """Whatever is in the file, the error is our own, in one line, and names the file."""
        path = tmp_path / "config.json"
        path.write_text(text)

        with pytest.raises(FlopwatchError) as caught:
            load_model(path)

        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path):
        """The folder of a model may be given; its config.json is looked for."""
        with pytest.raises(FlopwatchError, match=r"config\.json: no such file"):
            load_model(tmp_path)


class TestModelOptFile:
    """Checkpoints of NVIDIA often say how they are quantized in hf_quant_config.json alone."""

    def load(self, folder, name, **quantization):
        config = json.loads((CONFIGS / f"{name}.json").read_text())
        config.pop("quantization_config", None)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "hf_quant_config.json").write_text(
            json.dumps({"producer": {"name": "modelopt"}, "quantization": quantization})
        )
        return load_model(folder)

    def test_qwen3_235b_nvfp4(self, tmp_path):
        """134 GB and fp4, not 470 GB and bf16."""
        model = self.load(
            tmp_path,
            "qwen3-235b-a22b",
            quant_algo="NVFP4",
            kv_cache_quant_algo="FP8",
            exclude_modules=["lm_head", *(f"model.layers.{n}.mlp.gate" for n in range(94))],
        )

        assert stored_weight_bytes(model) == pytest.approx(134e9, rel=0.01)
        assert (model.compute_precision, model.cache_value_bytes) == ("fp4", 1.0)

    def test_deepseek_v3_1_nvfp4(self, tmp_path):
        """397 GB: attention stays in bf16."""
        model = self.load(
            tmp_path,
            "deepseek-v3",
            quant_algo="NVFP4",
            exclude_modules=["lm_head", "model.layers.*.self_attn*", "model.embed_tokens"],
        )

        assert stored_weight_bytes(model) == pytest.approx(397e9, rel=0.01)

    def test_llama_70b_fp8(self, tmp_path):
        """73 GB, not 141."""
        model = self.load(tmp_path, "llama-3.1-70b", quant_algo="FP8", exclude_modules=["lm_head"])

        assert stored_weight_bytes(model) == pytest.approx(73e9, rel=0.01)
        assert model.compute_precision == "fp8"

    def test_layers_listed_one_by_one(self, tmp_path):
        """Half of the feed-forward layers in fp4, the other half in fp8; attention is not listed."""
        layers = {
            f"model.layers.{n}.mlp.{name}": {"quant_algo": "NVFP4" if n % 2 else "FP8"}
            for n in range(32)
            for name in ("gate_proj", "up_proj", "down_proj")
        }
        model = self.load(
            tmp_path, "llama-3.1-8b", quant_algo="MIXED_PRECISION", quantized_layers=layers
        )

        assert model.weights.dense == pytest.approx((1 + 4.5 / 8) / 2)
        assert model.weights.attention == 2.0

    def test_a_file_that_cannot_be_read(self, tmp_path):
        """The weights are quantized in some way, and nothing says how: refused, with the place."""
        (tmp_path / "config.json").write_text((CONFIGS / "llama-3.1-8b.json").read_text())
        (tmp_path / "hf_quant_config.json").write_text("{")

        with pytest.raises(ModelDescriptionError, match=r"hf_quant_config\.json"):
            load_model(tmp_path)
