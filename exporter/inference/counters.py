"""Counter increases since an engine's last scrape, across restarts, without double counting."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from exporter.inference.exposition import Sample


Key = tuple[str, tuple[tuple[str, str], ...]]

# Series remembered per engine. An engine has about a hundred. Beyond the limit, the series seen
# longest ago are forgotten.
LARGEST_SERIES_COUNT = 10_000
# Processes remembered behind one address: the replicas behind a load balancer.
LARGEST_PROCESS_COUNT = 32
# Two processes whose start times are closer than this are not distinguished.
CLOCK_TOLERANCE_SECONDS = 1.0
# A process without a start time whose counters fell is taken as a new one after it answered this
# many scrapes in a row; until then it may be another replica behind the same address.
CONFIRMING_SCRAPES = 8


@dataclass(slots=True)
class _Process:
    """The counters of one process. `pending` holds its counters when it was first seen."""

    last: dict[Key, float] = field(default_factory=dict)
    pending: dict[Key, float] = field(default_factory=dict)
    scrapes: int = 0
    seen_in_a_row: int = 0


class CounterTracker:
    """Follows every counter series of one engine. Not thread-safe: one scraper owns it.

    Counts from before the engine was first seen are not included. A series that appears later began
    at zero, because engines create them on first use; a series that comes back continues from its
    last value.

    `epoch` is the start time of the process that answered. A process that began after the previous
    scrape is a restart: all that it counted is new. One that began earlier was already running
    behind a load balancer: its past counts are not included either, and each process is tracked
    separately. If an engine reports no start time, a different process is assumed only if most
    counters have fallen, and either a scrape failed in between (a restart) or the process has
    answered for a while.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._processes: dict[float | int, _Process] = {}
        self._current: float | int | None = None
        self._complete = False
        self._unnamed = 0
        # Restarts and other changes of the answering process: the requests in flight are different
        # ones.
        self.restarts = 0
        self.switches = 0

    def update(
        self,
        samples: Iterable[Sample],
        epoch: float | None = None,
        *,
        complete: bool = True,
        previous_scrape: float | None = None,
        failed_between: bool = False,
    ) -> tuple[Sample, ...]:
        """Return `samples` with each counter replaced by its increase since the last call.

        `complete` False means that lines were lost: a series that appears after such a scrape may
        be an old one, so its history is not counted as new. `previous_scrape` is the wall-clock
        time of the previous successful scrape, `failed_between` whether one failed since.
        """
        found = tuple(samples)
        values: dict[Key, float] = {}
        for sample in found:
            if sample.name in self._names:
                values[_key(sample)] = max(0.0, sample.raw)
        process, counts_from_zero = self._process(values, epoch, previous_scrape, failed_between)
        confirmed = self._confirm(process)
        increases = tuple(
            sample._replace(
                value=self._increase(process, _key(sample), values, epoch, counts_from_zero)
                + confirmed.pop(_key(sample), 0.0)
            )
            if sample.name in self._names
            else sample
            for sample in found
        )
        for key in values:
            process.last[key] = process.last.pop(key)  # most recently seen at the end
        while len(process.last) > LARGEST_SERIES_COUNT:
            del process.last[next(iter(process.last))]
        while len(self._processes) > LARGEST_PROCESS_COUNT:
            del self._processes[next(iter(self._processes))]
        self._complete = complete
        return increases

    def _process(
        self,
        values: dict[Key, float],
        epoch: float | None,
        previous_scrape: float | None,
        failed_between: bool,
    ) -> tuple[_Process, bool]:
        """Return the answering process, and whether it is a new one that counts from zero."""
        first = not self._processes
        name = float(epoch) if epoch is not None else self._unnamed_process(values)
        known = name in self._processes
        changed = self._current is not None and name != self._current
        if not known:
            self._processes[name] = _Process()
        elif changed:
            self._processes[name] = self._processes.pop(name)
        process = self._processes[name]
        fresh = False
        if not known and not first:
            if epoch is not None and not isinstance(self._current, int):
                fresh = previous_scrape is None or epoch > previous_scrape - CLOCK_TOLERANCE_SECONDS
            elif failed_between:
                fresh = True
            else:
                process.pending = dict(values)
        if changed:
            self.switches += 1
            process.seen_in_a_row = 0
        if fresh:
            self.restarts += 1
        process.scrapes += 1
        process.seen_in_a_row += 1
        self._current = name
        return process, fresh

    def _unnamed_process(self, values: dict[Key, float]) -> int:
        """The process without a start time whose counters these continue; else a new number.

        If several match, the one with the smallest increase.
        """
        candidates = {
            name: sum(values.get(key, value) - value for key, value in process.last.items())
            for name, process in self._processes.items()
            if isinstance(name, int) and not _fell(process.last, values)
        }
        if candidates:
            return min(candidates, key=lambda name: candidates[name])
        self._unnamed -= 1
        return self._unnamed

    def _confirm(self, process: _Process) -> dict[Key, float]:
        """The counters of a process when it was first seen, once it is certain to be a new one."""
        if not process.pending or process.seen_in_a_row < CONFIRMING_SCRAPES:
            return {}
        confirmed, process.pending = process.pending, {}
        self.restarts += 1
        return confirmed

    def _increase(
        self,
        process: _Process,
        key: Key,
        values: dict[Key, float],
        epoch: float | None,
        counts_from_zero: bool,
    ) -> float:
        value = values[key]
        before = process.last.get(key)
        process.last[key] = value
        if before is None:
            began_at_zero = process.scrapes > 1 and self._complete
            return value if counts_from_zero or began_at_zero else 0.0
        if value >= before:
            return value - before
        # The same process: a bug in the engine. Without a start time, only this series restarted.
        return 0.0 if epoch is not None else value


def _key(sample: Sample) -> Key:
    return (sample.name, tuple(sorted(sample.labels.items())))


def _fell(before: dict[Key, float], now: dict[Key, float]) -> bool:
    """Whether most nonzero counters have fallen, as for a different process."""
    counted = [(value, now[key]) for key, value in before.items() if value > 0 and key in now]
    return sum(after < value for value, after in counted) * 2 > len(counted)
