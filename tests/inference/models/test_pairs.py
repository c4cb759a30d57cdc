"""Pairs of queries and keys, against a loop over every token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.inference.models.attention import block_pairs, compressed_pairs


COUNTS = st.integers(0, 90)


class TestCompressedEntries:
    def test_by_hand(self):
        """Entries of 4 tokens: tokens 1 to 3 see none, 4 to 7 one, 8 and 9 two: 4 + 4 = 8."""
        assert compressed_pairs(9, 0, 4) == 8

    def test_after_cached_tokens(self):
        """Tokens 8 and 9 alone: 4."""
        assert compressed_pairs(2, 7, 4) == 4

    def test_at_most_the_selected_keys(self):
        """Tokens 4 to 12 see one at most: 9."""
        assert compressed_pairs(12, 0, 4, 1) == 9

    @given(new=COUNTS, cached=COUNTS, ratio=st.integers(1, 9), limit=st.integers(1, 9))
    def test_every_token(self, new, cached, ratio, limit):
        """The sum over tokens, with and without a limit."""
        seen = [token // ratio for token in range(cached + 1, cached + new + 1)]

        assert compressed_pairs(new, cached, ratio) == sum(seen)
        assert compressed_pairs(new, cached, ratio, limit) == sum(min(n, limit) for n in seen)


class TestBlocks:
    def test_by_hand(self):
        """2 blocks of 3: tokens 1 to 6 see all, 21 pairs; 7, 8, 9 see 3 + 1, 3 + 2, 3 + 3 keys."""
        assert block_pairs(9, 0, 3, 2) == 21 + 15

    @given(new=COUNTS, cached=COUNTS, size=st.integers(1, 9), blocks=st.integers(1, 5))
    def test_every_token(self, new, cached, size, blocks):
        """The sum over tokens."""
        seen = 0
        for token in range(cached + 1, cached + new + 1):
            own = (token - 1) % size + 1
            seen += token if token <= size * blocks else (blocks - 1) * size + own

        assert block_pairs(new, cached, size, blocks) == seen


def test_fractions_lie_between_whole_tokens():
    """Mean lengths are not whole numbers."""
    middle = (compressed_pairs(8, 0, 4) + compressed_pairs(9, 0, 4)) / 2

    assert compressed_pairs(8.5, 0, 4) == pytest.approx(middle)
