"""SGLang. Source: python/sglang/srt/metrics/collector.py and docs.sglang.ai, "Production Metrics".

Needs `--enable-metrics`. Its own FLOP estimates (`--enable-mfu-metrics`) are not read: they charge
the weights to every token of a batch and know neither experts nor quantization.
"""

from collections.abc import Iterable

from exporter.inference.exposition import Sample
from exporter.inference.reading import Engine, ModelReading, Samples, positive_difference


COUNTERS = frozenset(
    {
        "sglang:cached_tokens_total",
        "sglang:cuda_graph_passes_total",
        "sglang:generation_tokens_total",
        "sglang:num_requests_total",
        "sglang:prompt_tokens_total",
        "sglang:realtime_tokens_total",
        "sglang:time_to_first_token_seconds_count",
    }
)
GAUGES = frozenset(
    {
        "sglang:decode_sum_seq_lens",
        "sglang:num_queue_reqs",
        "sglang:num_running_reqs",
        "sglang:num_used_tokens",
        "sglang:spec_accept_length",
        "sglang:token_usage",
    }
)
# Ranks of one scheduler group: with `--enable-metrics-for-all-schedulers` each of them repeats
# what the first one says.
_RANKS = ("pp_rank", "tp_rank", "moe_ep_rank")
# Label values that add up others: `total` beside device, host and storage.
_SUMS = frozenset({"total", "all"})


def deduplicate(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Keep of the tensor- and pipeline-parallel ranks the first one; data-parallel ones add up."""
    best: dict[tuple[object, ...], tuple[tuple[int, ...], Sample]] = {}
    for sample in samples:
        others = tuple(sorted(item for item in sample.labels.items() if item[0] not in _RANKS))
        rank = tuple(_rank(sample.labels.get(label)) for label in _RANKS)
        key = (sample.name, others)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, sample)
    return [sample for _rank_of, sample in best.values()]


def read(samples: Samples) -> ModelReading:
    """Return what SGLang says of one model."""
    prompt = samples.sum("sglang:prompt_tokens_total")
    answers = samples.sum("sglang:generation_tokens_total")
    finished = samples.sum("sglang:num_requests_total")
    first_tokens = samples.sum("sglang:time_to_first_token_seconds_count")
    cached = _cached(samples)
    computed, generated = positive_difference(prompt, cached), answers
    if samples.has("sglang:realtime_tokens_total"):
        # Told while requests run, not when they end; decode leaves out each first token.
        computed = samples.sum("sglang:realtime_tokens_total", mode="prefill_compute") or 0.0
        cached = samples.sum("sglang:realtime_tokens_total", mode="prefill_cache") or 0.0
        decoded = samples.sum("sglang:realtime_tokens_total", mode="decode") or 0.0
        generated = decoded + (first_tokens or 0.0)
    running = samples.sum("sglang:num_running_reqs")
    lengths = samples.sum("sglang:decode_sum_seq_lens")
    acceptance = samples.mean("sglang:spec_accept_length")
    return ModelReading(
        computed_tokens=computed,
        cached_tokens=cached,
        generated_tokens=generated,
        prompts=first_tokens,
        prefill_passes=_passes(samples, "prefill"),
        decode_passes=_passes(samples, "decode"),
        finished_requests=finished,
        finished_prompt_tokens=prompt,
        finished_answer_tokens=answers,
        lifetime_prompt_length=samples.lifetime_mean(
            "sglang:prompt_tokens_total", "sglang:num_requests_total"
        ),
        lifetime_answer_length=samples.lifetime_mean(
            "sglang:generation_tokens_total", "sglang:num_requests_total"
        ),
        running_requests=running,
        waiting_requests=samples.sum("sglang:num_queue_reqs"),
        cache_usage_ratio=samples.mean("sglang:token_usage"),
        cache_used_tokens=samples.sum("sglang:num_used_tokens"),
        decode_context=lengths / running if lengths and running else None,
        acceptance_length=acceptance if acceptance and acceptance >= 1 else None,
    )


def _passes(samples: Samples, phase: str) -> float | None:
    """Forward passes with and without a CUDA graph; those of prefill only newer versions count."""
    modes = [
        sample.value
        for sample in samples.all("sglang:cuda_graph_passes_total")
        if sample.labels.get("mode", "").startswith(phase)
    ]
    return sum(modes) if modes else None


def _cached(samples: Samples) -> float | None:
    if not samples.has("sglang:cached_tokens_total"):
        return None
    return sum(
        sample.value
        for sample in samples.all("sglang:cached_tokens_total")
        if sample.labels.get("cache_source") not in _SUMS
    )


def _rank(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else -1


ENGINE = Engine(
    "sglang", ("sglang:",), COUNTERS, GAUGES, read, ports=(30000,), deduplicate=deduplicate
)
