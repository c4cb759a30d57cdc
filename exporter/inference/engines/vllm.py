"""vLLM. Source: vllm/v1/metrics/loggers.py and docs.vllm.ai, "Production Metrics" and "Metrics".

Best with versions that count prompt tokens by where they came from. Before, cache hits are taken
from `prefix_cache_hits_total`, which counts a blocked request again at each try.
"""

from exporter.inference.reading import Engine, ModelReading, Samples, positive_difference


COUNTERS = frozenset(
    {
        "vllm:estimated_flops_per_gpu_total",
        "vllm:generation_tokens_total",
        "vllm:iteration_tokens_total_count",
        "vllm:prefix_cache_hits_total",
        "vllm:prompt_tokens_by_source_total",
        "vllm:prompt_tokens_cached_total",
        "vllm:prompt_tokens_total",
        "vllm:request_generation_tokens_count",
        "vllm:request_generation_tokens_sum",
        "vllm:request_prompt_tokens_count",
        "vllm:request_prompt_tokens_sum",
        "vllm:spec_decode_num_accepted_tokens_total",
        "vllm:spec_decode_num_draft_tokens_total",
        "vllm:spec_decode_num_drafts_total",
        "vllm:time_to_first_token_seconds_count",
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


def read(samples: Samples) -> ModelReading:
    """Return what vLLM says of one model, over all of its data-parallel engines."""
    prompt = samples.sum("vllm:prompt_tokens_total")
    cached = _cached(samples)
    computed = samples.sum("vllm:prompt_tokens_by_source_total", source="local_compute")
    return ModelReading(
        computed_tokens=positive_difference(prompt, cached) if computed is None else computed,
        cached_tokens=cached,
        generated_tokens=samples.sum("vllm:generation_tokens_total"),
        prompts=samples.sum("vllm:time_to_first_token_seconds_count"),
        passes=samples.sum("vllm:iteration_tokens_total_count"),
        drafts=samples.sum("vllm:spec_decode_num_drafts_total"),
        draft_tokens=samples.sum("vllm:spec_decode_num_draft_tokens_total"),
        accepted_tokens=samples.sum("vllm:spec_decode_num_accepted_tokens_total"),
        engine_flops=samples.sum("vllm:estimated_flops_per_gpu_total"),
        finished_requests=samples.sum("vllm:request_prompt_tokens_count"),
        finished_prompt_tokens=samples.sum("vllm:request_prompt_tokens_sum"),
        finished_answer_tokens=samples.sum("vllm:request_generation_tokens_sum"),
        lifetime_prompt_length=samples.lifetime_mean(
            "vllm:request_prompt_tokens_sum", "vllm:request_prompt_tokens_count"
        ),
        lifetime_answer_length=samples.lifetime_mean(
            "vllm:request_generation_tokens_sum", "vllm:request_generation_tokens_count"
        ),
        running_requests=samples.sum("vllm:num_requests_running"),
        waiting_requests=samples.sum("vllm:num_requests_waiting"),
        cache_usage_ratio=samples.mean("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        cache_used_tokens=_cache_used_tokens(samples),
        cache_data_type=samples.label("vllm:cache_config_info", "cache_dtype"),
    )


def _cached(samples: Samples) -> float | None:
    by_source = [
        samples.sum("vllm:prompt_tokens_by_source_total", source=source)
        for source in ("local_cache_hit", "external_kv_transfer")
    ]
    if any(value is not None for value in by_source):
        return sum(value or 0.0 for value in by_source)
    return samples.sum("vllm:prompt_tokens_cached_total", "vllm:prefix_cache_hits_total")


def _cache_used_tokens(samples: Samples) -> float | None:
    """Used share times the capacity of each engine; blocks and their size stand in the labels."""
    usage = samples.sum("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    size = _number(samples.label("vllm:cache_config_info", "kv_cache_size_tokens"))
    if size is None:
        blocks = _number(samples.label("vllm:cache_config_info", "num_gpu_blocks"))
        block = _number(samples.label("vllm:cache_config_info", "block_size"))
        size = blocks * block if blocks is not None and block is not None else None
    return usage * size if usage is not None and size is not None else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


ENGINE = Engine("vllm", ("vllm:",), COUNTERS, GAUGES, read, ports=(8000,))
