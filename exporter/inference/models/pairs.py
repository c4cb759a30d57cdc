"""Counts query-key pairs of attention, for each rule of which keys a query may see. Pure.

All functions take means as well as counts, so their arguments may be fractions: a sum over tokens
is exact at whole numbers and linear in between.
"""

import math
from collections.abc import Callable


Sum = Callable[[int], float]


def causal_pairs(
    new_tokens: float, cached_tokens: float = 0.0, window: float | None = None
) -> float:
    """Return the query-key pairs when `new_tokens` are computed after `cached_tokens`.

    Token j (from 1) attends to the `cached_tokens` before it, to the new ones before it and to
    itself: cached + j keys, at most `window`. Summed: n·c + n(n+1)/2 without a window; the half of
    n² is the causal mask.
    """
    new, cached = new_tokens, cached_tokens
    if window is None or cached + new <= window:
        return new * cached + new * (new + 1) / 2
    if cached >= window:
        return new * window
    growing = window - cached
    return growing * cached + growing * (growing + 1) / 2 + (new - growing) * window


def compressed_pairs(
    new_tokens: float, cached_tokens: float, ratio: int, limit: int | None = None
) -> float:
    """Return the pairs with compressed entries, one for each full group of `ratio` tokens.

    The token at position t (from 1) sees floor(t / ratio) entries, at most `limit`.
    """

    def until(tokens: int) -> float:
        capped = 0
        if limit is not None and tokens >= ratio * limit:
            capped = tokens - ratio * limit + 1
            tokens = ratio * limit - 1
        groups, rest = divmod(tokens, ratio)
        return ratio * groups * (groups - 1) / 2 + groups * (rest + 1) + capped * (limit or 0)

    return _between(until, cached_tokens, new_tokens)


def block_pairs(new_tokens: float, cached_tokens: float, block_tokens: int, blocks: int) -> float:
    """Return the pairs if each query sees `blocks` blocks of keys, always including its own.

    Blocks hold `block_tokens` keys. The token at position t (from 1) sees all t keys while they
    fill no more than `blocks`; then blocks - 1 full ones and its own up to itself.
    """
    whole = block_tokens * blocks

    def until(tokens: int) -> float:
        free = min(tokens, whole)
        pairs = free * (free + 1) / 2
        groups, rest = divmod(tokens - free, block_tokens)
        own = groups * block_tokens * (block_tokens + 1) / 2 + rest * (rest + 1) / 2
        return pairs + (tokens - free) * (whole - block_tokens) + own

    return _between(until, cached_tokens, new_tokens)


def _between(until: Sum, cached_tokens: float, new_tokens: float) -> float:
    return _linear(until, cached_tokens + new_tokens) - _linear(until, cached_tokens)


def _linear(until: Sum, tokens: float) -> float:
    low = math.floor(tokens)
    share = tokens - low
    return until(low) if not share else (1 - share) * until(low) + share * until(low + 1)
