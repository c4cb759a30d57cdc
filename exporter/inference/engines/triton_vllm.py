"""Triton Inference Server with the vLLM backend. Source: github.com/triton-inference-server/vllm_backend.

It exposes some of vLLM's metrics next to its own. Cache hits are not among them, and vLLM caches
prefixes by default: the number of computed prompt tokens is not known.
"""

from dataclasses import replace

from exporter.inference.engines import vllm
from exporter.inference.reading import Engine, ModelReading, Samples


def read(samples: Samples) -> ModelReading:
    """Return vLLM's reading of one model through Triton."""
    said = vllm.read(samples)
    if said.cached_tokens is None and said.external_tokens is None:
        said = replace(said, computed_tokens=None)
    # One process, whatever start time the exposition shows.
    return replace(said, passes=said.observed_passes, observed_passes=None)


ENGINE = Engine(
    "triton_vllm",
    ("vllm:",),
    vllm.COUNTERS,
    vllm.GAUGES,
    read,
    ports=(8002,),
    histograms=vllm.HISTOGRAMS,
    title="Triton, vLLM backend",
    enable='`REPORT_CUSTOM_METRICS: "yes"` in the model\'s config.pbtxt',
    tells="answers; of prompts not how many tokens were computed, so no prefill FLOPs, bytes and MFU",
    marker="nv_",
    rank=-1,
)
