"""Baselines: the best performance seen on a device, per kernel and software versions."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta


# With five rounds, one slow or lucky measurement does no harm.
WINDOW: Final = 5
SHAPE_LENGTH_MAX: Final = 3

# Plausible values in a state file: anything else means that it is corrupt.
Size = Annotated[int, Meta(ge=1, le=2**40)]
Shape = Annotated[tuple[Size, ...], Meta(min_length=1, max_length=SHAPE_LENGTH_MAX)]
Speed = Annotated[float, Meta(gt=0, le=1e18)]
Seconds = Annotated[float, Meta(ge=0, le=3600)]


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The best median of five this device has reached with this kernel and these versions."""

    versions: str
    shape: Shape
    digest: str = ""
    """Of the first result's bits, which every later one must have."""
    best: Speed | None = None
    recent: tuple[Speed, ...] = ()
    higher_is_better: bool = True
    device_seconds: Seconds | None = None
    """What one run of the kernel last took: the next one's expected cost."""

    @property
    def value(self) -> float | None:
        """The reference: the best full window's median; before one is full, the median so far."""
        if self.best is not None:
            return self.best
        return _median(self.recent) if self.recent else None

    @property
    def established(self) -> bool:
        """Whether a full window was seen."""
        return self.best is not None

    def ratio(self, measured: float) -> float | None:
        """`measured` over the baseline; None without a baseline."""
        reference = self.value
        return measured / reference if reference else None

    def with_measurement(self, measured: float) -> "Baseline":
        """The baseline after one more accepted measurement."""
        recent = (*self.recent, measured)[-WINDOW:]
        best = self.best
        if len(recent) == WINDOW:
            median = _median(recent)
            better = max if self.higher_is_better else min
            best = median if best is None else better(best, median)
        return msgspec.structs.replace(self, recent=recent, best=best)


def _median(values: tuple[float, ...]) -> float:
    import statistics  # takes 1 MB, which a daemon without probes saves

    return statistics.median(values)
