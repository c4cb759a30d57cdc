"""What a soak checks from outside: invariants of every scrape, and the growth that is a leak."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

from tests.daemon.process import Labels, Scrape
from tests.faults.invariants import HEALTH


_COUNTER_SUFFIXES = ("_total", "_bucket", "_sum", "_count")
# Tick, scrape and this process each take their time, and more on a busy machine.
_SLACK_SECONDS = 3.0
# After a GPU is back, or has another MIG mode, it is reopened: with the backoff, the trial of GPM
# and the first window.
_REOPENING_SECONDS = 6.0
# A reading may be this old: 2 ticks and the deadline of the soak's configuration, and a scrape.
_FRESH_SECONDS = 2.2 + _SLACK_SECONDS
# Shown of a GPU that is down: its health, and who uses it, as kubelet and configuration say.
_SHOWN_WHEN_DOWN = HEALTH | {
    "flopwatch_gpu_allocation_info",
    "flopwatch_gpu_job_info",
    "flopwatch_workload_gpu_info",
}
# A GPU's own series continue for as long as it exists; those of engines and holders may not.
_LASTING = ("flopwatch_gpu_", "flopwatch_flop_", "flopwatch_dram_", "flopwatch_energy_")

GROWTH_MAX_BYTES = 2_000_000


class BrokenPromiseError(AssertionError):
    """A scrape that breaks an invariant."""


@dataclass(slots=True)
class _Gap:
    """A time in which a GPU could not be watched: documented as a gap of its counters."""

    began: float
    ended: float | None = None


@dataclass(slots=True)
class Watch:
    """Compares each scrape with those before it, and with what was done to the GPUs meanwhile.

    Raises BrokenPromiseError: a counter falls, a series is duplicated, states sum to more time than
    has passed or to less than passed without the gaps, a GPU that is down has readings, or one that
    is up has old ones.
    """

    scrapes: int = 0
    series: int = 0
    _counters: dict[tuple[str, Labels], float] = field(default_factory=dict)
    _seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    _gaps: defaultdict[str, list[_Gap]] = field(default_factory=lambda: defaultdict(list))

    def lost(self, uuid: str) -> None:
        """From now on the GPU cannot be watched."""
        gaps = self._gaps[uuid]
        if not gaps or gaps[-1].ended is not None:
            gaps.append(_Gap(time.monotonic()))

    def found(self, uuid: str) -> None:
        """From now on it can be watched again."""
        gaps = self._gaps[uuid]
        if gaps and gaps[-1].ended is None:
            gaps[-1].ended = time.monotonic()

    def check(self, text: str, before: float, after: float) -> None:
        """A scrape that was made between these instants (monotonic)."""
        try:
            scrape = Scrape(text)  # rejects duplicate series
        except AssertionError as error:
            raise BrokenPromiseError(str(error)) from None
        self.scrapes, self.series = self.scrapes + 1, len(scrape.samples)
        self._no_counter_fell(scrape)
        self._seconds_are_those_that_passed(scrape, before, after)
        self._nothing_stale(scrape)

    def _no_counter_fell(self, scrape: Scrape) -> None:
        counters = {
            key: value
            for key, value in scrape.samples.items()
            if key[0].startswith("flopwatch_") and key[0].endswith(_COUNTER_SUFFIXES)
        }
        for (name, labels), value in counters.items():
            last = self._counters.get((name, labels), 0.0)
            if value < last:
                raise BrokenPromiseError(f"{name} {dict(labels)} fell from {last} to {value}")
        # An engine or a pod that returns is a new one; a GPU is the same.
        kept = {
            key: value
            for key, value in self._counters.items()
            if key[0].startswith(_LASTING) and not any(label == "mig" for label, _ in key[1])
        }
        self._counters = kept | counters

    def _seconds_are_those_that_passed(self, scrape: Scrape, before: float, after: float) -> None:
        """Since its first scrape, the states of each GPU have grown by the time without the gaps."""
        sums: defaultdict[str, float] = defaultdict(float)
        for labels, value in scrape.series("flopwatch_gpu_seconds_total").items():
            named = dict(labels)
            if "mig" not in named:
                sums[named["uuid"]] += value
        for uuid, seconds in sums.items():
            began, at_first = self._seconds.setdefault(uuid, (before, seconds))
            grown, passed = seconds - at_first, after - began
            if grown > passed + _SLACK_SECONDS:
                raise BrokenPromiseError(f"{uuid}: {grown:.1f} s counted in {passed:.1f} s")
            gaps = sum(
                (gap.ended or after) + _REOPENING_SECONDS - max(gap.began, began)
                for gap in self._gaps[uuid]
                if (gap.ended or after) + _REOPENING_SECONDS > began
            )
            if grown < passed - gaps - _SLACK_SECONDS:
                raise BrokenPromiseError(
                    f"{uuid}: {grown:.1f} s counted in {passed:.1f} s with gaps of {gaps:.1f} s"
                )

    @staticmethod
    def _nothing_stale(scrape: Scrape) -> None:
        up = scrape.series("flopwatch_gpu_up")
        devices = {_device(labels): value for labels, value in up.items()}
        for name, labels in scrape.samples:
            if name not in _SHOWN_WHEN_DOWN and devices.get(_device(labels)) == 0:
                raise BrokenPromiseError(f"{name} of {dict(labels)}, which is down")
        now = scrape.value("flopwatch_time_seconds")
        last = scrape.series("flopwatch_source_last_success_timestamp_seconds", source="nvml")
        for labels, at in last.items():
            if devices.get(_device(labels)) and now - at > _FRESH_SECONDS:
                raise BrokenPromiseError(f"{dict(labels)} is up, read {now - at:.1f} s ago")


def _device(labels: Labels) -> tuple[str | None, str | None]:
    named = dict(labels)
    return named.get("uuid"), named.get("mig")


@dataclass(frozen=True, slots=True)
class Growth:
    """What a run used after its warm-up and at its end."""

    bytes_before: int
    bytes_after: int
    descriptors_before: int
    descriptors_after: int
    threads_before: int
    threads_after: int
    # GPUs that were lost are watched for XIDs on a thread of their own afterwards.
    threads_to_spare: int = 0

    @property
    def bytes(self) -> int:
        """Growth of resident memory."""
        return self.bytes_after - self.bytes_before

    @property
    def is_leak(self) -> bool:
        """Whether anything has grown, memory by more than its normal variation."""
        return (
            self.bytes > GROWTH_MAX_BYTES
            or self.descriptors_after > self.descriptors_before
            or self.threads_after > self.threads_before + self.threads_to_spare
        )

    def __str__(self) -> str:
        return (
            f"resident {self.bytes_before / 1e6:.1f} -> {self.bytes_after / 1e6:.1f} MB, "
            f"descriptors {self.descriptors_before} -> {self.descriptors_after}, "
            f"threads {self.threads_before} -> {self.threads_after}"
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What the process uses at one moment of the simulated clock."""

    day: float
    bytes: int
    descriptors: int
    threads: int
    state_file_bytes: int
    series: int

    def __str__(self) -> str:
        return (
            f"day {self.day:5.2f}  resident {self.bytes / 1e6:6.2f} MB  descriptors "
            f"{self.descriptors}  threads {self.threads}  state file {self.state_file_bytes / 1e3:5.1f} kB  "
            f"series {self.series}"
        )
