"""Counters that never decrease, even if the device restarts its own."""

from bisect import bisect_left
from dataclasses import dataclass
from math import inf


# Upper bounds of the buckets of the histograms that the exporter keeps: shares of the peak, and seconds.
TICK_UTILIZATION_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TICK_DURATION_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class DeviceCounter:
    """Follows a counter of the device, and stays monotonic when the device restarts it.

    The first reading is the value, unless something was added before; then it is only the base of
    the next one. A reading below the last one means that the device was reset or the driver
    reloaded: what it counted meanwhile was not seen and is not counted.
    """

    __slots__ = ("_last", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self._last: float | None = None

    @property
    def followed(self) -> bool:
        """Whether the device has ever reported its counter."""
        return self._last is not None

    def add(self, amount: float) -> None:
        """Add an amount known from elsewhere, as long as the device does not count itself."""
        self.value = (self.value or 0.0) + amount

    def follow(self, reading: float | None) -> None:
        """Take the device's next reading; None changes nothing."""
        if reading is None:
            return
        if self.value is None:
            self.value = reading
        elif self._last is not None and reading > self._last:
            self.value += reading - self._last
        self._last = reading


class SpanCounter:
    """A counter with two sources that come and go: the device's own, and sums over spans of time.

    It never falls, and no instant is counted twice: what the device's counter has covered is
    deducted from a span, and after a span the device's next reading is only a new base.
    """

    __slots__ = ("_counted_until", "_last", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self._last: float | None = None
        self._counted_until = -inf

    def follow(self, reading: float, at_seconds: float) -> None:
        """Take the device's own counter as of an instant."""
        if self.value is None:
            self.value = reading
            self._counted_until = at_seconds
        elif self._last is not None:
            self.value += max(0.0, reading - self._last)
            self._counted_until = at_seconds
        self._last = reading

    def add(self, amount: float, start_seconds: float, end_seconds: float) -> None:
        """Add the amount of a span, spread evenly over it."""
        begin = max(start_seconds, self._counted_until)
        if end_seconds <= begin:
            return
        share = (end_seconds - begin) / (end_seconds - start_seconds)
        self.value = (self.value or 0.0) + share * amount
        self._counted_until = end_seconds
        self._last = None


@dataclass(frozen=True, slots=True)
class HistogramValue:
    """A histogram at one instant. `counts` has one entry per bound and one for +Inf, not cumulative."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)


class Histogram:
    """Counts observations by upper bound."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation; a value equal to a bound belongs to that bound's bucket."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def value(self) -> HistogramValue:
        """The histogram as it is now."""
        return HistogramValue(self._bounds, tuple(self._counts), self._total)
