"""Text Generation Inference. Source: docs/source/reference/metrics.md of the project.

Prompts are counted when a request is accepted, before it waits in the queue; answers when it ends.
Prompt tokens include those that a prefix cache saved, which TGI does not report separately. It
reports neither the model's name nor the KV cache usage.
"""

from exporter.inference.reading import Engine, Finished, InFlight, ModelReading, Samples


COUNTERS = frozenset(
    {
        "tgi_batch_inference_count",
        "tgi_batch_inference_count_total",
        "tgi_request_skipped_tokens_sum",
    }
)
HISTOGRAMS = frozenset({"tgi_request_generated_tokens", "tgi_request_input_length"})
GAUGES = frozenset({"tgi_batch_current_size", "tgi_queue_size"})


def read(samples: Samples) -> ModelReading:
    """Return TGI's reading of its model."""
    prompt = samples.sum("tgi_request_input_length_sum")
    accepted = samples.sum("tgi_request_input_length_count")
    answers = samples.sum("tgi_request_generated_tokens_sum")
    finished = samples.sum("tgi_request_generated_tokens_count")
    return ModelReading(
        computed_tokens=prompt,
        generated_tokens=answers,
        prompts=finished,
        prefill_passes=_passes(samples, "prefill"),
        decode_passes=_passes(samples, "decode"),
        # Prompts of the requests accepted in the window, and answers of those that ended in it.
        finished=Finished(
            requests=finished or 0.0,
            accepted=accepted,
            prompt_tokens=prompt or 0.0,
            answer_tokens=answers or 0.0,
            prompts=samples.buckets("tgi_request_input_length"),
            answers=samples.buckets("tgi_request_generated_tokens"),
        )
        if accepted is not None
        else None,
        # Accepted requests may still wait: their work is counted together with their prompts.
        in_flight=InFlight(0.0, 0.0, 0.0),
        running_requests=samples.sum("tgi_batch_current_size"),
        waiting_requests=samples.sum("tgi_queue_size"),
        acceptance_length=_acceptance_length(samples, answers),
    )


def _passes(samples: Samples, method: str) -> float | None:
    return samples.sum(
        "tgi_batch_inference_count", "tgi_batch_inference_count_total", method=method
    )


def _acceptance_length(samples: Samples, answers: float | None) -> float | None:
    """Tokens per pass: correctly speculated tokens needed no pass of their own."""
    skipped = samples.sum("tgi_request_skipped_tokens_sum")
    if not skipped or not answers or skipped >= answers:
        return None
    return answers / (answers - skipped)


ENGINE = Engine(
    "tgi",
    ("tgi_",),
    COUNTERS,
    GAUGES,
    read,
    ports=(3000, 8080),
    histograms=HISTOGRAMS,
    title="Text Generation Inference",
    reports="prompt tokens when requests are accepted, generated tokens when they end; no cache hits",
    silent_at_start=True,
)
