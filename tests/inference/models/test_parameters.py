"""Parameter counts against those that the models' authors publish."""

from pathlib import Path

import pytest

from exporter.inference.models import count_parameters
from exporter.inference.models.files import load_model
from tests.inference.models.shapes import MIXTURE, TINY


CONFIGS = Path(__file__).parent / "configs"

# Totals in the words of their publication, in billions: model cards and technical reports.
PUBLISHED = {
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
    "llama-3.1-405b": 405.9,
    "llama-3.2-1b": 1.24,
    "llama-4-scout": 108.0,  # 109 with the vision tower
    "mistral-7b": 7.24,
    "mixtral-8x7b": 46.7,
    "qwen1.5-moe-a2.7b": 14.3,
    "qwen2.5-7b": 7.61,
    "qwen2.5-72b": 72.7,
    "qwen3-8b": 8.2,
    "qwen3-30b-a3b": 30.5,
    "qwen3-235b-a22b": 235.0,
    "deepseek-v2-lite": 15.7,
    "deepseek-v3": 671.0,
    "deepseek-v3.2": 671.0,
    "kimi-k2": 1030.0,
    "gemma-2-9b": 9.24,
    "gemma-2-27b": 27.2,
    "gemma-3-27b": 27.0,  # 27.4 with the vision tower
    "gpt-oss-20b": 20.91,
    "gpt-oss-120b": 116.83,
    "phi-3-mini": 3.8,
    "falcon-7b": 6.92,
    "gpt2-xl": 1.557,
}
# Sizes of the published weight files, parameter by parameter.
STORED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gemma-2-27b": 27_227_128_320,
    "deepseek-v3": 671_026_419_200,
}
# Active per token: Mixtral and Qwen count the embedding, GPT-OSS and Kimi leave it out.
ACTIVE = {"mixtral-8x7b": 12.9, "qwen3-235b-a22b": 22.0, "qwen1.5-moe-a2.7b": 2.7}
ACTIVE_WITHOUT_EMBEDDING = {"gpt-oss-120b": 5.13, "gpt-oss-20b": 3.61, "deepseek-v3": 37.0}


class TestPublishedCounts:
    @pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
    def test_totals_are_within_one_percent(self, name, billions):
        """The total counted from the config is the published one within 1 %."""
        counts = count_parameters(load_model(CONFIGS / f"{name}.json"))

        assert counts.total == pytest.approx(billions * 1e9, rel=0.01)

    @pytest.mark.parametrize(("name", "parameters"), STORED.items())
    def test_totals_match_the_weight_files_exactly(self, name, parameters):
        """Where the weight files' size is known, no parameter is missing or extra."""
        counts = count_parameters(load_model(CONFIGS / f"{name}.json"))

        assert counts.total == parameters

    @pytest.mark.parametrize(("name", "billions"), ACTIVE.items())
    def test_active_parameters_are_within_one_percent(self, name, billions):
        """Parameters active per token are the published ones within 1 %."""
        counts = count_parameters(load_model(CONFIGS / f"{name}.json"))

        assert counts.active == pytest.approx(billions * 1e9, rel=0.01)

    @pytest.mark.parametrize(("name", "billions"), ACTIVE_WITHOUT_EMBEDDING.items())
    def test_active_parameters_without_the_embedding(self, name, billions):
        """The convention that leaves the embedding out is matched too, within 1.1 %."""
        counts = count_parameters(load_model(CONFIGS / f"{name}.json"))

        embedding = 0 if counts.tied_embeddings else counts.embedding
        assert counts.active - embedding == pytest.approx(billions * 1e9, rel=0.011)


class TestByHand:
    def test_a_dense_model(self):
        """Embedding 80, two layers of 576 and two norms of 8, final norm 8, head 80."""
        counts = count_parameters(TINY)

        assert counts.matrices_per_token == 2 * 576
        assert counts.total == 80 + 2 * (576 + 16) + 8 + 80
        assert counts.active == counts.total

    def test_a_mixture_of_experts(self):
        """Four experts are stored, two are met: 192 + 2·120 + router 32 = 464."""
        counts = count_parameters(MIXTURE)

        assert counts.matrices_per_token == 464
        assert counts.experts == 4 * 120
        assert counts.total - counts.active == 2 * 120
