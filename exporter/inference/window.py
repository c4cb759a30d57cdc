"""From an engine's reading to the work of one window: what is told, and what is estimated."""

from dataclasses import dataclass

from exporter.inference.models.work import Work
from exporter.inference.reading import ModelReading


@dataclass(frozen=True, slots=True)
class Lengths:
    """Means that outlive a window in which no request ended."""

    prompt: float | None = None
    answer: float | None = None
    context: float | None = None
    running_requests: float | None = None


def work_of(reading: ModelReading, before: Lengths) -> tuple[Work, Lengths]:
    """Return the work since the last scrape, and the lengths to remember for the next."""
    lengths = Lengths(
        prompt=_mean_length(
            reading.finished_prompt_tokens,
            reading.finished_requests,
            before.prompt,
            reading.lifetime_prompt_length,
        ),
        answer=_mean_length(
            reading.finished_answer_tokens,
            reading.finished_requests,
            before.answer,
            reading.lifetime_answer_length,
        ),
        running_requests=reading.running_requests,
    )
    context = _decode_context(reading, lengths) or before.context
    work = Work(
        prefill_tokens=reading.computed_tokens or 0.0,
        cached_tokens=reading.cached_tokens or 0.0,
        decode_tokens=reading.generated_tokens or 0.0,
        prompts=reading.prompts,
        rejected_tokens=_rejected(reading),
        acceptance_length=_acceptance_length(reading),
        passes=reading.passes,
        prefill_passes=reading.prefill_passes,
        decode_passes=reading.decode_passes,
        running_requests=_between(before.running_requests, reading.running_requests),
        prompt_length=lengths.prompt,
        decode_context=context,
    )
    return work, Lengths(lengths.prompt, lengths.answer, context, lengths.running_requests)


def _mean_length(
    tokens: float | None, requests: float | None, before: float | None, lifetime: float | None
) -> float | None:
    """Of the requests that ended in the window; else as before; else since the engine started."""
    if tokens and requests:
        return tokens / requests
    return lifetime if before is None else before


def _decode_context(reading: ModelReading, lengths: Lengths) -> float | None:
    """Mean keys that a decoded token attends to.

    Told by the engine, or the larger of two estimates that both err low: the mean prompt and half
    of the mean answer (long answers hold more tokens than short ones, so the mean token sits
    deeper), and the used cache over the running requests (a shared prefix is stored once).
    """
    if reading.decode_context is not None:
        return reading.decode_context
    estimates = []
    if lengths.prompt is not None:
        estimates.append(lengths.prompt + (lengths.answer or 0.0) / 2)
    if reading.cache_used_tokens and reading.running_requests:
        estimates.append(reading.cache_used_tokens / reading.running_requests)
    return max(estimates, default=None)


def _acceptance_length(reading: ModelReading) -> float:
    """Tokens that one sequence gains per pass: accepted drafts and the one after them."""
    if reading.drafts and reading.accepted_tokens is not None:
        return 1.0 + reading.accepted_tokens / reading.drafts
    return max(1.0, reading.acceptance_length or 1.0)


def _rejected(reading: ModelReading) -> float:
    return max(0.0, (reading.draft_tokens or 0.0) - (reading.accepted_tokens or 0.0))


def _between(first: float | None, second: float | None) -> float | None:
    """The mean of the two ends of the window, where both are known."""
    if first is None or second is None:
        return second if first is None else first
    return (first + second) / 2
