"""SGLang. Source: python/sglang/srt/metrics/collector.py and docs.sglang.ai, "Production Metrics".

Needs `--enable-metrics`. Its own FLOP estimates (`--enable-mfu-metrics`) are not used: they charge
the weights to every token of a batch and ignore experts and quantization.
"""

from collections.abc import Iterable

from exporter.inference.reading import (
    Engine,
    Finished,
    InFlight,
    ModelReading,
    Sample,
    Samples,
    number,
    positive_difference,
)


COUNTERS = frozenset(
    {
        "sglang:cached_tokens_total",
        "sglang:cuda_graph_passes_total",
        "sglang:generation_tokens_total",
        "sglang:num_requests_total",
        "sglang:num_retracted_requests_total",
        "sglang:prefill_effective_tokens_total",
        "sglang:prompt_tokens_total",
        "sglang:realtime_tokens_total",
        "sglang:time_to_first_token_seconds_count",
    }
)
HISTOGRAMS = frozenset(
    {
        "sglang:generation_tokens_histogram",
        "sglang:prompt_tokens_histogram",
        "sglang:uncached_prompt_tokens_histogram",
    }
)
GAUGES = frozenset(
    {
        "sglang:num_queue_reqs",
        "sglang:num_running_reqs",
        "sglang:num_used_tokens",
        "sglang:spec_accept_length",
        "sglang:token_usage",
    }
)
# Ranks of one scheduler group: with `--enable-metrics-for-all-schedulers` each of them repeats the
# values of the first one.
_RANKS = ("pp_rank", "tp_rank", "moe_ep_rank")
# Label values that are sums of others: `total` next to device, host and storage.
_SUMS = frozenset({"total", "all"})
_ROLES = {"unified": "both", "null": "both", "prefill": "prefill", "decode": "decode"}


