"""Work that engines waste, in FLOP worked by hand, and when a prefix cache has collapsed."""

import pytest

from exporter.inference.account import LONGEST_FALL_SECONDS, CacheShare, WasteTotals
from exporter.inference.models.cost import Cost, Work
from exporter.inference.reading import ModelReading
from tests.inference.models.shapes import TINY


NOTHING = ModelReading()


def entered(
    reading: ModelReading = NOTHING,
    work: Work | None = None,
    cost: Cost | None = None,
    lost: float = 0.0,
) -> WasteTotals:
    """Totals after one window at a mean context of 10 tokens."""
    totals = WasteTotals()
    enter(totals, reading, work, cost, lost)
    return totals


def enter(
    totals: WasteTotals,
    reading: ModelReading = NOTHING,
    work: Work | None = None,
    cost: Cost | None = None,
    lost: float = 0.0,
) -> None:
    totals.enter(
        TINY, reading, work or Work(), cost or Cost(), context_tokens=10.0, lost_tokens=lost
    )


def test_a_rejected_draft_costs_a_token_with_its_logits() -> None:
    """2 layers of 576 parameters are 2,304 FLOP, the head 160, attention to 10 keys 2 × 32 × 10: 3,104 each."""
    totals = entered(work=Work(rejected_tokens=3.0))

    assert totals.rejected_drafts == 3 * (2304 + 160 + 640)
    assert (totals.preemption, totals.lost_cache_hits) == (0.0, 0.0)


def test_a_recomputed_token_counts_as_a_prompt_token() -> None:
    """Without logits; of the 55 pairs of 10 tokens, 64 FLOP each, every token has a tenth: 352."""
    assert entered(ModelReading(recomputed_tokens=5.0)).preemption == 5 * (2304 + 352)


def test_counters_that_are_not_written_at_once() -> None:
    """Two tokens too few in one scrape are taken off the five of the next; the counter never falls."""
    totals = entered(ModelReading(recomputed_tokens=-2.0))
    assert totals.preemption == 0.0

    enter(totals, ModelReading(recomputed_tokens=5.0))
    assert totals.preemption == 3 * (2304 + 352)


def test_lost_hits_are_their_part_of_the_prompts() -> None:
    """40 of 100 computed prompt tokens: 40 % of the window's prefill FLOP, and never more than all of it."""
    work, cost = Work(prefill_tokens=100.0), Cost(prefill_flop=10_000.0)

    assert entered(work=work, cost=cost, lost=40.0).lost_cache_hits == 4000.0
    assert entered(work=work, cost=cost, lost=150.0).lost_cache_hits == 10_000.0


def test_hits_are_lost_while_the_cache_has_collapsed() -> None:
    """From 80 %: once the fall is detected 75 % is usual: 1,000 prompt tokens, 100 hits, 650 lost."""
    share = CacheShare()
    for _ in range(240):
        share.observe(15, 800, 200)
    assert share.lost(700, 300) == 0.0
    while share.fallen_seconds == 0:
        share.observe(15, 100, 900)

    assert share.lost(100, 900) == pytest.approx(650, abs=10)
    assert share.lost(900, 100) == 0.0


class TestWhatIsKnown:
    """True or absent: a cause that the engine does not count is left out."""

    def test_an_engine_that_counts_nothing(self) -> None:
        """llama.cpp: neither preemptions nor drafts nor hits."""
        assert WasteTotals().known(NOTHING, preemptions=0.0, usual_share_known=True) == {}

    def test_preemptions_alone(self) -> None:
        """vLLM counts preemptions, but not the tokens: none is nothing wasted, one is not known."""
        reading = ModelReading(preemptions=0.0)
        totals = WasteTotals()

        assert totals.known(reading, preemptions=0.0, usual_share_known=False) == {
            "preemption": 0.0
        }
        assert totals.known(reading, preemptions=1.0, usual_share_known=False) == {}

    def test_tokens_computed_again(self) -> None:
        """SGLang counts them."""
        reading = ModelReading(preemptions=1.0, recomputed_tokens=5.0)
        totals = entered(reading)

        assert totals.known(reading, preemptions=7.0, usual_share_known=False) == {
            "preemption": totals.preemption
        }

    def test_drafts_and_hits(self) -> None:
        """With speculative decoding and a prefix cache, once its usual share is known."""
        reading = ModelReading(draft_tokens=4.0, cached_tokens=9.0)
        totals = entered(work=Work(rejected_tokens=1.0))

        assert totals.known(reading, preemptions=0.0, usual_share_known=False) == {
            "rejected_drafts": 3104.0
        }
        assert totals.known(reading, preemptions=0.0, usual_share_known=True) == {
            "rejected_drafts": 3104.0,
            "lost_cache_hits": 0.0,
        }


def after(share, *, minutes, cached, computed):
    for _ in range(int(minutes * 4)):
        share.observe(15, cached, computed)
    return share


def test_the_recorded_collapse():
    """80 % of prompt tokens were cached; then 10 %: five minutes later the fall is detected."""
    share = after(CacheShare(), minutes=60, cached=800, computed=200)
    after(share, minutes=10, cached=100, computed=900)

    # A few minutes pass before the fall is detected, and they count as usual.
    assert share.usual == pytest.approx(0.75, abs=0.05)
    assert share.recent < 0.3


def test_the_collapse_does_not_become_usual():
    """A day later it is still reported; after two weeks it has become usual."""
    share = after(CacheShare(), minutes=60, cached=800, computed=200)
    after(share, minutes=24 * 60, cached=100, computed=900)
    usual = share.usual

    share.fallen_seconds = LONGEST_FALL_SECONDS
    after(share, minutes=48 * 60, cached=100, computed=900)

    assert usual > 0.7
    assert share.usual == pytest.approx(0.1, abs=0.05)


def test_a_new_engine_has_no_usual_share():
    """At least half an hour."""
    assert after(CacheShare(), minutes=20, cached=800, computed=200).usual is None


def test_little_traffic_is_not_judged():
    """A few prompts in five minutes are chance."""
    share = after(CacheShare(), minutes=60, cached=800, computed=200)

    assert after(share, minutes=60, cached=1, computed=9).recent is None
