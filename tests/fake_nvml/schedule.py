"""The load schedule of one GPU, integrated exactly: what the driver library reads, and the truth for the test."""

from __future__ import annotations

import bisect
import threading
import time
from dataclasses import dataclass

from tests.fake_nvml import layout
from tests.fake_nvml.loads import CYCLE_WEIGHTED, LOAD_FIELDS, REASON_COUNT, EventReason, Load


_INDEX = {name: number for number, name in enumerate(LOAD_FIELDS)}
_WEIGHTED = [name in CYCLE_WEIGHTED for name in LOAD_FIELDS]
_KEPT = layout.MAX_SEGMENTS // 2


@dataclass(frozen=True, slots=True)
class Totals:
    """Everything integrated from the schedule's beginning to one moment; see `CYCLE_WEIGHTED` for the units."""

    time_ns: int
    values: tuple[float, ...]
    integrals: tuple[float, ...]
    reason_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """What really happened between two moments. Cycles are per SM (the mean over the SMs)."""

    seconds: float
    sm_cycles_elapsed: float
    sm_cycles: float
    occupancy_cycles: float
    integer_cycles: float
    any_tensor_cycles: float
    dfma_tensor_cycles: float
    hmma_tensor_cycles: float
    dmma_tensor_cycles: float
    imma_tensor_cycles: float
    fp64_cycles: float
    fp32_cycles: float
    fp16_cycles: float
    graphics_seconds: float
    dram_fraction_seconds: float
    energy_joules: float
    pcie_rx_bytes: float
    pcie_tx_bytes: float
    nvlink_rx_bytes: float
    nvlink_tx_bytes: float
    c2c_rx_bytes: float
    c2c_tx_bytes: float
    event_reason_seconds: dict[EventReason, float]

    @property
    def mean_sm_clock_hertz(self) -> float:
        """The mean SM clock over time."""
        return self.sm_cycles_elapsed / self.seconds

    def gpm_percent(self, field: str) -> float:
        """What GPM answers for a `Load` field: 0..100 of elapsed cycles, or of time for `graphics` and `dram`."""
        if field == "graphics":
            return 100 * self.graphics_seconds / self.seconds
        if field == "dram":
            return 100 * self.dram_fraction_seconds / self.seconds
        cycles: float = getattr(self, f"{field}_cycles")
        return 100 * cycles / self.sm_cycles_elapsed


class LoadSchedule:
    """Piecewise-constant loads on CLOCK_MONOTONIC. The last one lasts forever."""

    def __init__(self, shared: layout.Schedule, initial: Load, begin_ns: int) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self._shared_from = 0  # the first segment in the shared array
        zero = (0.0,) * layout.VALUE_COUNT
        self._segments = [Totals(begin_ns, tuple(initial.values()), zero, (0.0,) * REASON_COUNT)]
        self._publish()

    def set_load(self, load: Load, at_monotonic_ns: int | None = None) -> int:
        """Change to `load` now, or at a later moment; whatever was scheduled after it is dropped.

        Returns the moment. Exact even while the library reads: the time is taken after readers are
        locked out.
        """
        with self._lock:
            self._shared.sequence += 1
            try:
                now_ns = time.monotonic_ns()
                at_ns = now_ns if at_monotonic_ns is None else at_monotonic_ns
                if at_ns < now_ns:
                    raise ValueError("a load that begins in the past would change what was read")
                while len(self._segments) > 1 and self._segments[-1].time_ns >= at_ns:
                    self._segments.pop()
                before = self.totals(at_ns)
                segment = Totals(
                    at_ns, tuple(load.values()), before.integrals, before.reason_seconds
                )
                self._segments.append(segment)
                self._write()
            finally:
                self._shared.sequence += 1
        return at_ns

    def totals(self, at_ns: int) -> Totals:
        """Everything integrated up to a moment, by the same arithmetic as the library's."""
        number = max(
            0, bisect.bisect_right(self._segments, at_ns, key=lambda segment: segment.time_ns) - 1
        )
        segment = self._segments[number]
        seconds = max(0, at_ns - segment.time_ns) * 1e-9
        cycles = segment.values[_INDEX["sm_clock_mhz"]] * 1e6 * seconds
        reasons = int(segment.values[_INDEX["event_reasons"]])
        return Totals(
            at_ns,
            segment.values,
            tuple(
                integral + value * (cycles if weighted else seconds)
                for integral, value, weighted in zip(
                    segment.integrals, segment.values, _WEIGHTED, strict=True
                )
            ),
            tuple(
                total + (seconds if reasons >> bit & 1 else 0.0)
                for bit, total in enumerate(segment.reason_seconds)
            ),
        )

    def truth(self, begin_ns: int, end_ns: int) -> Truth:
        """The exact integrals between two moments of CLOCK_MONOTONIC."""
        begin, end = self.totals(begin_ns), self.totals(end_ns)

        def over(name: str) -> float:
            return end.integrals[_INDEX[name]] - begin.integrals[_INDEX[name]]

        return Truth(
            seconds=(end_ns - begin_ns) * 1e-9,
            sm_cycles_elapsed=over("sm_clock_mhz") * 1e6,
            sm_cycles=over("sm"),
            occupancy_cycles=over("occupancy"),
            integer_cycles=over("integer"),
            any_tensor_cycles=over("any_tensor"),
            dfma_tensor_cycles=over("dfma_tensor"),
            hmma_tensor_cycles=over("hmma_tensor"),
            dmma_tensor_cycles=over("dmma_tensor"),
            imma_tensor_cycles=over("imma_tensor"),
            fp64_cycles=over("fp64"),
            fp32_cycles=over("fp32"),
            fp16_cycles=over("fp16"),
            graphics_seconds=over("graphics"),
            dram_fraction_seconds=over("dram"),
            energy_joules=over("power_watts"),
            pcie_rx_bytes=over("pcie_rx_bytes_per_second"),
            pcie_tx_bytes=over("pcie_tx_bytes_per_second"),
            nvlink_rx_bytes=over("nvlink_rx_bytes_per_second"),
            nvlink_tx_bytes=over("nvlink_tx_bytes_per_second"),
            c2c_rx_bytes=over("c2c_rx_bytes_per_second"),
            c2c_tx_bytes=over("c2c_tx_bytes_per_second"),
            event_reason_seconds={
                EventReason(1 << bit): end.reason_seconds[bit] - begin.reason_seconds[bit]
                for bit in range(REASON_COUNT)
            },
        )

    def _publish(self) -> None:
        self._shared.sequence += 1
        self._write()
        self._shared.sequence += 1

    def _write(self) -> None:
        """Bring the shared array up to date: usually by one segment; when it is full, keep the newest half."""
        last = len(self._segments) - 1
        changed = range(last, last + 1)
        if not 0 <= last - self._shared_from < layout.MAX_SEGMENTS:
            self._shared_from = max(0, last + 1 - _KEPT)
            changed = range(self._shared_from, last + 1)
        for number in changed:
            segment = self._segments[number]
            shared = self._shared.segments[number - self._shared_from]
            shared.values[:] = segment.values
            shared.integrals[:] = segment.integrals
            shared.reason_seconds[:] = segment.reason_seconds
            shared.start_ns = segment.time_ns
        self._shared.count = last + 1 - self._shared_from