def deduplicate(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Keep only the first tensor- and pipeline-parallel rank; data-parallel ranks add up.

    With priority scheduling a gauge has one series per priority, and one without for the sum.
    """
    best: dict[tuple[object, ...], tuple[tuple[float, ...], Sample]] = {}
    for sample in samples:
        others = tuple(sorted(item for item in sample.labels.items() if item[0] not in _RANKS))
        rank = tuple(_rank(sample.labels.get(label)) for label in _RANKS)
        key = (sample.name, others)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, sample)
    kept = [sample for _rank_of, sample in best.values()]
    summed = {
        sample.name
        for sample in kept
        if sample.name in GAUGES and not sample.labels.get("priority")
    }
    return [s for s in kept if not (s.labels.get("priority") and s.name in summed)]


def read(samples: Samples) -> ModelReading:
    """Return SGLang's reading of one model."""
    answers = samples.sum("sglang:generation_tokens_total")
    finished = samples.sum("sglang:num_requests_total")
    first_tokens = samples.sum("sglang:time_to_first_token_seconds_count")
    role = _ROLES.get(samples.label("sglang:num_running_reqs", "engine_type") or "")
    computed, cached, external = _prompt_tokens(samples, role)
    generated = answers
    real_time = samples.has("sglang:realtime_tokens_total")
    if real_time:
        # Updated while requests run, not at their end; decode leaves out each first token.
        decoded = samples.sum("sglang:realtime_tokens_total", mode="decode") or 0.0
        generated = decoded + (first_tokens or 0.0)
    acceptance = samples.mean("sglang:spec_accept_length")
    return ModelReading(
        computed_tokens=computed,
        cached_tokens=cached,
        external_tokens=external,
        generated_tokens=generated,
        prompts=first_tokens,
        prefill_passes=0.0 if role == "decode" else _passes(samples, "prefill"),
        decode_passes=_passes(samples, "decode"),
        preemptions=samples.sum("sglang:num_retracted_requests_total"),
        recomputed_tokens=_recomputed(samples) if role != "decode" else None,
        finished=_finished(samples, role) if finished is not None else None,
        in_flight=_in_flight(samples, role) if real_time else InFlight(0.0, 0.0, 0.0),
        running_requests=samples.sum("sglang:num_running_reqs"),
        waiting_requests=samples.sum("sglang:num_queue_reqs"),
        cache_usage_ratio=samples.mean("sglang:token_usage"),
        cache_used_tokens=samples.sum("sglang:num_used_tokens"),
        acceptance_length=acceptance if acceptance and acceptance >= 1 else None,
        role=role,
    )


def _prompt_tokens(
    samples: Samples, role: str | None
) -> tuple[float | None, float | None, float | None]:
    """Prompt tokens computed here, from this server's cache, and from elsewhere.

    A decode server receives the results of a prefill server. The effective counter excludes tokens
    computed again after a retraction, the real-time one includes them.
    """
    prompt = samples.sum("sglang:prompt_tokens_total")
    if role == "decode":
        return (None if prompt is None else 0.0), None, prompt
    effective = "sglang:prefill_effective_tokens_total"
    if samples.total(effective):
        hits = sum(samples.sum(effective, mode=mode) or 0.0 for mode in _hit_modes(samples))
        return samples.sum(effective, mode="input"), hits, None
    if samples.has("sglang:realtime_tokens_total"):
        return (
            samples.sum("sglang:realtime_tokens_total", mode="prefill_compute") or 0.0,
            samples.sum("sglang:realtime_tokens_total", mode="prefill_cache") or 0.0,
            None,
        )
    cached = _cached(samples)
    return positive_difference(prompt, cached), cached, None


def _recomputed(samples: Samples) -> float | None:
    """Tokens computed again after a retraction: the real-time counter minus the effective one."""
    again = samples.sum("sglang:realtime_tokens_total", mode="prefill_compute")
    once = samples.sum("sglang:prefill_effective_tokens_total", mode="input")
    # In versions that do not maintain the effective counter it stays 0.
    if again is None or once is None or not samples.total("sglang:prefill_effective_tokens_total"):
        return None
    return again - once


def _hit_modes(samples: Samples) -> list[str]:
    modes = samples.label_values("sglang:prefill_effective_tokens_total", "mode")
    return [mode for mode in modes if mode.endswith("_hit")]


def _finished(samples: Samples, role: str | None) -> Finished:
    computed = samples.sum("sglang:uncached_prompt_tokens_histogram_sum")
    here = role != "decode"
    return Finished(
        requests=samples.sum("sglang:num_requests_total") or 0.0,
        prompt_tokens=samples.sum("sglang:prompt_tokens_total") or 0.0,
        answer_tokens=samples.sum("sglang:generation_tokens_total") or 0.0,
        computed_tokens=computed if here else 0.0,
        prompts=samples.buckets("sglang:prompt_tokens_histogram"),
        answers=samples.buckets("sglang:generation_tokens_histogram"),
        computed=samples.buckets("sglang:uncached_prompt_tokens_histogram") if here else None,
    )


def _in_flight(samples: Samples, role: str | None) -> InFlight:
    """Requests started and not ended. Prompts and answers are counted when a request ends."""
    started = samples.total("sglang:time_to_first_token_seconds_count") or 0.0
    ended = samples.total("sglang:num_requests_total") or 0.0
    decoded = samples.total("sglang:realtime_tokens_total", mode="decode") or 0.0
    effective = "sglang:prefill_effective_tokens_total"
    if samples.total(effective):
        computed = samples.total(effective, mode="input") or 0.0
        cached = sum(samples.total(effective, mode=mode) or 0.0 for mode in _hit_modes(samples))
    else:
        computed = samples.total("sglang:realtime_tokens_total", mode="prefill_compute") or 0.0
        cached = samples.total("sglang:realtime_tokens_total", mode="prefill_cache") or 0.0
    prompt = samples.total("sglang:prompt_tokens_total") or 0.0
    answered = samples.total("sglang:generation_tokens_total") or 0.0
    new = samples.total("sglang:uncached_prompt_tokens_histogram_sum")
    if role == "decode":
        # Prompts are not computed here and thus not counted while they run: assume the length of
        # ended ones.
        length = prompt / ended if ended else 0.0
        return InFlight(
            started - ended,
            max(0.0, started - ended) * length,
            decoded + started - answered,
            computed_tokens=0.0,
        )
    return InFlight(
        started - ended,
        computed + cached - prompt,
        decoded + started - answered,
        computed_tokens=None if new is None else computed - new,
    )


def _passes(samples: Samples, phase: str) -> float | None:
    """Forward passes with and without a CUDA graph; only newer versions count those of prefill."""
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


def _rank(text: str | None) -> float:
    value = number(text)
    return -1.0 if value is None else value


ENGINE = Engine(
    "sglang",
    ("sglang:",),
    COUNTERS,
    GAUGES,
    read,
    ports=(30000,),
    histograms=HISTOGRAMS,
    title="SGLang",
    enable="`--enable-metrics`",
    reports="tokens while requests run (at each log interval of the scheduler), lengths when they end",
    deduplicate=deduplicate,
)
