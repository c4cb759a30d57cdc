"""The track record: which changes are compared, and how they are counted."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from exporter.advice.backtest import (
    Comparison,
    HitHistory,
    Record,
    Watch,
    observe,
    record,
)
from exporter.advice.levers._precision import with_weights
from exporter.advice.window import WorkloadWindow
from tests.advice.windows import MODEL, gpu, window


MINUTE = 60.0
BEFORE = window(seconds=300.0, passes=12_000.0, decode_tokens=120_000.0, cache_usage_ratio=0.1)
# Fifteen requests instead of ten in passes of 25.6 ms: 1.46 times the tokens.
AFTER = replace(BEFORE, running_requests=15.0, waiting_requests=5.0, decode_tokens=1.46 * 120_000.0)


def comparisons(
    at: Callable[[float], WorkloadWindow], minutes: int
) -> Iterator[tuple[float, Comparison]]:
    """The back-tests of a watch that sees the window of each minute."""
    watch = Watch()
    for minute in range(minutes):
        watch, comparison = observe(watch, at(minute), minute * MINUTE)
        if comparison is not None:
            yield minute, comparison


def change(
    after: WorkloadWindow, before: WorkloadWindow = BEFORE
) -> Callable[[float], WorkloadWindow]:
    """`before` until minute 10, `after` from then on."""
    return lambda minute: before if minute < 10 else after


def test_a_larger_batch_is_compared_after_ten_stable_minutes() -> None:
    """It changed at minute 10 and was stable from then on: compared at minute 20."""
    ((minute, comparison),) = comparisons(change(AFTER), 40)

    assert minute == 20
    assert (comparison.workload, comparison.lever) == ("chat", "larger_batch")
    assert comparison.outcome == "inside"
    assert abs(comparison.error) < 0.05


@pytest.mark.parametrize(("factor", "outcome"), [(1.05, "below"), (1.9, "above")])
def test_what_came_is_below_or_above_the_interval(factor: float, outcome: str) -> None:
    after = replace(AFTER, decode_tokens=factor * 120_000.0)
    ((_, comparison),) = comparisons(change(after), 40)

    assert comparison.outcome == outcome
    assert (comparison.error > 0) == (outcome == "below")


def test_fp8_weights_after_a_restart_are_compared_with_their_prediction() -> None:
    """The larger batch that fp8 makes room for is part of its own prediction."""
    lower = with_weights(MODEL, 1.0, "fp8")
    after = replace(BEFORE, description=lower, decode_tokens=1.75 * 120_000.0)
    ((_, comparison),) = comparisons(change(after), 40)

    assert (comparison.lever, comparison.outcome) == ("weights_fp8", "inside")


def test_clocks_that_come_back_are_compared() -> None:
    """Memory takes 22 of 25 ms: from 0.7 of the clock to all of it next to nothing is won."""
    slow = replace(BEFORE, gpus=(gpu(clock_ratio=0.7, clock_lost_to={"power": 1.0}),))
    ((_, comparison),) = comparisons(change(BEFORE, slow), 40)

    assert (comparison.lever, comparison.outcome) == ("full_clocks", "inside")


def test_nothing_is_compared_while_the_variable_moves() -> None:
    def wandering(minute: float) -> WorkloadWindow:
        return replace(BEFORE, running_requests=10.0 + minute)

    assert list(comparisons(wandering, 55)) == []


@pytest.mark.parametrize(
    "after",
    [
        replace(AFTER, waiting_requests=0.0),
        replace(AFTER, decode_context=2.0),
        replace(AFTER, gpus=(gpu(clock_ratio=0.7),)),
    ],
    ids=["nobody waits", "other requests", "two variables moved"],
)
def test_an_unfair_comparison_is_dropped(after: WorkloadWindow) -> None:
    assert list(comparisons(change(after), 40)) == []


def test_a_steady_load_is_no_test() -> None:
    assert list(comparisons(lambda _: BEFORE, 60)) == []


def test_records_count_by_workload_lever_and_outcome() -> None:
    first = record({}, Comparison("chat", "larger_batch", "inside", 0.02))
    second = record(first, Comparison("chat", "larger_batch", "above", -0.1))

    assert second == {"chat": {"larger_batch": Record(1, 0, 1, -0.1)}}
    assert second["chat"]["larger_batch"].total == 2
    assert first["chat"]["larger_batch"].total == 1


def test_records_are_kept_of_a_bounded_number_of_workloads() -> None:
    records: dict[str, dict[str, Record]] = {}
    for number in range(100):
        records = record(records, Comparison(f"w{number}", "larger_batch", "inside", 0.0))

    assert len(records) == 64
    assert "w99" in records


def test_the_best_hit_rate_is_of_the_last_week() -> None:
    history = HitHistory().entered(0.9, day=100).entered(0.5, day=104).entered(0.4, day=104)

    assert history.best == 0.9
    assert history.entered(0.3, day=108).best == 0.5
