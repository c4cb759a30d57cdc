"""Short forms of `python -m benchmarks.soak`."""

from pathlib import Path

import pytest

from benchmarks.soak import GROWTH_MAX_BYTES, soak_accounts, soak_daemon


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_half_a_day_of_ticks_grows_nothing() -> None:
    """Accounts and expositions of one GPU, with processes, XIDs, gaps and new MIG instances."""
    grown = soak_accounts(43_200)

    assert grown.bytes < GROWTH_MAX_BYTES, grown
    assert grown.descriptors_after == grown.descriptors_before
    assert grown.threads_after == grown.threads_before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_daemon_grows_nothing_while_all_around_it_churns(tmp_path: Path) -> None:
    """Ten ticks a second, scrapes, reloads, XIDs, processes, lost GPUs: five minutes' worth of ticks."""
    grown = soak_daemon(35, tmp_path)

    assert grown.bytes < GROWTH_MAX_BYTES, grown
    assert grown.threads_after <= grown.threads_before, grown
    assert grown.descriptors_after <= grown.descriptors_before, grown
