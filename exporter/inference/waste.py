"""FLOP wasted by an engine, by cause, as far as the engine counts them. Pure.

* `preemption`: tokens computed again after a preemption. SGLang counts them; other engines count only
  the preemptions, so that the FLOP are known (zero) only until the first one.
* `rejected_drafts`: draft tokens that the served model verified and rejected. The work of the draft
  model is not included.
* `lost_cache_hits`: prompt tokens that are usually in the prefix cache but were computed while its
  hit rate had collapsed. They are part of the model's FLOP; the other causes come on top of it.
"""

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
