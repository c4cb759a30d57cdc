"""LMDeploy. Source: lmdeploy/metrics/loggers.py of version 0.18.

Names are vLLM's with its own prefix. A whole prompt is counted at its first token, its cached part
when the request ends. The histogram of iterations has one entry per request, so it says nothing
about forward passes.
"""

from dataclasses import replace

from exporter.inference.engines import vllm
from exporter.inference.reading import Engine, ModelReading, Samples


_PREFIX, _THEIRS = "lmdeploy:", "vllm:"
_CACHED = "vllm:cached_tokens_total"
_HIT_RATE = "vllm:prefix_cache_hit_rate"


def rename(name: str) -> str:
    """Give a name vLLM's prefix."""
    return _THEIRS + name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else name


def read(samples: Samples) -> ModelReading:
    """Return LMDeploy's reading of one model."""
    reading = vllm.read(samples)
    cached, computed = samples.sum(_CACHED), reading.computed_tokens
    if cached is None and samples.mean(_HIT_RATE):
        computed = None  # an older version, which does not report how many were computed
    elif cached is not None and computed is not None:
        computed -= cached
    return replace(
        reading,
        computed_tokens=computed,
        cached_tokens=cached,
        passes=None,
        observed_passes=None,
    )


ENGINE = Engine(
    "lmdeploy",
    (_PREFIX,),
    vllm.COUNTERS | {_CACHED},
    vllm.GAUGES | {_HIT_RATE},
    read,
    ports=(23333,),
    histograms=vllm.HISTOGRAMS,
    title="LMDeploy",
    enable="`--enable-metrics`",
    tells="tokens while requests run, lengths and cache hits as they end; no forward passes",
    rename=rename,
)
