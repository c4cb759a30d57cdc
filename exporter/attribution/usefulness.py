"""Compares each engine's executed FLOP with the useful and wasted ones. Pure.

An engine's executed FLOP are those charged to its holder on each of its devices. They are known
only if that holder is charged for nothing else: no other engine on the device, and no assumed share
(basis `equal`). Useful FLOP come from the engine's tokens; both are compared between scrapes of the
engine, over windows of a minute.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from exporter.attribution.ledger import Charges, Holder, WorkloadUse
from exporter.findings import limit
from exporter.inference.snapshot import WorkloadSnapshot


WINDOW_SECONDS = 60.0
# The windows that a judgement needs and uses.
RECENT_WINDOWS = 10
USUAL_SECONDS = 6 * 3600.0
# Windows before those that are needed to know the usual share.
LEAST_USUAL_WINDOWS = 30
# A useful share far below the usual one becomes the usual one only after this long.
LONGEST_FALL_SECONDS = 14 * 86_400.0
# Below this a GPU did almost nothing in the window, and the probes may account for most of it.
_LEAST_FLOP_PER_SECOND = 1e9
# Workloads that are no longer listed are forgotten after this time.
_FORGET_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Needed:
    """FLOP that an engine's tokens needed so far: useful FLOP, and all that are explained.

    `explained` is useful FLOP plus those that the engine counts as wasted.
    """

    useful: float
    explained: float


@dataclass(frozen=True, slots=True)
class _Window:
    seconds: float
    executed: float
    useful: float
    explained: float


@dataclass(slots=True)
class _Record:
    executed: float = 0.0
    known: bool = False
    # By device: the holder, and its charges when last seen.
    charged: dict[str, tuple[Holder, float]] = field(default_factory=dict)
    scraped_at: float | None = None
    # The start of the present window: monotonic time, executed FLOP, and needed FLOP.
    start: tuple[float, float, Needed] | None = None
    recent: deque[_Window] = field(default_factory=deque)
    usual_useful: float = 0.0
    usual_executed: float = 0.0
    usual_windows: int = 0
    fallen_seconds: float = 0.0
    seen_at: float = 0.0

    def usual(self) -> float | None:
        if self.usual_windows < LEAST_USUAL_WINDOWS or self.usual_executed <= 0:
            return None
        return self.usual_useful / self.usual_executed


class UsefulnessLedger:
    """Keeps the usefulness records of the engines. Used by one thread at a time."""

    def __init__(self) -> None:
        self._totals: dict[str, _Record] = {}

    def enter(
        self,
        workload: WorkloadSnapshot,
        holders: Mapping[str, Holder] | None,
        charges: Mapping[str, Charges],
        now: float,
    ) -> WorkloadUse:
        """Record a workload's charges and reports at `now`, in monotonic seconds.

        `holders` are its holders on each of its devices, by UUID; None if one of them is not known.
        """
        totals = self._totals.setdefault(workload.name, _Record())
        totals.seen_at = now
        self._add_executed(totals, holders, charges)
        needed = needed_by(workload) if totals.known else None
        if needed is None:
            totals.start = None
        elif totals.scraped_at != workload.last_success_timestamp_seconds:
            totals.scraped_at = workload.last_success_timestamp_seconds
            _scraped(totals, needed, now)
        return _use(totals, needed)

    def forget_others(self, now: float) -> None:
        """Drop the records of workloads that were not updated for an hour."""
        for name, totals in list(self._totals.items()):
            if now - totals.seen_at > _FORGET_SECONDS:
                del self._totals[name]

    @staticmethod
    def _add_executed(
        totals: _Record, holders: Mapping[str, Holder] | None, charges: Mapping[str, Charges]
    ) -> None:
        flop: dict[str, tuple[Holder, float]] = {}
        for uuid, holder in (holders or {}).items():
            account = charges[uuid].accounts.get(holder) if uuid in charges else None
            if account is not None and account.flop is not None:
                flop[uuid] = holder, account.flop
        known = bool(holders) and len(flop) == len(holders or {})
        for uuid, (holder, total) in flop.items():
            before = totals.charged.get(uuid)
            if before is not None and before[0] == holder:
                totals.executed += max(0.0, total - before[1])
            else:
                known = False  # from here on
        totals.charged = flop
        if not known or not totals.known:
            totals.start = None
        totals.known = known


def needed_by(workload: WorkloadSnapshot) -> Needed | None:
    """FLOP needed by the tokens of all its models; None unless known for every model."""
    useful = explained = 0.0
    for model in workload.models:
        if model.prefill_flop is None or model.decode_flop is None or not model.all_gpus_here:
            return None
        flop = model.prefill_flop + model.decode_flop
        wasted = model.wasted_flop
        useful += flop - wasted.get("lost_cache_hits", 0.0)
        explained += flop + wasted.get("preemption", 0.0) + wasted.get("rejected_drafts", 0.0)
    return Needed(useful, explained) if workload.up and workload.models else None


def _scraped(totals: _Record, needed: Needed, now: float) -> None:
    """The engine was scraped: start a window, or end one that is long enough."""
    if totals.start is None:
        totals.start = now, totals.executed, needed
        return
    began, executed, before = totals.start
    window = _Window(
        seconds=now - began,
        executed=totals.executed - executed,
        useful=needed.useful - before.useful,
        explained=needed.explained - before.explained,
    )
    if window.seconds < WINDOW_SECONDS:
        return
    totals.start = now, totals.executed, needed
    busy = window.executed >= _LEAST_FLOP_PER_SECOND * window.seconds
    if not busy or window.useful < 0 or window.explained <= 0:
        return
    totals.recent.append(window)
    recent = _ratio(totals.recent, "useful")
    usual = totals.usual()
    fallen = usual is not None and recent < limit("usefulDrop") * usual
    totals.fallen_seconds = totals.fallen_seconds + window.seconds if fallen else 0.0
    while len(totals.recent) > RECENT_WINDOWS:
        past = totals.recent.popleft()
        if fallen and totals.fallen_seconds < LONGEST_FALL_SECONDS:
            continue
        fade = math.exp(-past.seconds / USUAL_SECONDS)
        totals.usual_useful = totals.usual_useful * fade + past.useful
        totals.usual_executed = totals.usual_executed * fade + past.executed
        totals.usual_windows += 1


def _use(totals: _Record, needed: Needed | None) -> WorkloadUse:
    if not totals.known:
        return WorkloadUse()
    if needed is None or len(totals.recent) < RECENT_WINDOWS:
        return WorkloadUse(executed_flop=totals.executed)
    shares = [window.explained / window.executed for window in totals.recent]
    explained = _ratio(totals.recent, "explained")
    return WorkloadUse(
        executed_flop=totals.executed,
        useful_share=_ratio(totals.recent, "useful"),
        usual_useful_share=totals.usual(),
        explained_share=explained,
        explained_spread=(max(shares) - min(shares)) / explained,
    )


def _ratio(windows: Sequence[_Window] | deque[_Window], name: str) -> float:
    executed = sum(window.executed for window in windows)
    return float(sum(getattr(window, name) for window in windows)) / executed
