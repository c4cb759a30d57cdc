"""Text Generation Inference. Source: docs/source/reference/metrics.md of the project.

Tokens are counted when a request ends; prompt tokens include those that a prefix cache saved,
which TGI does not tell apart. It names no model and no use of the KV cache.
"""

from exporter.inference.reading import Engine, ModelReading, Samples


COUNTERS = frozenset(
    {
        "tgi_batch_inference_count",
        "tgi_batch_inference_count_total",
        "tgi_request_generated_tokens_count",
        "tgi_request_generated_tokens_sum",
        "tgi_request_input_length_count",
        "tgi_request_input_length_sum",
        "tgi_request_skipped_tokens_sum",
    }
)
GAUGES = frozenset({"tgi_batch_current_size", "tgi_queue_size"})


def read(samples: Samples) -> ModelReading:
    """Return what TGI says of its model."""
    prompt = samples.sum("tgi_request_input_length_sum")
    answers = samples.sum("tgi_request_generated_tokens_sum")
    finished = samples.sum("tgi_request_generated_tokens_count")
    return ModelReading(
        computed_tokens=prompt,
        generated_tokens=answers,
        prompts=finished,
        prefill_passes=_passes(samples, "prefill"),
        decode_passes=_passes(samples, "decode"),
        finished_requests=finished,
        finished_prompt_tokens=prompt,
        finished_answer_tokens=answers,
        lifetime_prompt_length=samples.lifetime_mean(
            "tgi_request_input_length_sum", "tgi_request_input_length_count"
        ),
        lifetime_answer_length=samples.lifetime_mean(
            "tgi_request_generated_tokens_sum", "tgi_request_generated_tokens_count"
        ),
        running_requests=samples.sum("tgi_batch_current_size"),
        waiting_requests=samples.sum("tgi_queue_size"),
        acceptance_length=_acceptance_length(samples, answers),
    )


def _passes(samples: Samples, method: str) -> float | None:
    return samples.sum(
        "tgi_batch_inference_count", "tgi_batch_inference_count_total", method=method
    )


def _acceptance_length(samples: Samples, answers: float | None) -> float | None:
    """Tokens per pass: those that speculation guessed right needed no pass of their own."""
    skipped = samples.sum("tgi_request_skipped_tokens_sum")
    if not skipped or not answers or skipped >= answers:
        return None
    return answers / (answers - skipped)


ENGINE = Engine("tgi", ("tgi_",), COUNTERS, GAUGES, read, ports=(3000, 8080), silent_at_start=True)
