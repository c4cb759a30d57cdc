"""What the sampling threads need to know of the configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Intervals in seconds. `deadline` is how long a driver call may take before it counts as hung."""

    interval: float = 1.0
    slow_interval: float = 15.0
    deadline: float = 2.0

    @property
    def max_window(self) -> float:
        """The longest span that counts as watched: a missed tick is, a hung call is not."""
        return 2 * self.interval + self.deadline

    @property
    def max_age(self) -> float:
        """How long a tick's values are shown when no newer tick follows."""
        return 2 * self.interval + self.deadline
