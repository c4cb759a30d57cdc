"""Request lengths: represents an engine's histograms by a few points.

Attention costs grow with the square of a length, so a mean is not enough: 90 % of prompts at 500
tokens and 10 % at 32,000 need nine times the attention of as many prompts of their mean length. The
buckets and the sum of a histogram, and what was learned about each bucket in earlier windows, give
a better estimate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from exporter.inference.reading import Buckets


# The weight, in windows, of the prior spread of a bucket in which no requests were seen yet.
PRIOR_WINDOWS = 2.0
# The trust in what was learned about a bucket decays by this much per window: traffic changes.
FORGETTING = 0.98
# The number of requests from which a window's densities are meaningful.
FEWEST_FOR_DENSITY = 12
# A last bucket without an upper bound is assumed to reach this many times its lower bound.
OPEN_BUCKET_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class Point:
    """`weight` requests of about `length` tokens."""

    weight: float
    length: float
    # The number of the bucket that it represents; -1 without one.
    bucket: int = -1


@dataclass(slots=True)
class _Bucket:
    """The estimate of the lengths within one bucket."""

    low: float
    high: float
    mean: float
    # Whether a reading has moved the mean; until then, it follows the densities.
    learned: bool = False

    def spread(self, mean: float) -> float:
        """Variance of the lengths if only their mean is known.

        That of the most even distribution over the bucket with this mean (a cut-off exponential
        one; within 5 % of its variance).
        """
        position = min(1.0, max(0.0, (mean - self.low) / (self.high - self.low)))
        return (self.high - self.low) ** 2 / 12 * (4 * position * (1 - position)) ** 2

    def follow(self, slope: float | None) -> None:
        """Until more is known about the mean, assume that the density changes linearly."""
        if slope is not None and not self.learned:
            self.mean = self.low + (self.high - self.low) * (0.5 + slope)


Key = tuple[float, float]


@dataclass(slots=True)
class LengthModel:
    """Learns the distribution of one length from windows. Owned by one model's records.

    A Kalman filter over the means within the buckets. Its single observation per window is the sum
    of lengths: the sum of the means, weighted by their counts, plus noise, which is the spread of
    that many lengths. The filter learns the noise level from the errors of its forecasts.
    """

    buckets: dict[Key, _Bucket] = field(default_factory=dict)
    # Covariance of the estimates of two means; without an entry, 0.
    covariances: dict[tuple[Key, Key], float] = field(default_factory=dict)
    # The spread within buckets over that of an even distribution, and its number of windows.
    evenness: float = 1.0
    windows: float = PRIOR_WINDOWS
    # Variance over the squared mean, for recently ended requests.
    relative_variance: float = 0.0

    def points(self, total: float | None, count: float, buckets: Buckets | None) -> list[Point]:
        """Return points for `count` requests with `total` tokens together.

        With one request, or without buckets, the mean represents all. If `total` is None, it is
        estimated from the buckets.
        """
        if count <= 0:
            return []
        occupied = self._occupied(buckets) if buckets is not None else []
        if total is None and not occupied:
            return []
        if total is not None and (count <= 1 or not occupied):
            self._learn(occupied, total)
            return [Point(count, total / count)]
        means = [bucket.mean for bucket, _number in occupied]
        if total is not None:
            self._learn(occupied, total)
            means = self._with_sum(occupied, total)
        points: list[Point] = []
        for position, ((bucket, number), mean) in enumerate(zip(occupied, means, strict=True)):
            # The sum fixes the mean of these few requests, so the variance around it is smaller.
            variance = self.evenness * bucket.spread(mean) * max(0.0, 1 - 1 / number)
            spread = math.sqrt(max(0.0, min(variance, (mean - bucket.low) * (bucket.high - mean))))
            if spread > 0:
                points += [
                    Point(number / 2, mean - spread, position),
                    Point(number / 2, mean + spread, position),
                ]
            else:
                points.append(Point(number, mean, position))
        self._remember_spread(points)
        return points

    def _occupied(self, buckets: Buckets) -> list[tuple[_Bucket, float]]:
        """The nonempty buckets with their counts."""
        occupied, low = [], 0.0
        for position, (bound, count) in enumerate(zip(buckets.bounds, buckets.counts, strict=True)):
            if count > 0:
                high = bound if math.isfinite(bound) else max(1.0, low) * OPEN_BUCKET_FACTOR
                key = (low, high)
                if key not in self.buckets:
                    self.buckets[key] = _Bucket(low, high, _even_mean(low, high))
                    self.covariances[key, key] = (high - low) ** 2 / 12
                self.buckets[key].follow(_slope(buckets, position))
                occupied.append((self.buckets[key], count))
            low = bound
        return occupied

    def _learn(self, occupied: Sequence[tuple[_Bucket, float]], total: float) -> None:
        """Move the estimates towards values that match the sum."""
        if not occupied:
            return
        counts = {(bucket.low, bucket.high): count for bucket, count in occupied}
        missing = total - sum(count * bucket.mean for bucket, count in occupied)
        noise = self.evenness * sum(
            count * bucket.spread(bucket.mean) for bucket, count in occupied
        )
        shared = {
            key: sum(
                count * self.covariances.get((key, other), 0.0) for other, count in counts.items()
            )
            for key in self.buckets
        }
        prior = sum(count * shared[key] for key, count in counts.items())
        if prior + noise <= 0:
            return
        misfit = min(4.0, missing**2 / (prior + noise))
        self.evenness += self.evenness * (misfit - 1) / (self.windows + 1)
        self.evenness = min(1.0, max(0.0, self.evenness))
        self.windows = min(1 / (1 - FORGETTING), self.windows + 1)
        for key, bucket in self.buckets.items():
            moved = bucket.mean + shared[key] / (prior + noise) * missing
            bucket.mean = min(bucket.high, max(bucket.low, moved))
            bucket.learned = bucket.learned or key in counts
            for other in self.buckets:
                left = self.covariances.get((key, other), 0.0) - shared[key] * shared[other] / (
                    prior + noise
                )
                self.covariances[key, other] = left / FORGETTING
            widest = (bucket.high - bucket.low) ** 2 / 12
            self.covariances[key, key] = min(widest, max(0.0, self.covariances[key, key]))

    def _with_sum(self, occupied: Sequence[tuple[_Bucket, float]], total: float) -> list[float]:
        """Return the most likely mean in each bucket, given that all lengths add up to `total`.

        The uncertainty of a mean grows with the width of its bucket. No mean leaves its bucket.
        """
        means = [bucket.mean for bucket, _count in occupied]
        variances = [bucket.spread(bucket.mean) + 1e-6 for bucket, _count in occupied]
        for _ in range(len(means) + 1):
            missing = total - sum(c * mean for (_b, c), mean in zip(occupied, means, strict=True))
            free = [
                position
                for position, (bucket, _count) in enumerate(occupied)
                if (means[position] < bucket.high if missing > 0 else means[position] > bucket.low)
            ]
            capacity = sum(occupied[position][1] * variances[position] for position in free)
            if not capacity or abs(missing) < 1e-9 * max(1.0, total):
                return means
            for position in free:
                bucket = occupied[position][0]
                moved = means[position] + missing / capacity * variances[position]
                means[position] = min(bucket.high, max(bucket.low, moved))
        return means

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
    # One short and one long length, with the given variance and neither below zero.
    if share <= 1:
        return [Point(count / 2, mean * (1 - share)), Point(count / 2, mean * (1 + share))]
    long_share = 1 / (1 + share * share)
    return [Point(count * (1 - long_share), 0.0), Point(count * long_share, mean / long_share)]


def joined(points: Sequence[Point]) -> list[Point]:
    """Return the points with each pair from one bucket (see `LengthModel.points`) merged."""
    merged: list[Point] = []
    for point in points:
        if merged and merged[-1].weight == point.weight and merged[-1].bucket == point.bucket:
            last = merged.pop()
            length = (last.length + point.length) / 2
            merged.append(Point(2 * point.weight, length, point.bucket))
        else:
            merged.append(point)
    return merged


def paired(first: Sequence[Point], second: Sequence[Point]) -> list[tuple[float, float, float]]:
    """Return (weight, first, second), pairing the longest of one with the longest of the other."""
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


def _even_mean(low: float, high: float) -> float:
    """Mean of a log-uniform distribution, the prior for lengths."""
    if low <= 0:
        return high if high <= 1 else (low + high) / 2
    return (high - low) / math.log(high / low)


def _slope(buckets: Buckets, position: int) -> float | None:
    """The offset of a bucket's mean from its middle, in widths, if the density is linear.

    Derived from the densities of its neighbours. A linear density that is nowhere negative moves
    the mean by at most a sixth of the width.
    """
    if sum(buckets.counts) < FEWEST_FOR_DENSITY or not math.isfinite(buckets.bounds[position]):
        return None
    edges = (0.0, *buckets.bounds)

    def density(place: int) -> float:
        if place < 0 or place >= len(buckets.counts) or not math.isfinite(edges[place + 1]):
            return 0.0
        return buckets.counts[place] / (edges[place + 1] - edges[place])

    slope = (density(position + 1) - density(position - 1)) / (12 * density(position))
    return max(-1 / 6, min(1 / 6, slope))
