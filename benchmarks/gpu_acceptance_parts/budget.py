"""Time boxes: what each part may take, and what no longer fits."""

import time
from collections.abc import Callable, Sequence


# Reserved for ending processes and writing the results.
RESERVE_SECONDS = 15.0


def share_out(left_seconds: float, weights: Sequence[float]) -> float:
    """Seconds for the first of the remaining parts; unused time goes to the later ones."""
    return max(0.0, left_seconds) * weights[0] / sum(weights)


class TimeBox:
    """An end in time."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left_seconds(self) -> float:
        """What remains, 0 at least."""
        return max(0.0, self._end - self._clock())

    def fits(self, seconds: float) -> bool:
        """Whether something that takes this long ends in time."""
        return seconds <= self.left_seconds
