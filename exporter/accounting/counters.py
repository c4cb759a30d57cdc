"""Counters that only grow, whatever the device does."""

from bisect import bisect_left
from dataclasses import dataclass


# Upper bounds of the buckets of the histograms that the exporter keeps: shares of the peak, and seconds.
TICK_UTILIZATION_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TICK_DURATION_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class DeviceCounter:
    """Follows a counter of the device, and stays monotonic when the device starts it anew.

    The first reading is taken as it is. A reading below the last one means that the device was
    reset or the driver reloaded: what it counted meanwhile was not seen and is not counted.
    """

    __slots__ = ("_last", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self._last: float | None = None

    def follow(self, reading: float | None) -> None:
        """Take the device's next reading; None changes nothing."""
        if reading is None:
            return
        if self.value is None or self._last is None:
            self.value = max(reading, self.value or 0.0)
        elif reading > self._last:
            self.value += reading - self._last
        self._last = reading


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
