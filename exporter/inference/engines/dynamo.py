"""NVIDIA Dynamo: exposes the metrics of the engine inside a worker next to its own.

Source: docs.nvidia.com/dynamo, "Metrics". Each worker has its own address, also in a prefill/decode
split.
"""

from collections.abc import Iterable
from dataclasses import replace

from exporter.inference.engines import sglang, tensorrt_llm, vllm
from exporter.inference.exposition import Sample
from exporter.inference.reading import Engine, ModelReading, Samples


_INNER = (vllm.ENGINE, sglang.ENGINE, tensorrt_llm.ENGINE)
_ROLES = {"prefill": "prefill", "decode": "decode"}


def read(samples: Samples) -> ModelReading:
    """Return the reading of the engine inside the worker."""
    for engine in _INNER:
        if any(samples.has(name) for name in engine.names):
            said = engine.read(samples)
            component = samples.label_values_of("dynamo_component")
            role = _ROLES.get(next(iter(component), "")) if len(component) == 1 else None
            # A worker is one process.
            return replace(
                said,
                role=said.role or role,
                passes=said.passes if said.passes is not None else said.observed_passes,
                observed_passes=None,
            )
    return ModelReading()


def deduplicate(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Deduplicate like the engine inside."""
    return sglang.deduplicate(samples)


ENGINE = Engine(
    "dynamo",
    tuple(prefix for engine in _INNER for prefix in engine.prefixes),
    frozenset().union(*(engine.counters for engine in _INNER)),
    frozenset().union(*(engine.gauges for engine in _INNER)),
    read,
    ports=(8081,),
    histograms=frozenset().union(*(engine.histograms for engine in _INNER)),
    title="NVIDIA Dynamo worker",
    enable="`DYN_SYSTEM_PORT` (8081)",
    tells="what the engine inside tells",
    marker="dynamo_",
    rank=-2,
    deduplicate=deduplicate,
)
