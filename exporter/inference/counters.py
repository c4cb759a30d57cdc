"""What an engine counted since the last scrape, over its restarts, nothing counted twice."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from exporter.inference.exposition import Sample


Key = tuple[str, tuple[tuple[str, str], ...]]

# Series remembered per engine. An engine has some hundred; one with more is making them up, and the
# ones seen longest ago are forgotten.
LARGEST_SERIES_COUNT = 10_000
# Processes remembered behind one address: the replicas behind a load balancer.
LARGEST_PROCESS_COUNT = 32
# Two processes that restart within this much of each other's clocks are told apart no more.
CLOCK_TOLERANCE_SECONDS = 1.0
# A process that tells no start time and whose counters fell is taken for a new one after it
# answered so many scrapes in a row; until then it may be another replica behind the same address.
CONFIRMING_SCRAPES = 8


@dataclass(slots=True)
class _Process:
    """The counters of one process. `pending` is what it had counted when it was first seen."""

    last: dict[Key, float] = field(default_factory=dict)
    pending: dict[Key, float] = field(default_factory=dict)
    scrapes: int = 0
    seen_in_a_row: int = 0


class CounterTracker:
    """Follows every counter series of one engine. Not thread-safe: one scraper owns it.

    What an engine counted before we first saw it is not ours. A series that appears later began
    at zero, for engines create them on first use; one that comes back goes on where it was.

    `epoch` is the start time of the process that answered. A process that began after the previous
    scrape is a restart: all that it counted is new. One that began earlier was running all along,
    behind a load balancer: its past is not ours either, and each process is followed on its own.
    Where an engine tells no start time, most counters must have fallen for another process, and
    either a scrape failed in between (it was restarted) or it must answer for a while.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._processes: dict[float | int, _Process] = {}
        self._current: float | int | None = None
        self._complete = False
        self._unnamed = 0
        # Restarts and other changes of the process that answers: the requests in flight are others.
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
        """Return `samples`, the value of each counter replaced by its increase since last time.

        `complete` False says that lines were lost: a series that appears after such a scrape may
        be an old one, so its history is not taken for news. `previous_scrape` is the wall-clock
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
            process.last[key] = process.last.pop(key)  # the ones seen most recently at the end
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
        """Return the process that answered, and whether a new one counted from zero for us."""
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

        Of several that they may continue, the one that they have moved least from.
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
        """What a process had counted when it was first seen, once it is sure to be a new one."""
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
        # The same process: a flaw of the engine's. Without a start time, this series restarted alone.
        return 0.0 if epoch is not None else value


def _key(sample: Sample) -> Key:
    return (sample.name, tuple(sorted(sample.labels.items())))


def _fell(before: dict[Key, float], now: dict[Key, float]) -> bool:
    """Whether most counters that had counted something now say less: another process's."""
    counted = [(value, now[key]) for key, value in before.items() if value > 0 and key in now]
    return sum(after < value for value, after in counted) * 2 > len(counted)
