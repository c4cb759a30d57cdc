"""Statistics of few, noisy measurements. Pure functions."""

import random
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple


RESAMPLES = 4000
CONFIDENCE = 0.95
# Within this of the last samples' median a clock counts as steady.
STEADY_TOLERANCE = 0.02
# Counters and windows are compared with this much room for the driver's rounding.
COUNT_TOLERANCE = 0.02


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float], *, seed: int = 1, resamples: int = RESAMPLES
) -> Interval:
    """The mean and its 95 % percentile bootstrap interval (Efron and Tibshirani, 1993, ch. 13).

    Raises ValueError for fewer than two values, which say nothing about their spread.
    """
    if len(values) < 2:
        raise ValueError("an interval needs two values at least")
    chance = random.Random(seed)
    means = sorted(
        statistics.fmean(chance.choices(values, k=len(values))) for _ in range(resamples)
    )
    cut = round(resamples * (1 - CONFIDENCE) / 2)
    return Interval(statistics.fmean(values), means[cut], means[-1 - cut])


def relative_losses(reference: Sequence[float], other: Sequence[float]) -> list[float]:
    """1 − other/reference of each round: the loss against the reference of the same round."""
    return [1 - mine / alone for alone, mine in zip(reference, other, strict=True)]


def interleaved(conditions: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of the conditions in each round, so that each comes equally often in each place.

    Rotation, every second lap backwards: a drift of the machine then affects all equally.
    """
    orders = []
    for number in range(rounds):
        shift = number % len(conditions)
        order = [*conditions[shift:], *conditions[:shift]]
        orders.append(order if (number // len(conditions)) % 2 == 0 else order[::-1])
    return orders


def rate_between(ends: Sequence[float], work: float, begin: float, end: float) -> float | None:
    """Work per second of steps that ended at `ends` (sorted), between two instants.

    From the first to the last step's end inside, so that a cut step costs nothing. None for fewer
    than two ends inside.
    """
    inside = [at for at in ends if begin <= at <= end]
    if len(inside) < 2 or inside[-1] <= inside[0]:
        return None
    return work * (len(inside) - 1) / (inside[-1] - inside[0])


def spread(values: Sequence[float]) -> float:
    """Standard deviation over mean."""
    return statistics.stdev(values) / statistics.fmean(values)


def seconds_to_steady(samples: Sequence[tuple[float, float]]) -> float | None:
    """From when on values (seconds, value) stay within 2 % of their final value; None if never.

    The final value is the median of the last third.
    """
    if len(samples) < 6:
        return None
    tail = [value for _, value in samples[-(len(samples) // 3) :]]
    target = statistics.median(tail)
    since: float | None = None
    for at, value in samples:
        if abs(value - target) > STEADY_TOLERANCE * abs(target):
            since = None
        elif since is None:
            since = at
    return since if since is None or since < samples[-len(tail)][0] else None


Kind = Literal["since_boot", "per_window", "unclear"]


def kind_of_count(first_window: float, second_window: float, both_windows: float) -> Kind:
    """Whether a GPM count is since boot or for its window.

    Of samples 1, 2, 3: the values for (1, 2), (2, 3) and (1, 3). One since boot depends on the later
    sample only; one of the window adds up.
    """
    if both_windows <= 0 or second_window <= 0:
        return "unclear"
    since_boot = both_windows == second_window and second_window >= first_window
    total = first_window + second_window
    per_window = abs(both_windows - total) <= COUNT_TOLERANCE * total
    if since_boot == per_window:
        return "unclear"
    return "since_boot" if since_boot else "per_window"


Scale = Literal["mean", "sum", "unclear"]


def scale_of_cycles(cycles: float, seconds: float, hertz: float, sm_count: int) -> Scale:
    """Whether elapsed SM cycles are the mean over the SMs or their sum, by the clock meanwhile."""
    ratio = cycles / (seconds * hertz)
    if abs(ratio - 1) <= 0.25:
        return "mean"
    if abs(ratio / sm_count - 1) <= 0.25:
        return "sum"
    return "unclear"
