"""NVIDIA NIM for LLMs. Source: docs.nvidia.com/nim, "Observability".

Serves vLLM's names at /v1/metrics, in most versions without their prefix.
"""

from exporter.inference.engines import vllm
from exporter.inference.reading import Engine


_PREFIX = "vllm:"
_WANTED = frozenset(name.removeprefix(_PREFIX) for name in vllm.ENGINE.names)


def rename(name: str) -> str:
    """Give a name without a prefix vLLM's."""
    return _PREFIX + name if name in _WANTED else name


ENGINE = Engine(
    "nim",
    ("vllm:", "prompt_tokens_total", "generation_tokens_total", "num_requests_running"),
    vllm.COUNTERS,
    vllm.GAUGES,
    vllm.read,
    ports=(8000,),
    path="/v1/metrics",
    histograms=vllm.HISTOGRAMS,
    title="NVIDIA NIM",
    tells="as vLLM, as far as the version has its names",
    rename=rename,
    rank=2,
)
