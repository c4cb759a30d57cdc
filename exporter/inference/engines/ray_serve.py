"""vLLM behind Ray Serve LLM. Source: ray/llm; docs.ray.io, "Observability".

Ray's agent writes vLLM's names with its own prefix and without colons, and computes histogram sums
from bucket midpoints: counters are correct, lengths from sums are not.
"""

from exporter.inference.engines import vllm
from exporter.inference.reading import Engine


ENGINE = Engine(
    "ray_serve",
    ("vllm:",),
    vllm.COUNTERS,
    vllm.GAUGES,
    vllm.read,
    ports=(8080,),
    histograms=vllm.HISTOGRAMS,
    title="Ray Serve LLM (vLLM)",
    enable="`log_engine_metrics: true`; the address is the node's metrics agent (`--metrics-export-port`)",
    tells="as vLLM, with lengths from the buckets of its histograms alone",
    rank=1,
)
