"""Engines that expose another engine's metrics: NIM, Ray Serve, Triton, LMDeploy and Dynamo."""

from dataclasses import replace

from exporter.inference.engines import sglang, tensorrt_llm, vllm
from exporter.inference.reading import Engine, ModelReading, Samples


_VLLM_PREFIX = "vllm:"
_VLLM_NAMES = frozenset(name.removeprefix(_VLLM_PREFIX) for name in vllm.ENGINE.names)
_LMDEPLOY_PREFIX = "lmdeploy:"
_LMDEPLOY_CACHED = "vllm:cached_tokens_total"
_LMDEPLOY_HIT_RATE = "vllm:prefix_cache_hit_rate"
_DYNAMO_INNER = (vllm.ENGINE, sglang.ENGINE, tensorrt_llm.ENGINE)
_DYNAMO_ROLES = {"prefill": "prefill", "decode": "decode"}


def _prefixed(name: str) -> str:
    """Give a name without a prefix vLLM's."""
    return _VLLM_PREFIX + name if name in _VLLM_NAMES else name


# NVIDIA NIM for LLMs. Source: docs.nvidia.com/nim, "Observability". Serves vLLM's names, in most
# versions without their prefix.
NIM = replace(
    vllm.ENGINE,
    name="nim",
    prefixes=("vllm:", "prompt_tokens_total", "generation_tokens_total", "num_requests_running"),
    path="/v1/metrics",
    title="NVIDIA NIM",
    enable="on by default",
    reports="the same as vLLM, as far as the version exposes it",
    rename=_prefixed,
    rank=2,
)

# vLLM behind Ray Serve LLM. Source: ray/llm; docs.ray.io, "Observability". Ray's agent writes
# vLLM's names with its own prefix and without colons, and computes histogram sums from bucket
# midpoints: counters are correct, lengths from sums are not.
RAY_SERVE = replace(
    vllm.ENGINE,
    name="ray_serve",
    ports=(8080,),
    title="Ray Serve LLM (vLLM)",
    enable="`log_engine_metrics: true`; the address is the node's metrics agent (`--metrics-export-port`)",
    reports="the same as vLLM; lengths only from histogram buckets",
    rank=1,
)


def _read_triton(samples: Samples) -> ModelReading:
    """Return vLLM's reading of one model through Triton."""
    reading = vllm.read(samples)
    if reading.cached_tokens is None and reading.external_tokens is None:
        reading = replace(reading, computed_tokens=None)
    # One process, whatever start time the exposition shows.
    return replace(reading, passes=reading.observed_passes, observed_passes=None)


# Triton Inference Server. Source: github.com/triton-inference-server/vllm_backend. It exposes some
# of vLLM's metrics next to its own. Cache hits are not among them, and vLLM caches prefixes by
# default: the number of computed prompt tokens is not known.
TRITON_VLLM = replace(
    vllm.ENGINE,
    name="triton_vllm",
    read=_read_triton,
    ports=(8002,),
    title="Triton, vLLM backend",
    enable='`REPORT_CUSTOM_METRICS: "yes"` in the model\'s config.pbtxt',
    reports="generated tokens; not how many prompt tokens were computed, so no prefill FLOPs, bytes or MFU",
    marker="nv_",
    rank=-1,
)


def _lmdeploy_name(name: str) -> str:
    """Give a name vLLM's prefix."""
    if name.startswith(_LMDEPLOY_PREFIX):
        return _VLLM_PREFIX + name.removeprefix(_LMDEPLOY_PREFIX)
    return name


def _read_lmdeploy(samples: Samples) -> ModelReading:
    """Return LMDeploy's reading of one model."""
    reading = vllm.read(samples)
    cached, computed = samples.sum(_LMDEPLOY_CACHED), reading.computed_tokens
    if cached is None and samples.mean(_LMDEPLOY_HIT_RATE):
        computed = None  # an older version, which does not report how many were computed
    elif cached is not None and computed is not None:
        computed -= cached
    return replace(
        reading, computed_tokens=computed, cached_tokens=cached, passes=None, observed_passes=None
    )


# LMDeploy. Source: lmdeploy/metrics/loggers.py of version 0.18. Names are vLLM's with its own
# prefix. A whole prompt is counted at its first token, its cached part when the request ends. The
# histogram of iterations has one entry per request, so it says nothing about forward passes.
LMDEPLOY = replace(
    vllm.ENGINE,
    name="lmdeploy",
    prefixes=(_LMDEPLOY_PREFIX,),
    counters=vllm.COUNTERS | {_LMDEPLOY_CACHED},
    gauges=vllm.GAUGES | {_LMDEPLOY_HIT_RATE},
    read=_read_lmdeploy,
    ports=(23333,),
    title="LMDeploy",
    enable="`--enable-metrics`",
    reports="tokens while requests run, lengths and cache hits when they end; no forward passes",
    rename=_lmdeploy_name,
)


def _read_dynamo(samples: Samples) -> ModelReading:
    """Return the reading of the engine inside the worker."""
    for engine in _DYNAMO_INNER:
        if samples.has(*engine.names):
            reading = engine.read(samples)
            component = samples.label_values_of("dynamo_component")
            role = _DYNAMO_ROLES.get(next(iter(component), "")) if len(component) == 1 else None
            # A worker is one process.
            passes = reading.observed_passes if reading.passes is None else reading.passes
            return replace(reading, role=reading.role or role, passes=passes, observed_passes=None)
    return ModelReading()


# NVIDIA Dynamo. Source: docs.nvidia.com/dynamo, "Metrics". A worker exposes the metrics of the
# engine inside it next to its own. Each worker has its own address, also in a prefill/decode split.
DYNAMO = Engine(
    "dynamo",
    tuple(prefix for engine in _DYNAMO_INNER for prefix in engine.prefixes),
    frozenset().union(*(engine.counters for engine in _DYNAMO_INNER)),
    frozenset().union(*(engine.gauges for engine in _DYNAMO_INNER)),
    _read_dynamo,
    ports=(8081,),
    histograms=frozenset().union(*(engine.histograms for engine in _DYNAMO_INNER)),
    title="NVIDIA Dynamo worker",
    enable="`DYN_SYSTEM_PORT` (8081)",
    reports="what the engine inside the worker reports",
    marker="dynamo_",
    rank=-2,
    deduplicate=sglang.deduplicate,
)
