"""The share of prompt tokens that a cache saved: lately, and usually. Pure: time is handed in.

A prefix cache that stops working raises model FLOP/s and MFU, for prompts are computed again, while
answers become fewer: only this share shows it.
"""

import math
from dataclasses import dataclass


RECENT_SECONDS = 300.0
USUAL_SECONDS = 6 * 3600.0
# Below these the shares say nothing: too young, or too little traffic.
LEAST_USUAL_SECONDS = 1800.0
LEAST_USUAL_TOKENS = 20_000.0
LEAST_RECENT_TOKENS = 2_000.0
# While the recent share is below this part of the usual one, it does not become usual.
FALLEN = 0.5
# After so long it has: what changed two weeks ago is how things are.
LONGEST_FALL_SECONDS = 14 * 86_400.0


@dataclass(slots=True)
class CacheShare:
    """Two fading averages, each by tokens. Owned by one model's books."""

    recent_cached: float = 0.0
    recent_total: float = 0.0
    usual_cached: float = 0.0
    usual_total: float = 0.0
    watched_seconds: float = 0.0
    fallen_seconds: float = 0.0

    def observe(self, seconds: float, cached: float, computed: float) -> None:
        """Enter a window of so many seconds."""
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
        """Prompt tokens of a window that are usually cached, and were not; 0 unless the cache collapsed."""
        usual = self.usual
        if usual is None or not 0 < self.fallen_seconds < LONGEST_FALL_SECONDS:
            return 0.0
        computed = max(0.0, computed)
        return min(computed, max(0.0, usual * (cached + computed) - cached))

    @property
    def recent(self) -> float | None:
        """Share of the last five minutes; None with too little traffic."""
        if self.recent_total < LEAST_RECENT_TOKENS:
            return None
        return self.recent_cached / self.recent_total

    @property
    def usual(self) -> float | None:
        """Share of the last six hours without a collapse; None before half an hour."""
        if self.watched_seconds < LEAST_USUAL_SECONDS or self.usual_total < LEAST_USUAL_TOKENS:
            return None
        return self.usual_cached / self.usual_total
