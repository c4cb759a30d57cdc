"""TensorRT-LLM. Source: tensorrt_llm/metrics/collector.py; served at /prometheus/metrics.

Needs `return_perf_metrics: true` for tokens and `enable_iter_perf_stats: true` for the rest in the
extra LLM API options. Tokens are counted when a request ends. Version 1.1 exposes latencies only,
and no tokens.
"""

from exporter.inference.reading import (
    Engine,
    Finished,
    InFlight,
    ModelReading,
    Samples,
    positive_difference,
    positive_integer,
)


COUNTERS = frozenset(
    {
        "trtllm_generation_tokens_total",
        "trtllm_prefill_batch_tokens_count",
        "trtllm_prompt_cached_tokens_total",
        "trtllm_prompt_tokens_total",
        "trtllm_request_success_total",
        "trtllm_spec_decode_num_accepted_tokens_total",
        "trtllm_spec_decode_num_draft_tokens_total",
    }
)
GAUGES = frozenset(
    {
        "trtllm_avg_decoded_tokens_per_iter",
        "trtllm_kv_cache_config_info",
        "trtllm_kv_cache_tokens_per_block",
        "trtllm_kv_cache_used_blocks",
        "trtllm_kv_cache_utilization",
        "trtllm_model_config_info",
        "trtllm_num_generation_requests",
        "trtllm_num_requests_running",
        "trtllm_num_requests_waiting",
        "trtllm_parallel_config_info",
    }
)
# Values of `quantization`, in lower case, and the precision of the matrix products.
_PRECISIONS = {
    "fp8": "fp8",
    "fp8_pb_wo": "fp8",
    "fp8_block_scales": "fp8",
    "nvfp4": "fp4",
    "w8a8_sq_per_channel": "int8",
    "w4a8_awq": "fp8",
}


def read(samples: Samples) -> ModelReading:
    """Return TensorRT-LLM's reading of its model."""
    prompt = samples.sum("trtllm_prompt_tokens_total")
    cached = samples.sum("trtllm_prompt_cached_tokens_total")
    answers = samples.sum("trtllm_generation_tokens_total")
    requests = samples.sum("trtllm_request_success_total")
    blocks = samples.sum("trtllm_kv_cache_used_blocks")
    block = samples.mean("trtllm_kv_cache_tokens_per_block")
    acceptance = samples.mean("trtllm_avg_decoded_tokens_per_iter")
    quantization = samples.label("trtllm_model_config_info", "quantization") or ""
    parallel = "trtllm_parallel_config_info"
    return ModelReading(
        computed_tokens=positive_difference(prompt, cached),
        cached_tokens=cached,
        generated_tokens=answers,
        prompts=requests,
        prefill_passes=samples.sum("trtllm_prefill_batch_tokens_count"),
        draft_tokens=samples.sum("trtllm_spec_decode_num_draft_tokens_total"),
        accepted_tokens=samples.sum("trtllm_spec_decode_num_accepted_tokens_total"),
        finished=Finished(
            requests, prompt or 0.0, answers or 0.0, positive_difference(prompt, cached)
        )
        if requests is not None
        else None,
        # Everything is counted when a request ends.
        in_flight=InFlight(0.0, 0.0, 0.0),
        running_requests=samples.sum(
            "trtllm_num_generation_requests", "trtllm_num_requests_running"
        ),
        waiting_requests=samples.sum("trtllm_num_requests_waiting"),
        cache_usage_ratio=samples.mean("trtllm_kv_cache_utilization"),
        cache_used_tokens=blocks * block if blocks is not None and block else None,
        acceptance_length=acceptance if acceptance and acceptance >= 1 else None,
        cache_data_type=samples.label(
            "trtllm_kv_cache_config_info", "cache_dtype", "dtype", "kv_cache_dtype"
        ),
        precision=_PRECISIONS.get(quantization.lower().rpartition(".")[2]),
        tensor_parallel=positive_integer(
            samples.label(parallel, "tensor_parallel_size", "tp_size")
        ),
        pipeline_parallel=positive_integer(
            samples.label(parallel, "pipeline_parallel_size", "pp_size")
        ),
        gpus=positive_integer(samples.label(parallel, "gpu_count")),
    )


ENGINE = Engine(
    "tensorrt_llm",
    ("trtllm_",),
    COUNTERS,
    GAUGES,
    read,
    ports=(8000,),
    path="/prometheus/metrics",
    title="TensorRT-LLM (`trtllm-serve`)",
    enable="`return_perf_metrics: true` and `enable_iter_perf_stats: true` in the extra LLM API options",
    reports="tokens when requests end",
)
