"""What an engine did between two scrapes, and what it cost: from tokens to FLOPs and bytes."""

from dataclasses import dataclass

from exporter.inference.models.description import ModelDescription
from exporter.inference.models.flops import (
    decode_flops,
    head_flops_per_token,
    linear_flops_per_token,
    prefill_attention_flops,
)
from exporter.inference.models.memory import (
    cache_bytes_per_token,
    cache_bytes_read,
    weight_bytes_per_pass,
)


# Tokens of one prefill pass where an engine does not count its passes: the common default chunk
# of SGLang and TensorRT-LLM.
PREFILL_CHUNK_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Work:
    """The tokens of one window, and the means that their cost depends on.

    None means that the engine does not say; the cost then rests on an estimate, see `cost_of`.
    """

    prefill_tokens: float = 0.0  # prompt tokens computed, without cache hits
    cached_tokens: float = 0.0  # prompt tokens taken from a cache
    decode_tokens: float = 0.0  # tokens generated, the first of each prompt included
    prompts: float | None = None  # prompts whose prefill ended: the first tokens among the above
    rejected_tokens: float = 0.0  # drafts that were verified and thrown away
    acceptance_length: float = 1.0  # tokens that one sequence gains per pass
    passes: float | None = None  # forward passes of all kinds
    prefill_passes: float | None = None
    decode_passes: float | None = None
    running_requests: float | None = None  # mean number of sequences in a decode pass
    prompt_length: float | None = None  # mean, cached part included
    decode_context: float | None = None  # mean keys that a decoded token attends to


@dataclass(frozen=True, slots=True)
class Cost:
    """Useful FLOPs and necessary bytes of a window, of all GPUs of the workload together."""

    prefill_flops: float = 0.0
    decode_flops: float = 0.0
    dram_bytes: float = 0.0

    @property
    def flops(self) -> float:
        """FLOPs of both phases."""
        return self.prefill_flops + self.decode_flops


def cost_of(model: ModelDescription, work: Work, tensor_parallel: int = 1) -> Cost:
    """Return what `work` cost on `model`.

    A prompt's first token comes out of its prefill pass, so its FLOPs beyond the logits are
    prefill's, and one token per prompt needs no decode pass.
    """
    return Cost(
        prefill_flops=_prefill_flops(model, work),
        decode_flops=decode_flops(model, _decoded(work), _context(work)),
        dram_bytes=_weight_bytes(model, work) + _cache_bytes(model, work, tensor_parallel),
    )


def _decoded(work: Work) -> float:
    """Tokens that came out of decode passes."""
    return max(0.0, work.decode_tokens - (work.prompts or 0.0))


def _prompt(work: Work) -> tuple[float, float]:
    """Mean computed and cached tokens of one prompt."""
    tokens = work.prefill_tokens + work.cached_tokens
    length = work.prompt_length or (tokens / max(1.0, work.prompts or 0.0))
    share = work.cached_tokens / tokens if tokens else 0.0
    return length * (1 - share), length * share


def _context(work: Work) -> float:
    """Mean context of a decoded token; without any hint, the prompt and half of the answer."""
    if work.decode_context is not None:
        return work.decode_context
    answer = work.decode_tokens / max(1.0, work.prompts) if work.prompts else 0.0
    return sum(_prompt(work)) + answer / 2


def _prefill_flops(model: ModelDescription, work: Work) -> float:
    linear = work.prefill_tokens * linear_flops_per_token(model)
    logits = (work.prompts or 0.0) * head_flops_per_token(model)
    new, cached = _prompt(work)
    if not new:
        return linear + logits
    # Per computed token, so that a prompt cut in two by the scrape costs what it costs whole.
    attention = prefill_attention_flops(model, new, cached) / new
    return linear + logits + work.prefill_tokens * attention


def _weight_bytes(model: ModelDescription, work: Work) -> float:
    """Weights once per pass; passes that the engine does not count are estimated.

    Prefill: one pass per prompt, and per 8192 tokens of a longer one (an upper bound: engines
    batch short prompts). Decode: every running sequence gains `acceptance_length` tokens a pass.
    """
    verified = _decoded(work) + work.rejected_tokens
    if work.passes is not None:
        return _passes(model, work.passes, work.prefill_tokens + verified)
    prefill = work.prefill_passes
    if prefill is None:
        prefill = max(work.prompts or 0.0, work.prefill_tokens / PREFILL_CHUNK_TOKENS)
    decode = work.decode_passes
    if decode is None:
        sequences = max(1.0, work.running_requests or 0.0)
        decode = _decoded(work) / (sequences * work.acceptance_length)
    return _passes(model, prefill, work.prefill_tokens) + _passes(model, decode, verified)


def _passes(model: ModelDescription, passes: float, tokens: float) -> float:
    if not passes or not tokens:
        return 0.0
    return passes * weight_bytes_per_pass(model, tokens / passes, with_head=True)


def _cache_bytes(model: ModelDescription, work: Work, tensor_parallel: int) -> float:
    """Writes of every new token, reads of every decode pass and of the reused prefixes."""
    decoded = _decoded(work)
    written = work.prefill_tokens + decoded + work.rejected_tokens
    sequence_passes = decoded / work.acceptance_length
    new, cached = _prompt(work)
    prefixes = work.prefill_tokens / new if new else 0.0
    return (
        written * cache_bytes_per_token(model, tensor_parallel)
        + sequence_passes * cache_bytes_read(model, _context(work), tensor_parallel)
        + prefixes * cache_bytes_read(model, cached, tensor_parallel)
    )
