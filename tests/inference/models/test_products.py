"""The matrix products of models, worked by hand from their descriptions."""

from pathlib import Path

from exporter.inference.models import MatrixProduct, matrix_products
from exporter.inference.models.files import load_model


CONFIGS = Path(__file__).parent / "configs"


def sizes(name: str, tensor_parallel: int = 1) -> dict[str, tuple[int, int]]:
    model = load_model(CONFIGS / f"{name}.json")
    return {each.part: (each.n, each.k) for each in matrix_products(model, tensor_parallel)}


def test_a_dense_model() -> None:
    """Llama 3.1 8B: 32 query and 8 key-value heads of 128; gate and up are one product of 2 x 14336."""
    assert sizes("llama-3.1-8b") == {
        "query_key_value": (6144, 4096),
        "output": (4096, 4096),
        "dense_up": (28672, 4096),
        "dense_down": (4096, 14336),
        "head": (128256, 4096),
    }


def test_on_four_gpus() -> None:
    """What widens is cut along its columns, what narrows along its rows."""
    assert sizes("llama-3.1-8b", 4) == {
        "query_key_value": (1536, 4096),
        "output": (4096, 1024),
        "dense_up": (7168, 4096),
        "dense_down": (4096, 3584),
        "head": (32064, 4096),
    }


def test_key_value_heads_are_replicated_where_there_are_too_few() -> None:
    """On 16 GPUs each has 2 of 32 query heads, and a whole one of 8 key and of 8 value heads."""
    assert sizes("llama-3.1-8b", 16)["query_key_value"] == ((2 + 1 + 1) * 128, 4096)


def test_experts() -> None:
    """Qwen3 30B-A3B: experts of 768, no shared one; 32 query and 4 key-value heads of 128."""
    assert sizes("qwen3-30b-a3b") == {
        "query_key_value": (5120, 2048),
        "output": (2048, 4096),
        "expert_up": (1536, 2048),
        "expert_down": (2048, 768),
        "head": (151936, 2048),
    }


def test_latent_attention() -> None:
    """DeepSeek-V3: queries through 1536, keys and values through 512 and 64 rotary; dense and expert layers."""
    found = sizes("deepseek-v3")

    assert found["query_down"] == (1536, 7168)
    assert found["query_up"] == (128 * 192, 1536)
    assert found["latent_down"] == (576, 7168)
    assert found["latent_up"] == (128 * 256, 512)
    assert found["output"] == (7168, 128 * 128)
    assert found["dense_up"] == (2 * 18432, 7168)
    assert found["expert_down"] == (7168, 2048)


def test_the_head_keeps_the_stored_precision() -> None:
    """A model in fp8 computes its layers in fp8 and its logits in bf16."""
    products = matrix_products(load_model(CONFIGS / "deepseek-v3.json"))

    assert {each.precision for each in products if each.part != "head"} == {"fp8"}
    assert products[-1] == MatrixProduct("head", "bf16", 129280, 7168)
