"""When a prefix cache has collapsed, and when only the traffic has changed."""

import pytest

from exporter.inference.waste import LONGEST_FALL_SECONDS, CacheShare


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
