"""Levers: changes that would raise a workload's throughput or lower its cost, with predictions."""

from dataclasses import dataclass
from typing import Final

from flopwatch.option_parsers import duration
from flopwatch.options import option


_OBSERVATION_SHARE: Final = 0.05  # time between observations of the State, as a share of the window


@dataclass(frozen=True, slots=True)
class AdviceSettings:
    """The window that advice rests on, and how long a change must be stable to be compared."""

    window_seconds: float = option(
        "advice.window",
        duration(at_least=5.0, at_most=3600.0),
        300.0,
        "Length of the window that advice is based on. Shorter windows react sooner but are noisier.",
        "5m",
        reload=False,
    )
    stable_seconds: float = option(
        "advice.stable",
        duration(at_least=5.0, at_most=3600.0),
        600.0,
        "How long a change must be stable before its prediction is compared with the result.",
        "10m",
        reload=False,
    )

    @property
    def observation_seconds(self) -> float:
        """Time from one observation of the State to the next."""
        return _OBSERVATION_SHARE * self.window_seconds
