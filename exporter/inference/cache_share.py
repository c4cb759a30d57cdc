"""The recent and the usual share of prompt tokens saved by a cache. Pure: time is an argument.

If a prefix cache stops working, model FLOP/s and MFU rise because prompts are computed again, while
fewer answers are generated: only this share shows the problem.
"""

import math
from dataclasses import dataclass


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
