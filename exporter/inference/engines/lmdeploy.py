"""LMDeploy. Source: lmdeploy/metrics/loggers.py.

Names as vLLM's with its own prefix. Its histogram of iterations has one entry per request, so it
says nothing of forward passes.
"""

from dataclasses import replace

from exporter.inference.engines import vllm
from exporter.inference.reading import Engine, ModelReading, Samples


_PREFIX, _THEIRS = "lmdeploy:", "vllm:"


def rename(name: str) -> str:
    """Give a name vLLM's prefix."""
    return _THEIRS + name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else name


def read(samples: Samples) -> ModelReading:
    """Return what LMDeploy says of one model."""
    return replace(vllm.read(samples), passes=None, observed_passes=None)


ENGINE = Engine(
    "lmdeploy",
    (_PREFIX,),
    vllm.COUNTERS,
    vllm.GAUGES,
    read,
    ports=(23333,),
    histograms=vllm.HISTOGRAMS,
    title="LMDeploy",
    enable="`--enable-metrics`",
    tells="tokens while requests run, lengths as they end; no forward passes",
    rename=rename,
)
