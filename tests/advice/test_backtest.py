"""The track record: which changes are compared, and how they are counted."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec
import pytest

from exporter.advice.advise import Comparison, Record, Trial, Watch, back_test, recorded
from exporter.advice.levers.lower_precision import with_weights
from exporter.advice.prediction import Price, Reference, WorkloadWindow
from exporter.advisor import SavedTrial, restored_trial, saved_trial, with_hits
from exporter.inference.models import LayerGroup, MixtureOfExperts
from exporter.inference.models.attention import GroupedAttention, LatentAttention
from exporter.inference.models.mixers import RecurrentMixer
from tests.advice.windows import MODEL, gpu, window


MINUTE = 60.0
STABLE = 10 * MINUTE
FP4 = gpu(peaks=replace(gpu().peaks, flops={"bf16": 1e12, "fp8": 2e12, "fp4": 4e12}))
BEFORE = window(seconds=300.0, passes=12_000.0, decode_tokens=120_000.0, cache_usage_ratio=0.1)
# Fifteen requests instead of ten in passes of 25.6 ms: 1.46 times the tokens.
AFTER = replace(BEFORE, running_requests=15.0, waiting_requests=5.0, decode_tokens=1.46 * 120_000.0)


def comparisons(
    at: Callable[[float], WorkloadWindow], minutes: int
) -> Iterator[tuple[float, Comparison]]:
    """The back-tests of a watch that sees the window of each minute."""
    watch = Watch()
    for minute in range(minutes):
        watch, comparison = back_test(watch, at(minute), minute * MINUTE, STABLE)
        if comparison is not None:
            yield minute, comparison


def change(
    after: WorkloadWindow, before: WorkloadWindow = BEFORE
) -> Callable[[float], WorkloadWindow]:
    """`before` until minute 10, `after` from then on."""
    return lambda minute: before if minute < 10 else after


def test_a_larger_batch_is_compared_after_ten_stable_minutes() -> None:
    """The load changes at minute 10 and is stable afterwards: compared at minute 20."""
    ((minute, comparison),) = comparisons(change(AFTER), 40)

    assert minute == 20
    assert (comparison.workload, comparison.lever) == ("chat", "larger_batch")
    assert comparison.outcome == "inside"
    assert abs(comparison.error) < 0.05


@pytest.mark.parametrize(("factor", "outcome"), [(1.05, "below"), (1.9, "above")])
def test_outcomes_below_and_above_the_interval(factor: float, outcome: str) -> None:
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


def test_fp4_weights_are_counted_as_fp4() -> None:
    """From fp8 to fp4, 4.5 bits a weight with scales: the change is not one to fp8."""
    before = replace(BEFORE, description=with_weights(MODEL, 1.0, "fp8"), gpus=(FP4,))
    after = replace(
        before,
        description=with_weights(MODEL, 4.5 / 8, "fp4"),
        decode_tokens=1.2 * 120_000.0,
    )
    ((_, comparison),) = comparisons(change(after, before), 40)

    assert comparison.lever == "weights_fp4"


def test_an_engine_that_restarted_is_compared_with_its_state_before() -> None:
    """The engine had no window for a quarter of an hour and came back with a batch limit of 15."""
    watch, found = Watch(), []
    for minute in (*range(10), *range(25, 50)):
        window = BEFORE if minute < 10 else AFTER
        watch, comparison = back_test(watch, window, minute * MINUTE, STABLE)
        found += [(minute, comparison)] if comparison else []

    ((minute, comparison),) = found
    assert minute == 35
    assert comparison.lever == "larger_batch"


@pytest.mark.parametrize(("window_minutes", "stable_minutes"), [(5, 60), (60, 10), (60, 60)])
def test_the_longest_settings_are_compared_too(window_minutes: int, stable_minutes: int) -> None:
    """A change that shows in the whole window only after its length, then stable for as long as set."""
    seconds = window_minutes * MINUTE
    before, after = (replace(each, seconds=seconds) for each in (BEFORE, AFTER))
    watch, found = Watch(), []
    for minute in range(10 * window_minutes + 2 * stable_minutes):
        # The window moves over the change: its means rise for as long as it is.
        part = min(1.0, max(0.0, minute / window_minutes - 2.0))
        window = replace(
            after,
            running_requests=10.0 + 5.0 * part,
            decode_tokens=120_000.0 * (1 + 0.46 * part),
        )
        window = before if part == 0.0 else window
        watch, comparison = back_test(watch, window, minute * MINUTE, stable_minutes * MINUTE)
        found += [comparison] if comparison else []

    assert [comparison.lever for comparison in found] == ["larger_batch"]


@pytest.mark.parametrize("trouble", [{"shared_with": "another tenant"}, {"fault": "is lost"}])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_gpu_that_is_shared_or_has_a_fault_is_not_compared(
    trouble: dict[str, str], side: str
) -> None:
    """A notebook took the GPU while the batch grew: the lever is not to blame for what is missing."""
    before, after = (
        replace(window, gpus=tuple(replace(each, **trouble) for each in window.gpus))
        if side == name
        else window
        for name, window in (("before", BEFORE), ("after", AFTER))
    )

    assert list(comparisons(change(after, before), 40)) == []


def test_an_engine_that_was_down_for_hours_is_not_compared() -> None:
    watch = Watch()
    for minute in (*range(10), *range(200, 230)):
        window = BEFORE if minute < 10 else AFTER
        watch, comparison = back_test(watch, window, minute * MINUTE, STABLE)

        assert comparison is None


def test_a_group_of_half_the_gpus_is_compared_with_its_prediction() -> None:
    """Each GPU of two reads 11 MB a pass; one alone reads 22 MB, in 22 of 25 ms instead of 11 of 14."""
    pair = replace(
        BEFORE,
        gpus=(gpu(link_bytes_per_second=1e6), gpu(gpu="1", uuid="GPU-1")),
        gpu_count=2,
        tensor_parallel=2,
        seconds=300.0,
        passes=300.0 / 0.014,
        decode_tokens=10 * 300.0 / 0.014,
    )
    peaks = replace(pair.gpus[0].peaks, nvlink_bytes_per_second=1e9)
    pair = replace(
        pair,
        gpus=tuple(replace(each, peaks=peaks, link_bytes_per_second=1e6) for each in pair.gpus),
    )
    ((_, comparison),) = comparisons(change(BEFORE, pair), 40)

    assert (comparison.lever, comparison.outcome) == ("tensor_parallel", "inside")


def test_a_trial_survives_as_plain_data() -> None:
    """The restored record equals the saved one on a restarted clock, for every kind of layer."""
    layers = tuple(
        LayerGroup(2, attention, None, 2000, mixture)
        for attention, mixture in (
            (GroupedAttention(10, 10, 100), None),
            (LatentAttention(8, 0, 64, 32, 16, 32), MixtureOfExperts(8, 2, 100)),
            (RecurrentMixer(matrices=10, vectors=10), None),
        )
    )
    reference = Reference(8, 1e9, {"bf16": 1e12})
    before = replace(
        BEFORE,
        description=replace(MODEL, layers=layers),
        reference=reference,
        price=Price(2, "EUR"),
    )
    trial = Trial(before, 1000.0, {"larger_batch": 10.0}, 1300.0)
    data = msgspec.json.encode(saved_trial(trial, 1e9))
    restored = restored_trial(msgspec.json.decode(data, type=SavedTrial), 1e9 + 900.0)

    assert restored == replace(trial, began_seconds=100.0, settled_seconds=400.0)


@pytest.mark.parametrize("key", ["seconds", "gpus", "workload"])
def test_a_damaged_trial_is_refused(key: str) -> None:
    saved = saved_trial(Trial(BEFORE, 0.0, {}, 0.0), 0.0)
    damaged = msgspec.structs.replace(saved, window={**saved.window, key: None})

    with pytest.raises(msgspec.ValidationError):
        restored_trial(damaged, 0.0)


def test_clocks_that_come_back_are_compared() -> None:
    """Memory takes 22 of 25 ms: raising the clock from 0.7 to its maximum gains almost nothing."""
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


def test_a_steady_load_proves_nothing() -> None:
    assert list(comparisons(lambda _: BEFORE, 60)) == []


def test_records_count_by_workload_lever_and_outcome() -> None:
    first = recorded({}, Comparison("chat", "larger_batch", "inside", 0.02))
    second = recorded(first, Comparison("chat", "larger_batch", "above", -0.1))

    assert second == {"chat": {"larger_batch": Record(1, 0, 1, -0.1)}}
    assert second["chat"]["larger_batch"].total == 2
    assert first["chat"]["larger_batch"].total == 1


def test_records_are_kept_of_a_bounded_number_of_workloads() -> None:
    records: dict[str, dict[str, Record]] = {}
    for number in range(100):
        records = recorded(records, Comparison(f"w{number}", "larger_batch", "inside", 0.0))

    assert len(records) == 64
    assert "w99" in records


def test_the_best_hit_rate_is_of_the_last_week() -> None:
    history = with_hits(with_hits(with_hits({}, 0.9, day=100), 0.5, day=104), 0.4, day=104)

    assert history == {100: 0.9, 104: 0.5}
    assert with_hits(history, 0.3, day=108) == {104: 0.5, 108: 0.3}
