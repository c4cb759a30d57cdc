"""vLLM. Source: vllm/v1/metrics/loggers.py and stats.py; docs.vllm.ai, "Production Metrics".

Works best with versions that count prompt tokens by source. In older ones, cache hits come from the
hit counters, which count a blocked request again at each attempt.
"""

from exporter.inference.reading import (
    Engine,
    Finished,
    InFlight,
    ModelReading,
    Samples,
    number,
    positive_difference,
)


COUNTERS = frozenset(
    {
        "vllm:estimated_flops_per_gpu_total",
        "vllm:external_prefix_cache_hits_total",
        "vllm:generation_tokens_total",
        "vllm:gpu_prefix_cache_hits_total",  # the older name
        "vllm:iteration_tokens_total_count",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prompt_tokens_by_source_total",
        "vllm:prompt_tokens_cached_total",
        "vllm:prompt_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
        "vllm:spec_decode_num_draft_tokens_total",
        "vllm:spec_decode_num_drafts_total",
        "vllm:time_to_first_token_seconds_count",
    }
)
HISTOGRAMS = frozenset(
    {
        "vllm:request_generation_tokens",
        "vllm:request_prefill_kv_computed_tokens",
        "vllm:request_prompt_tokens",
    }
)
GAUGES = frozenset(
    {
        "vllm:cache_config_info",
        "vllm:gpu_cache_usage_perc",  # the older name
        "vllm:kv_cache_usage_perc",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
    }
)
_HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")


def read(samples: Samples) -> ModelReading:
    """Return vLLM's reading of one model, over all of its data-parallel engines."""
    cached, external = _cached(samples)
    # Ray's agent computes the sum of a histogram from bucket midpoints.
    ray = samples.label("vllm:generation_tokens_total", "SessionName") is not None
    passes = samples.sum("vllm:iteration_tokens_total_count")
    return ModelReading(
        computed_tokens=_computed(samples, (cached or 0.0) + (external or 0.0)),
        cached_tokens=cached,
        external_tokens=external,
        generated_tokens=samples.sum("vllm:generation_tokens_total"),
        prompts=samples.sum("vllm:time_to_first_token_seconds_count"),
        # Each replica of Ray Serve has one server; elsewhere several may share an engine.
        passes=passes if ray else None,
        observed_passes=None if ray else passes,
        ranks=max(1, len(samples.label_values("vllm:generation_tokens_total", "engine"))),
        drafts=samples.sum("vllm:spec_decode_num_drafts_total"),
        draft_tokens=samples.sum("vllm:spec_decode_num_draft_tokens_total"),
        accepted_tokens=samples.sum("vllm:spec_decode_num_accepted_tokens_total"),
        preemptions=samples.sum("vllm:num_preemptions_total"),
        # The counter exists and stays 0 if the estimate is off or vLLM cannot make one.
        engine_flop=samples.sum("vllm:estimated_flops_per_gpu_total")
        if samples.total("vllm:estimated_flops_per_gpu_total")
        else None,
        finished=_finished(samples, sums=not ray),
        in_flight=None if ray else _in_flight(samples),
        running_requests=samples.sum("vllm:num_requests_running"),
        waiting_requests=samples.sum("vllm:num_requests_waiting"),
        cache_usage_ratio=samples.mean("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        cache_used_tokens=_cache_used_tokens(samples),
        cache_data_type=samples.label("vllm:cache_config_info", "cache_dtype"),
    )


def _computed(samples: Samples, elsewhere: float) -> float | None:
    """Prompt tokens computed here. May be negative: hits are counted before their prompt ends."""
    computed = samples.sum("vllm:prompt_tokens_by_source_total", source="local_compute")
    if computed is not None:
        return computed
    prompt = samples.sum("vllm:prompt_tokens_total")
    if prompt is None:
        return None
    if samples.has("vllm:prompt_tokens_cached_total", *_HITS) and _block_size(samples) is not None:
        return prompt - elsewhere
    if samples.label("vllm:cache_config_info", "enable_prefix_caching") == "True":
        return None  # an unknown number of them was computed
    return None if samples.has(*_HITS) else prompt


def _cached(samples: Samples) -> tuple[float | None, float | None]:
    """Prompt tokens from the server's own cache, and from elsewhere."""
    local = samples.sum("vllm:prompt_tokens_by_source_total", source="local_cache_hit")
    external = samples.sum("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")
    if local is not None or external is not None:
        return local, external
    external = samples.sum("vllm:external_prefix_cache_hits_total")
    both = samples.sum("vllm:prompt_tokens_cached_total")
    if both is not None:
        return positive_difference(both, external), external
    size, hits = _block_size(samples), samples.sum(*_HITS)
    return (None if size is None or hits is None else hits * size), external


def _block_size(samples: Samples) -> float | None:
    """Tokens of one hit: 1, or the block size in versions that count blocks and report it."""
    if not any(list(samples.all(name, unit="blocks")) for name in _HITS):
        return 1.0
    return number(samples.label("vllm:cache_config_info", "block_size"))


def _finished(samples: Samples, *, sums: bool) -> Finished | None:
    requests = samples.sum("vllm:request_prompt_tokens_count")
    prompt_tokens = samples.sum("vllm:request_prompt_tokens_sum")
    if requests is None or prompt_tokens is None:
        return None
    return Finished(
        requests=requests,
        prompt_tokens=prompt_tokens if sums else None,
        answer_tokens=samples.sum("vllm:request_generation_tokens_sum") if sums else None,
        computed_tokens=samples.sum("vllm:request_prefill_kv_computed_tokens_sum"),
        prompts=samples.buckets("vllm:request_prompt_tokens"),
        answers=samples.buckets("vllm:request_generation_tokens"),
        computed=samples.buckets("vllm:request_prefill_kv_computed_tokens"),
    )


def _in_flight(samples: Samples) -> InFlight | None:
    """Requests started and not ended: the difference of two kinds of counters."""

    def left(all_of: str, ended: str, **labels: str) -> float | None:
        total, part = samples.total(all_of, **labels), samples.total(ended)
        return None if total is None or part is None else total - part

    requests = left("vllm:time_to_first_token_seconds_count", "vllm:request_prompt_tokens_count")
    if requests is None:
        return None
    return InFlight(
        requests,
        left("vllm:prompt_tokens_total", "vllm:request_prompt_tokens_sum") or 0.0,
        left("vllm:generation_tokens_total", "vllm:request_generation_tokens_sum") or 0.0,
        left(
            "vllm:prompt_tokens_by_source_total",
            "vllm:request_prefill_kv_computed_tokens_sum",
            source="local_compute",
        ),
    )


def _cache_used_tokens(samples: Samples) -> float | None:
    """Used share times the capacity of each engine; the labels have the block count and size."""
    usage = samples.sum("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    size = number(samples.label("vllm:cache_config_info", "kv_cache_size_tokens"))
    if size is None:
        blocks = number(samples.label("vllm:cache_config_info", "num_gpu_blocks"))
        block = number(samples.label("vllm:cache_config_info", "block_size"))
        size = blocks * block if blocks is not None and block is not None else None
    return usage * size if usage is not None and size is not None else None


ENGINE = Engine(
    "vllm",
    ("vllm:",),
    COUNTERS,
    GAUGES,
    read,
    ports=(8000,),
    histograms=HISTOGRAMS,
    title="vLLM",
    enable="on by default; `--enable-mfu-metrics` adds vLLM's own estimate of FLOPs",
    reports="everything, while requests run",
)
