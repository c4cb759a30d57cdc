"""How long requests are: from an engine's histograms to points that stand for them.

Attention costs grow with the square of a length, so a mean says too little: 90 % of prompts at 500
tokens and 10 % at 32,000 need three times the attention of as many prompts of their mean length. A
histogram's buckets, its sum and what earlier windows taught about each bucket say more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from exporter.inference.reading import Buckets


# Weight of the uniform distribution that a bucket is taken for before requests were seen in it.
PRIOR_OBSERVATIONS = 2.0
# Observations of a bucket that are remembered: what is older fades.
REMEMBERED_OBSERVATIONS = 200.0
# A last bucket without an upper bound is taken to reach this many times its lower one.
OPEN_BUCKET_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class Point:
    """`weight` requests of about `length` tokens."""

    weight: float
    length: float


@dataclass(slots=True)
class _Bucket:
    """What was seen of the lengths within one bucket."""

    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # of deviations of window means, by their number of requests
    windows: float = 0.0

    def learn(self, count: float, mean: float) -> None:
        """Enter `count` requests of one window whose mean length is known."""
        fade = min(1.0, REMEMBERED_OBSERVATIONS / (self.weight + count))
        self.weight, self.squares, self.windows = (
            self.weight * fade,
            self.squares * fade,
            self.windows * fade,
        )
        if self.weight:
            deviation = mean - self.mean
            share = count / (self.weight + count)
            # A mean of `count` lengths varies by the variance of one over `count`.
            self.squares += count * (1 - share) * deviation * deviation
            self.windows += 1
        self.mean += (mean - self.mean) * count / (self.weight + count)
        self.weight += count


@dataclass(slots=True)
class LengthModel:
    """Learns the distribution of one length from windows. Owned by one workload's books."""

    buckets: dict[tuple[float, float], _Bucket] = field(default_factory=dict)
    # Variance over the squared mean, of the requests that ended lately.
    relative_variance: float = 0.0

    def points(self, total: float | None, count: float, buckets: Buckets | None) -> list[Point]:
        """Return points for `count` requests of `total` tokens together.

        With one request, or without buckets, the mean stands for all. A `total` that is None is
        taken from the buckets alone.
        """
        if count <= 0:
            return []
        occupied = _occupied(buckets) if buckets is not None else []
        if total is None and not occupied:
            return []
        if total is not None and (count <= 1 or not occupied):
            self._learn(occupied, total / count)
            return [Point(count, total / count)]
        means = self._means(occupied, total)
        if len(occupied) == 1 and total is not None:
            self._learn(occupied, means[0])
        points: list[Point] = []
        for (low, high, number), mean in zip(occupied, means, strict=True):
            spread = self._deviation(low, high, mean) if number > 1 else 0.0
            if spread > 0:
                points += [Point(number / 2, mean - spread), Point(number / 2, mean + spread)]
            else:
                points.append(Point(number, mean))
        self._remember_spread(points)
        return points

    def _learn(self, occupied: Sequence[tuple[float, float, float]], mean: float) -> None:
        """The only occupied bucket's mean is the window's."""
        if len(occupied) == 1:
            low, high, count = occupied[0]
            if low < mean <= high:
                self.buckets.setdefault((low, high), _Bucket()).learn(count, mean)

    def _means(
        self, occupied: Sequence[tuple[float, float, float]], total: float | None
    ) -> list[float]:
        """Mean length in each bucket: as learned, moved towards a bound until the sum is right."""
        expected = [self._expected(low, high) for low, high, _count in occupied]
        if total is None:
            return expected
        means = _with_sum(
            occupied,
            expected,
            [1.0 / (1.0 + self._windows(low, high)) for low, high, _count in occupied],
            total,
        )
        reached = sum(
            count * mean for (_low, _high, count), mean in zip(occupied, means, strict=True)
        )
        # A sum that no lengths within the buckets have: the engine counts them apart.
        return [mean * total / reached for mean in means] if reached > 0 else means

    def _expected(self, low: float, high: float) -> float:
        """The learned mean; before, that of a distribution even over orders of magnitude."""
        bucket = self.buckets.get((low, high))
        if bucket is not None and bucket.weight:
            return bucket.mean
        if low <= 0:
            return high if high <= 1 else (low + high) / 2
        return (high - low) / math.log(high / low)

    def _windows(self, low: float, high: float) -> float:
        bucket = self.buckets.get((low, high))
        return bucket.windows if bucket else 0.0

    def _deviation(self, low: float, high: float, mean: float) -> float:
        """Standard deviation within a bucket: even over its width at first, then as seen."""
        position = min(1.0, max(0.0, (mean - low) / (high - low)))
        prior = (high - low) ** 2 / 12 * 4 * position * (1 - position)
        bucket = self.buckets.get((low, high))
        squares = bucket.squares if bucket else 0.0
        windows = bucket.windows if bucket else 0.0
        variance = (PRIOR_OBSERVATIONS * prior + squares) / (PRIOR_OBSERVATIONS + windows)
        return min(math.sqrt(variance), mean - low, high - mean)

    def _remember_spread(self, points: Sequence[Point]) -> None:
        weight = sum(point.weight for point in points)
        mean = sum(point.weight * point.length for point in points) / weight
        if mean > 0:
            variance = sum(p.weight * (p.length - mean) ** 2 for p in points) / weight
            self.relative_variance = variance / mean**2


