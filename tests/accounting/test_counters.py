"""No counter decreases or counts the same time twice, whatever its sources do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.accounting.device import Counters, DeviceAccounts, DeviceCounter, SpanCounter
from exporter.accounting.peaks import find_peaks
from exporter.readings import ActivityWindow, ClockSample, DeviceIdentity, FastReading


IDENTITY = DeviceIdentity(
    "0", "GPU-1", "NVIDIA H100 80GB HBM3", sm_count=132, sm_clock_max_hertz=2e9
)
LINKS = (
    "pcie_receive_bytes",
    "pcie_transmit_bytes",
    "nvlink_receive_bytes",
    "nvlink_transmit_bytes",
)
RATE = 1000.0  # bytes per second on every link
AT_BOOT = 5e6


def test_windows_after_the_devices_counter_continue_from_it() -> None:
    """GPM data comes late: 5 MB from the device's counter, then 1000 bytes a second from windows."""
    counter = SpanCounter()
    counter.follow(5e6, 10.0)
    counter.follow(5.001e6, 11.0)
    counter.add(1000.0, 11.0, 12.0)

    assert counter.value == 5.002e6


def test_after_windows_the_devices_counter_only_sets_a_start() -> None:
    """Traffic that it counted while windows were counted is not counted again."""
    counter = SpanCounter()
    counter.add(1000.0, 10.0, 11.0)
    counter.follow(5e6, 11.5)
    assert counter.value == 1000.0
    counter.follow(5.001e6, 12.5)
    assert counter.value == 2000.0


def test_a_window_that_the_devices_counter_has_covered_adds_the_rest() -> None:
    """A DCGM window of 30 s, of which the device's counter has already counted the first 29."""
    counter = SpanCounter()
    counter.follow(0.0, 0.0)
    counter.follow(29e3, 29.0)
    counter.add(30e3, 0.0, 30.0)

    assert counter.value == pytest.approx(30e3)


def test_ticks_counted_by_hand_end_where_the_device_counts() -> None:
    """Three seconds from the mask of event reasons, then a device whose counter is at one second."""
    counter = DeviceCounter()
    counter.add(3.0)
    counter.follow(1.0)
    assert counter.value == 3.0
    counter.follow(1.5)
    assert counter.value == 3.5


@dataclass
class Machine:
    """A GPU with busy links, whose sources come and go; time is in seconds since watching began."""

    accounts: DeviceAccounts = field(
        default_factory=lambda: DeviceAccounts(IDENTITY, find_peaks(IDENTITY))
    )
    now: float = 0.0
    counted_from: float = 0.0  # since when the device's counters count: a reset moves it
    open_since: float | None = None
    source: str = "gpm"
    seen: dict[str, float] = field(default_factory=dict)
    first_total: float | None = None

    def tick(self, *, own: bool, energy: bool, window: bool, reasons: str, seconds: float) -> None:
        self.now += seconds
        counted = self.now - self.counted_from
        at_boot = AT_BOOT if self.counted_from == 0.0 else 0.0
        fast: dict[str, Any] = {}
        if own:
            fast.update(dict.fromkeys(LINKS, at_boot + RATE * counted))
        if energy:
            fast["energy_joules"] = at_boot + 300 * counted
        if reasons == "counter":
            fast["event_reason_seconds"] = {"sw_power_cap": 0.5 * counted}
        if reasons != "none":
            fast["event_reasons"] = 4
        closed = None
        if window and self.open_since is not None:
            moved = dict.fromkeys(LINKS, RATE * (self.now - self.open_since))
            closed = ActivityWindow(
                self.source, self.open_since, self.now, graphics=1, sm=1, tensor=0.5,
                hmma_tensor=0.5, dram=0.5, **moved,
            )  # fmt: skip
        if window:
            self.open_since = self.now
        self.accounts.observe_clock(ClockSample(self.now, 1e9, 4))
        self.accounts.observe(
            FastReading(self.now, sm_clock_hertz=1e9, **fast),
            closed,
            precision="bf16",
            max_window_seconds=40.0,
            window_started_seconds=self.open_since,
        )
        self.check()

    def reset(self) -> None:
        """The driver is reloaded: the device counts from zero."""
        self.counted_from = self.now
        self.accounts.forget_open_spans()
        self.open_since = None

    def check(self) -> None:
        """No counter has decreased or vanished; no link counts more bytes than it moved."""
        values = dict(flat(self.accounts.counters()))
        for name, before in self.seen.items():
            assert values[name] >= before, name
        self.seen = values
        for name in LINKS:
            assert values.get(name, 0.0) <= AT_BOOT + RATE * self.now + 1e-3, name
        assert values.get("energy_joules", 0.0) <= AT_BOOT + 300 * self.now + 1e-3
        assert sum(self.accounts.counters().state_seconds.values()) <= self.now + 1e-6


def flat(counters: Counters) -> list[tuple[str, float]]:
    """Every counter by name, and every part of those that have parts."""
    found: list[tuple[str, float]] = [
        (name, getattr(counters, name))
        for name in ("energy_joules", *LINKS)
        if getattr(counters, name) is not None
    ]
    for name in ("flop", "state_seconds", "dram_bytes", "event_reason_seconds"):
        found += [(f"{name} {part}", value) for part, value in getattr(counters, name).items()]
    found += [(f"ticks {name}", value.count) for name, value in counters.tick_utilization.items()]
    return found


_TICK = st.fixed_dictionaries(
    {
        "own": st.booleans(),
        "energy": st.booleans(),
        "window": st.booleans(),
        "reasons": st.sampled_from(["counter", "mask", "none"]),
        "seconds": st.sampled_from([0.25, 1.0, 1.0, 3.0, 30.0, 100.0]),
    }
)
_STEP: st.SearchStrategy[Callable[[Machine], None]] = st.one_of(
    _TICK.map(lambda how: lambda machine: machine.tick(**how)),
    st.just(lambda machine: machine.reset()),
    st.just(lambda machine: machine.accounts.forget_open_spans()),
    st.just(lambda machine: setattr(machine, "open_since", None)),
    st.sampled_from(["gpm", "gpm_cycles", "dcgm"]).map(
        lambda source: lambda machine: setattr(machine, "source", source)
    ),
)


@settings(max_examples=400)
@given(st.lists(_STEP, max_size=40))
def test_no_counter_falls_however_sources_come_and_go(
    steps: list[Callable[[Machine], None]],
) -> None:
    """Sources appear, fail and return, the driver is reloaded, ticks are missed: every counter only grows.

    No link counts more bytes than it really moved, and no state lasts longer than the elapsed time.
    """
    machine = Machine()
    for step in steps:
        step(machine)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e9)), max_size=20))
def test_the_devices_own_error_counters_never_fall(readings: list[float | None]) -> None:
    """ECC and link errors restart from zero at a reset; the exported counters do not."""
    accounts = DeviceAccounts(IDENTITY, find_peaks(IDENTITY))
    shown = 0.0
    for reading in readings:
        ecc = {} if reading is None else {"corrected": reading}
        values = accounts.without_falls({"ecc_errors": ecc, "pcie_replays": reading})
        assert (values["pcie_replays"] is None) == (reading is None)
        if reading is not None:
            assert values["ecc_errors"]["corrected"] == values["pcie_replays"] >= shown
            shown = values["pcie_replays"]
