import threading
import time
from collections.abc import Callable


class RateLimiter:
    """A token bucket: `burst` requests at once, then one each `interval_seconds`."""

    def __init__(
        self, interval_seconds: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_seconds = interval_seconds
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._counted_at = clock()

    def allows(self) -> bool:
        """Take a token; False when there is none."""
        with self._lock:
            now = self._clock()
            earned = (now - self._counted_at) / self._interval_seconds
            self._tokens = min(float(self._burst), self._tokens + earned)
            self._counted_at = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True
