"""What must hold of every scrape, whatever the driver or the node does."""

import math
import time

from tests.daemon.process import DaemonProcess, Labels, Scrape


# The counters are those of the catalogue, plus sums and counts of histograms.
_COUNTER_SUFFIXES = ("_total", "_bucket", "_sum", "_count")
# A scrape may get the bytes of one from 0.2 s before, and a tick may just have ended.
_SLACK_SECONDS = 1.0

HEALTH = frozenset(
    {
        "flopwatch_finding",
        "flopwatch_finding_since_timestamp_seconds",
        "flopwatch_gpu_info",
        "flopwatch_gpu_reset_timestamp_seconds",
        "flopwatch_gpu_up",
        "flopwatch_source_up",
        "flopwatch_source_hung",
        "flopwatch_source_errors_total",
        "flopwatch_source_last_success_timestamp_seconds",
        "flopwatch_ticks_missed_total",
        "flopwatch_tick_duration_seconds_bucket",
        "flopwatch_tick_duration_seconds_sum",
        "flopwatch_tick_duration_seconds_count",
        "flopwatch_xid_errors_total",
        "flopwatch_xid_last_timestamp_seconds",
    }
)


class Witness:
    """Scrapes a daemon and compares every scrape with those before it."""

    def __init__(self, daemon: DaemonProcess, *, window_seconds: float = 0.0) -> None:
        """`window_seconds`: the longest window that may be accounted at once, when its tick ends."""
        self._daemon = daemon
        self._window_seconds = window_seconds
        self._counters: dict[tuple[str, Labels], float] = {}
        self._seconds: dict[str, tuple[float, float]] = {}

    def scrape(self) -> Scrape:
        """Scrape; fails if a counter decreased, time was counted twice, or a down GPU has readings."""
        before = time.monotonic()
        scrape = self._daemon.scrape()
        self._no_counter_fell(scrape)
        self._no_span_counted_twice(scrape, before, time.monotonic())
        self._nothing_stale(scrape)
        self._all_finite(scrape)
        return scrape

    def _no_counter_fell(self, scrape: Scrape) -> None:
        for (name, labels), value in scrape.samples.items():
            if name.startswith("flopwatch_") and name.endswith(_COUNTER_SUFFIXES):
                last = self._counters.get((name, labels), 0.0)
                assert value >= last, f"{name} {dict(labels)} fell from {last} to {value}"
                self._counters[name, labels] = value

    def _no_span_counted_twice(self, scrape: Scrape, before: float, after: float) -> None:
        """Since the first scrape, no GPU's states have grown by more than has passed."""
        gpus = {dict(labels)["gpu"] for labels in scrape.series("flopwatch_gpu_seconds_total")}
        for gpu in gpus:
            seconds = scrape.total("flopwatch_gpu_seconds_total", gpu=gpu)
            began, at_first = self._seconds.setdefault(gpu, (before, seconds))
            grown, passed = seconds - at_first, after - began
            allowed = passed + self._window_seconds + _SLACK_SECONDS
            assert grown <= allowed, f"GPU {gpu}: {grown} s counted in {passed} s"

    @staticmethod
    def _nothing_stale(scrape: Scrape) -> None:
        up = scrape.series("flopwatch_gpu_up")
        down = {dict(labels)["gpu"] for labels, value in up.items() if not value}
        for name, labels in scrape.samples:
            gpu = dict(labels).get("gpu")
            assert gpu not in down or name in HEALTH, f"{name} of GPU {gpu}, which is down"

    @staticmethod
    def _all_finite(scrape: Scrape) -> None:
        for (name, labels), value in scrape.samples.items():
            assert math.isfinite(value), f"{name} {dict(labels)} is {value}"

    def until(self, condition, seconds: float = 30.0) -> Scrape:
        """Scrape until the condition holds; every scrape on the way is checked."""
        found: list[Scrape] = []

        def check() -> bool:
            found[:] = [self.scrape()]
            return bool(condition(found[0]))

        self._daemon.wait_for(check, seconds)
        return found[0]

    def watch(self, seconds: float, every: float = 0.25) -> Scrape:
        """Scrape for this long; the last scrape."""
        until = time.monotonic() + seconds
        while True:
            scrape = self.scrape()
            if time.monotonic() >= until:
                return scrape
            time.sleep(every)


def families(scrape: Scrape, gpu: int) -> frozenset[str]:
    """Families that a scrape shows of a GPU, those that come and go with events left out."""
    return frozenset(
        name
        for name, labels in scrape.samples
        if ("gpu", str(gpu)) in labels
        and not name.startswith(("flopwatch_xid_", "flopwatch_source_errors"))
    )
