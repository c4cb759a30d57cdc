"""GEMMs in the shapes of the served model, from an engine's model to the exposition, with the real worker."""

import json
from pathlib import Path

import pytest

from flopwatch.processor import read_processor
from tests.inference.engines.server import exposition, serving, text


pytest.importorskip("torch")

# 2 query heads and 1 key-value head of 64 on 128 dimensions: 256 columns of query, key and value.
MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 500,
    "torch_dtype": "bfloat16",
}
PRODUCTS = {
    "gemm_bf16_256x128",
    "gemm_bf16_128x128",
    "gemm_bf16_384x128",
    "gemm_bf16_128x192",
    "gemm_bf16_500x128",
}
RUNS, COVERAGE = "flopwatch_probe_runs_total", "flopwatch_probe_coverage_ratio"


@pytest.mark.timeout(300)
def test_the_products_of_the_served_model_are_probed(start_on_cpu, tmp_path: Path) -> None:
    """Five products in bf16, each by name with runs of its own, and counted as covered."""
    if "bf16" not in read_processor().native_precisions:
        pytest.skip("this processor has no bf16 of its own")
    model = tmp_path / "config.json"
    model.write_text(json.dumps(MODEL))
    with serving(text(exposition("vllm-current"))) as engine:
        daemon = start_on_cpu(
            config=(
                "probes: {shapes: auto, interval: 1s, budget: 200ms, kernels: [gemm_bf16], pause_file: null,"
                " hold_off: 0s}\n"
                f"workloads: [{{name: chat, engine: vllm, url: '{engine.url}', interval: 1s, gpus: [cpu0], "
                f"model: {model}}}]\n"
            )
        )
        scrape = daemon.wait_until(
            lambda scrape: (
                {
                    dict(labels)["kernel"]
                    for labels in scrape.series(RUNS)
                    if "x" in dict(labels)["kernel"]
                }
                == PRODUCTS
                and scrape.has(COVERAGE)
            ),
            120,
        )
        covered = daemon.wait_until(lambda scrape: scrape.value(COVERAGE) > 0, 120)

    assert not scrape.total(RUNS, outcome="error")
    assert {dict(labels)["precision"] for labels in covered.series("flopwatch_probe_flops")} <= {
        "bf16"
    }
