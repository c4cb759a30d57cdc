"""The probes' budget per device: charged in advance for the worst case, refunded if less was used.

Two windows bound it. Over any interval, a run may start only if earlier charges plus its allowance
fit the usable part of the budget (the window is four fifths of an interval, so that a cycle that
starts slightly early still has its budget). Over any hour (or interval, if that is longer), it may
start only if the sum stays within the budget even if it hangs until the worker is killed. The
second bound reduces the first slightly: one chunk deadline per hour is kept in reserve.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


HOUR_SECONDS: Final = 3600.0
# The reserve for a hung chunk may take this much of an hour's budget at most.
RESERVE_SHARE_MAX: Final = 0.25
INTERVAL_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """The limits that follow from a budget, all in seconds."""

    interval_seconds: float
    horizon_seconds: float
    horizon_budget_seconds: float
    usable_seconds: float
    """What an interval may spend, the reserve taken off."""
    chunk_deadline_seconds: float
    """Never longer than the reserve; shorter than configured under a very small budget."""


def limits(interval: float, budget: float, chunk_deadline: float) -> BudgetLimits:
    """The limits for a budget of `budget` seconds per `interval` seconds."""
    horizon = max(HOUR_SECONDS, interval)
    # Whole intervals only: an hour of 3.5 intervals gets the budget of 3.
    intervals = int(horizon / interval + 1e-9)
    total = intervals * budget
    reserve = min(chunk_deadline, RESERVE_SHARE_MAX * total)
    return BudgetLimits(interval, horizon, total, (total - reserve) / intervals, reserve)


@dataclass(slots=True)
class Charge:
    """Device time that was used, or may be used, at one moment."""

    at: float
    seconds: float


class Ledger:
    """The charges of one device over the last hour, on the monotonic clock. Not thread-safe."""

    def __init__(self, bounds: BudgetLimits) -> None:
        self.limits = bounds
        self._charges: deque[Charge] = deque()

    def restore(self, charges: Iterable[tuple[float, float]]) -> None:
        """Restore charges (at, seconds) from before a restart of the daemon."""
        merged = sorted(itertools.chain(self.charges(), charges))
        self._charges = deque(Charge(at, seconds) for at, seconds in merged)

    def forget_old(self, now: float) -> None:
        """Drop charges that no window can reach any more."""
        # Twice the horizon, so that an interval widened at a reload still finds its past charges.
        while self._charges and self._charges[0].at < now - 2 * self.limits.horizon_seconds:
            self._charges.popleft()

    def charges(self) -> tuple[tuple[float, float], ...]:
        """All charges (at, seconds) still kept, oldest first."""
        return tuple((charge.at, charge.seconds) for charge in self._charges)

    def spent(self, now: float, window_seconds: float) -> float:
        """Seconds charged within the last `window_seconds`."""
        return sum(c.seconds for c in self._charges if c.at > now - window_seconds)

    def allowance(self, now: float, credit: float = 0.0) -> float:
        """The longest device time that a run may use now; 0 if it must wait.

        `credit` may be spent on top of one interval's budget. The hourly bound still holds.
        """
        bounds = self.limits
        in_interval = (
            bounds.usable_seconds
            + credit
            - self.spent(now, INTERVAL_SHARE * bounds.interval_seconds)
        )
        in_horizon = (
            bounds.horizon_budget_seconds
            - self.spent(now, bounds.horizon_seconds)
            - bounds.chunk_deadline_seconds
        )
        return max(0.0, min(in_interval, in_horizon))

    def precharge(self, now: float, allowance: float) -> Charge:
        """Charge the worst case of a run: its allowance plus a chunk that hangs."""
        self.forget_old(now)
        charge = Charge(now, allowance + self.limits.chunk_deadline_seconds)
        self._charges.append(charge)
        return charge

    def settle(self, charge: Charge, now: float, seconds: float) -> None:
        """Replace a pre-charge with the device time actually used, dated to the run's end."""
        charge.at, charge.seconds = now, seconds

    def add(self, now: float, seconds: float) -> None:
        """Charge device time that had no pre-charge (opening a device)."""
        self.forget_old(now)
        self._charges.append(Charge(now, seconds))
