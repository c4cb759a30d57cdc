"""What an engine counted since the last scrape, over its restarts, nothing counted twice."""

from collections.abc import Collection, Iterable

from exporter.inference.exposition import Sample


Key = tuple[str, tuple[tuple[str, str], ...]]

# Series remembered per engine. An engine has some dozen; one with more is making them up, and the
# ones seen longest ago are forgotten.
LARGEST_SERIES_COUNT = 10_000


class CounterTracker:
    """Follows every counter series of one engine. Not thread-safe: one scraper owns it.

    What an engine counted before we first saw it is not ours. A series that appears later began
    at zero, for engines create them on first use; one that comes back goes on where it was. A new
    `epoch` (start time of the process) is a restart: all that the new process counted is new.
    Where an engine tells no epoch, a value that fell restarted alone; where it tells the same one,
    a value that fell is a flaw of the engine's, and counts for nothing.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._last: dict[Key, float] = {}
        self._epoch: float | None = None
        self._started = False
        self._complete = False
        self.restarts = 0

    def update(
        self, samples: Iterable[Sample], epoch: float | None = None, *, complete: bool = True
    ) -> tuple[Sample, ...]:
        """Return `samples`, the value of each counter replaced by its increase since last time.

        `complete` False says that lines were lost: a series that appears after such a scrape may
        be an old one, so its history is not taken for news.
        """
        same_process = epoch is not None and epoch == self._epoch
        if self._started and epoch is not None and self._epoch is not None and not same_process:
            self.restarts += 1
            self._last.clear()
        self._epoch = epoch
        increases = tuple(
            sample._replace(value=self._increase(sample, same_process=same_process))
            if sample.name in self._names
            else sample
            for sample in samples
        )
        self._started, self._complete = True, complete
        while len(self._last) > LARGEST_SERIES_COUNT:
            del self._last[next(iter(self._last))]
        return increases

    def _increase(self, sample: Sample, *, same_process: bool) -> float:
        key: Key = (sample.name, tuple(sorted(sample.labels.items())))
        value = max(0.0, sample.raw)
        before = self._last.pop(key, None)
        self._last[key] = value  # and thereby the one seen most recently
        if before is None:
            return value if self._started and self._complete else 0.0
        if value >= before:
            return value - before
        if same_process:
            return 0.0
        self.restarts += 1
        return value
