"""llama.cpp's server. Source: tools/server of ggml-org/llama.cpp.

Needs `--metrics`. Counters have no labels, no start time and only six significant digits: beyond a
million tokens they move in steps. Prompts are counted after processing, answers at their end, and
requests not at all.
"""

from exporter.inference.reading import Engine, ModelReading, Samples


COUNTERS = frozenset(
    {
        "llamacpp:n_decode_total",
        "llamacpp:prompt_tokens_cached_total",
        "llamacpp:prompt_tokens_total",
        "llamacpp:spec_decode_num_accepted_tokens_total",
        "llamacpp:spec_decode_num_draft_tokens_total",
        "llamacpp:spec_decode_num_drafts_total",
        "llamacpp:tokens_predicted_total",
    }
)
GAUGES = frozenset(
    {"llamacpp:n_tokens_max", "llamacpp:requests_deferred", "llamacpp:requests_processing"}
)


def read(samples: Samples) -> ModelReading:
    """Return llama.cpp's reading of its model."""
    return ModelReading(
        computed_tokens=samples.sum("llamacpp:prompt_tokens_total"),
        cached_tokens=samples.sum("llamacpp:prompt_tokens_cached_total"),
        generated_tokens=samples.sum("llamacpp:tokens_predicted_total"),
        passes=samples.sum("llamacpp:n_decode_total"),
        # A batch is computed in parts of `--ubatch-size`, each of which reads the weights.
        chunk_tokens=512,
        chunks_as_one=True,
        drafts=samples.sum("llamacpp:spec_decode_num_drafts_total"),
        draft_tokens=samples.sum("llamacpp:spec_decode_num_draft_tokens_total"),
        accepted_tokens=samples.sum("llamacpp:spec_decode_num_accepted_tokens_total"),
        longest_sequence=samples.sum("llamacpp:n_tokens_max"),
        running_requests=samples.sum("llamacpp:requests_processing"),
        waiting_requests=samples.sum("llamacpp:requests_deferred"),
    )


ENGINE = Engine(
    "llama_cpp",
    ("llamacpp:",),
    COUNTERS,
    GAUGES,
    read,
    ports=(8080,),
    title="llama.cpp (`llama-server`)",
    enable="`--metrics`",
    reports="prompt tokens once they are processed, generated tokens when requests end; no request counts, so it is scraped every second",
    longest_interval_seconds=1.0,
)
