"""FLOP wasted by an engine, by cause, as far as the engine counts them. Pure.

* `preemption`: tokens computed again after a preemption. SGLang counts them; other engines count only
  the preemptions, so that the FLOP are known (zero) only until the first one.
* `rejected_drafts`: draft tokens that the served model verified and rejected. The work of the draft
  model is not included.
* `lost_cache_hits`: prompt tokens that are usually in the prefix cache but were computed while its
  hit rate had collapsed. They are part of the model's FLOP; the other causes come on top of it.
"""

import math
from dataclasses import dataclass

from exporter.inference.models.description import ModelDescription
from exporter.inference.models.flops import (
    decode_attention_flop,
    head_flop_per_token,
    linear_flop_per_token,
    prefill_attention_flop,
)
from exporter.inference.models.work import Cost, Work
from exporter.inference.reading import ModelReading


RECENT_SECONDS = 300.0
USUAL_SECONDS = 6 * 3600.0
# Below these limits the shares are not meaningful: too short a time, or too little traffic.
LEAST_USUAL_SECONDS = 1800.0
LEAST_USUAL_TOKENS = 20_000.0
LEAST_RECENT_TOKENS = 2_000.0
# A recent share below this fraction of the usual one does not change the usual share.
FALLEN = 0.5
# After this long it does: a change that lasts two weeks is the new normal.
LONGEST_FALL_SECONDS = 14 * 86_400.0


@dataclass(slots=True)
class CacheShare:
    """Two exponentially fading averages, weighted by tokens. Owned by one model's records."""

    recent_cached: float = 0.0
    recent_total: float = 0.0
    usual_cached: float = 0.0
    usual_total: float = 0.0
    watched_seconds: float = 0.0
    fallen_seconds: float = 0.0

    def observe(self, seconds: float, cached: float, computed: float) -> None:
        """Add a window of the given seconds."""
        if seconds <= 0:
            return
        fade = math.exp(-seconds / RECENT_SECONDS)
        total = cached + max(0.0, computed)
        self.recent_cached = self.recent_cached * fade + cached
        self.recent_total = self.recent_total * fade + total
        recent, usual = self.recent, self.usual
        fallen = recent is not None and usual is not None and recent < FALLEN * usual
        self.fallen_seconds = self.fallen_seconds + seconds if fallen else 0.0
        if fallen and self.fallen_seconds < LONGEST_FALL_SECONDS:
            return
        fade = math.exp(-seconds / USUAL_SECONDS)
        self.usual_cached = self.usual_cached * fade + cached
        self.usual_total = self.usual_total * fade + total
        self.watched_seconds += seconds

    def lost(self, cached: float, computed: float) -> float:
        """Prompt tokens of a window that are usually cached but were not; 0 without a collapse."""
        usual = self.usual
        if usual is None or not 0 < self.fallen_seconds < LONGEST_FALL_SECONDS:
            return 0.0
        computed = max(0.0, computed)
        return min(computed, max(0.0, usual * (cached + computed) - cached))

    @property
    def recent(self) -> float | None:
        """The share of the last five minutes; None with too little traffic."""
        if self.recent_total < LEAST_RECENT_TOKENS:
            return None
        return self.recent_cached / self.recent_total

    @property
    def usual(self) -> float | None:
        """The share of the last six hours without a collapse; None in the first half hour."""
        if self.watched_seconds < LEAST_USUAL_SECONDS or self.usual_total < LEAST_USUAL_TOKENS:
            return None
        return self.usual_cached / self.usual_total


@dataclass(slots=True)
class WasteTotals:
    """FLOP wasted by one model so far, by cause. They are counters and never fall."""

    preemption: float = 0.0
    rejected_drafts: float = 0.0
    lost_cache_hits: float = 0.0
    # Recomputed tokens to subtract later: the two counters are not updated at the same time.
    debt: float = 0.0

    def enter(
        self,
        model: ModelDescription,
        reading: ModelReading,
        work: Work,
        cost: Cost,
        *,
        context_tokens: float | None,
        lost_tokens: float,
    ) -> None:
        """Add a window. `context_tokens` is the mean context of a decoded token.

        `lost_tokens` is the number of the window's prompt tokens that would usually have been
        cached.
        """
        context = context_tokens or 0.0
        again = (reading.recomputed_tokens or 0.0) + self.debt
        self.debt = min(0.0, again)
        if again > 0:
            attention = prefill_attention_flop(model, context) / context if context else 0.0
            self.preemption += again * (linear_flop_per_token(model) + attention)
        if work.rejected_tokens > 0:
            per_token = (
                linear_flop_per_token(model)
                + head_flop_per_token(model)
                + decode_attention_flop(model, context)
            )
            self.rejected_drafts += work.rejected_tokens * per_token
        if lost_tokens > 0 and work.prefill_tokens > 0:
            share = min(1.0, lost_tokens / work.prefill_tokens)
            self.lost_cache_hits += share * max(0.0, cost.prefill_flop)

    def known(
        self, reading: ModelReading, *, preemptions: float, usual_share_known: bool
    ) -> dict[str, float]:
        """FLOP by cause, only for the causes that the engine counts."""
        known: dict[str, float] = {}
        never = reading.preemptions is not None and preemptions == 0
        if reading.recomputed_tokens is not None or never:
            known["preemption"] = self.preemption
        if reading.draft_tokens is not None:
            known["rejected_drafts"] = self.rejected_drafts
        if reading.cached_tokens is not None and usual_share_known:
            known["lost_cache_hits"] = self.lost_cache_hits
        return known