def spread_out(count: float, total: float, relative_variance: float) -> list[Point]:
    """Return points for `count` requests of which only the sum of lengths is known."""
    if count <= 0 or total <= 0:
        return []
    mean = total / count
    # The variance around the mean of the same few requests is smaller.
    share = math.sqrt(max(0.0, relative_variance) * max(0.0, 1 - 1 / count))
    if share == 0:
        return [Point(count, mean)]
    # A short and a long kind, with the given variance and no length below zero.
    short = mean * (1 - min(share, 1.0)) if share <= 1 else 0.0
    if share <= 1:
        return [Point(count / 2, short), Point(count / 2, mean * (1 + share))]
    long_share = 1 / (1 + share * share)
    return [Point(count * (1 - long_share), 0.0), Point(count * long_share, mean / long_share)]


def paired(
    first: Sequence[Point], second: Sequence[Point]
) -> list[tuple[float, float, float]]:
    """Return (weight, first, second) with the longest of one belonging to the longest of the other."""
    pairs: list[tuple[float, float, float]] = []
    left = sorted(first, key=lambda point: point.length)
    right = sorted(second, key=lambda point: point.length)
    i = j = 0
    left_rest = left[0].weight if left else 0.0
    right_rest = right[0].weight if right else 0.0
    while i < len(left) and j < len(right):
        weight = min(left_rest, right_rest)
        if weight > 0:
            pairs.append((weight, left[i].length, right[j].length))
        left_rest -= weight
        right_rest -= weight
        if left_rest <= 1e-9:
            i += 1
            left_rest = left[i].weight if i < len(left) else 0.0
        if right_rest <= 1e-9:
            j += 1
            right_rest = right[j].weight if j < len(right) else 0.0
    return pairs


def _occupied(buckets: Buckets) -> list[tuple[float, float, float]]:
    """(low, high, count) of the buckets that hold something."""
    occupied, low = [], 0.0
    for bound, count in zip(buckets.bounds, buckets.counts, strict=True):
        if count > 0:
            high = bound if math.isfinite(bound) else max(1.0, low) * OPEN_BUCKET_FACTOR
            occupied.append((low, high, count))
        low = bound
    return occupied


def _with_sum(
    occupied: Sequence[tuple[float, float, float]],
    expected: Sequence[float],
    mobility: Sequence[float],
    total: float,
) -> list[float]:
    """Move means towards a bound of their buckets until they add up to `total`.

    First those that move most easily (of which the least was learned); what is then still missing
    is shared by the room that is left.
    """
    means = list(expected)
    for weights in (mobility, [1.0] * len(means)):
        missing = total - sum(
            count * mean for (_low, _high, count), mean in zip(occupied, means, strict=True)
        )
        rooms = [
            (high if missing > 0 else low) - mean
            for (low, high, _count), mean in zip(occupied, means, strict=True)
        ]
        capacity = sum(
            count * room * weight
            for (_low, _high, count), room, weight in zip(occupied, rooms, weights, strict=True)
        )
        if capacity:
            share = missing / capacity
            means = [
                mean + room * min(1.0, share * weight)
                for mean, room, weight in zip(means, rooms, weights, strict=True)
            ]
    return means
