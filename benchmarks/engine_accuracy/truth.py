"""What a window of work needed, summed token by token over the steps that an engine recorded.

The formulas are repeated here for the one small model that is served, so that a mistake in
flopwatch's cannot hide in its own truth.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.gguf import Llama


HIDDEN, LAYERS, HEADS, GROUPS, HEAD, INNER, WORDS = 256, 4, 8, 2, 32, 704, 1024
SERVED = Llama(HIDDEN, LAYERS, HEADS, GROUPS, INNER, WORDS)
_LAYER = HIDDEN * HEAD * (2 * HEADS + 2 * GROUPS) + 3 * HIDDEN * INNER
LINEAR_FLOP = 2 * LAYERS * _LAYER  # of one token, without attention
LOGITS_FLOP = 2 * HIDDEN * WORDS
PAIR_FLOP = LAYERS * 4 * HEADS * HEAD  # of one query and one key
CACHE_BYTES = LAYERS * 2 * GROUPS * HEAD * 2  # of one token, bf16
HEAD_BYTES = 2 * HIDDEN * WORDS
WEIGHT_BYTES = 2 * LAYERS * _LAYER + HEAD_BYTES  # of one pass, the output head included


@dataclass(frozen=True, slots=True)
class Truth:
    """Sums over a window."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefill_flop: int = 0
    decode_flop: int = 0
    dram_bytes: int = 0
    passes: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One sequence's part of one forward pass."""

    sequence: str
    before: int
    new: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of one rank."""

    at_seconds: float
    steps: tuple[Step, ...]


def read_passes(folder: Path) -> list[Pass]:
    """All passes that the engines behind one server recorded."""
    passes = []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            process, at_seconds, sequences = json.loads(line)
            steps = tuple(
                Step(f"{process}/{name}", before, new, prompt)
                for name, before, new, prompt, _state in sequences
            )
            passes.append(Pass(at_seconds, steps))
    return sorted(passes, key=lambda entry: entry.at_seconds)


def sum_up(
    passes: Sequence[Pass], lengths: Mapping[str, int], *, embeddings: bool = False
) -> Truth:
    """Sum over passes.

    A position that is computed again (after a preemption, or where a draft was rejected) counts
    once. `lengths` says how many positions a sequence has in all, by the start of its name; beyond
    them are surplus drafts. `embeddings` have no logits.
    """
    seen: dict[str, int] = defaultdict(int)
    sums: Counter[str] = Counter()
    for entry in passes:
        for step in entry.steps:
            start = max(step.before, seen[step.sequence])
            end = min(step.before + step.new, _length(step.sequence, lengths))
            if end <= start:
                continue
            seen[step.sequence] = end
            prompt_end, answer_start = min(end, step.prompt), max(start, step.prompt)
            if prompt_end > start:
                sums["prefill"] += prompt_end - start
                sums["prefill_pairs"] += _pairs(start, prompt_end)
                sums["read"] += start
                sums["prompts"] += prompt_end == step.prompt and not embeddings
            if end > answer_start:
                sums["decoded"] += end - answer_start
                sums["decode_pairs"] += _pairs(answer_start, end)
                sums["read"] += end
            sums["written"] += end - start
    return Truth(
        prefill_tokens=sums["prefill"],
        decode_tokens=sums["decoded"] + sums["prompts"],
        prefill_flop=sums["prefill"] * LINEAR_FLOP
        + sums["prefill_pairs"] * PAIR_FLOP
        + sums["prompts"] * LOGITS_FLOP,
        decode_flop=sums["decoded"] * (LINEAR_FLOP + LOGITS_FLOP)
        + sums["decode_pairs"] * PAIR_FLOP,
        dram_bytes=len(passes) * (WEIGHT_BYTES - embeddings * HEAD_BYTES)
        + (sums["written"] + sums["read"]) * CACHE_BYTES,
        passes=len(passes),
    )


def between(received: Truth, computed: Truth, tokens: float) -> Truth:
    """The truth of a window in which clients hung up, where the engine counted this many tokens.

    An API server counts each token that it could still deliver: at least what clients received, at most
    what was computed. Which it was is only in its counter. Work is in proportion to the tokens between.
    """
    least = received.prefill_tokens + received.decode_tokens
    most = computed.prefill_tokens + computed.decode_tokens
    share = min(1.0, max(0.0, (tokens - least) / (most - least))) if most > least else 0.0
    return Truth(
        **{
            part.name: round(
                getattr(received, part.name)
                + share * (getattr(computed, part.name) - getattr(received, part.name))
            )
            for part in fields(Truth)
        }
    )


def _pairs(start: int, end: int) -> int:
    """Position p attends to p + 1 keys, itself included."""
    return (end * (end + 1) - start * (start + 1)) // 2


def _length(sequence: str, lengths: Mapping[str, int]) -> int:
    name = sequence.partition("/")[2]
    found = (length for start, length in lengths.items() if name.startswith(start))
    return next(found, 0)
