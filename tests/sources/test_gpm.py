"""GPM's answers as windows."""

from collections.abc import Iterable
from typing import Any

import pytest

from exporter.collect.gpm_windows import GpmWindows, open_together
from exporter.collect.nvml import gpm
from exporter.collect.nvml.library import NotSupported, NvmlError, Transient
from exporter.readings import ActivityWindow


class Session:
    """Two samples a second apart, and what the driver computes of them."""

    open_since_seconds = 0.0

    def __init__(self, values: dict[int, float], failure: NvmlError | None = None) -> None:
        self.values = values
        self.failure = failure
        self.undone = 0

    def sample(self) -> tuple[float, float]:
        return 10.0, 11.0

    def undo_sample(self) -> None:
        self.undone += 1

    def metrics(self, _ids: Iterable[int]) -> dict[int, float]:
        return self.values


def read(session: Any) -> tuple[ActivityWindow | None, list[str]]:
    """The window, and what was found implausible."""
    false: list[str] = []
    source = GpmWindows([session], sm_count=132, max_hertz=1.98e9, on_implausible=false.append)
    return source.read(), false


def test_blanks_among_the_rates_are_counted_and_left_out() -> None:
    """The other activities are kept."""
    window, false = read(
        Session({gpm.SM: 50.0, gpm.PCIE_TRANSMIT_MIB: 2.0**47, gpm.PCIE_RECEIVE_MIB: 100.0})
    )

    assert window is not None
    assert (window.sm, window.pcie_transmit_bytes) == (0.5, None)
    assert window.pcie_receive_bytes == 100 * 2**20
    assert false == ["gpm pcie_transmit_bytes"]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (Transient("nvmlGpmMetricsGet", 21), Transient),
        (None, NotSupported),  # every metric was refused: the device no longer has any of them
    ],
)
def test_a_reading_without_activities_is_none(
    failure: NvmlError | None, raised: type[NvmlError]
) -> None:
    """Rates alone do not show the SMs' activity: the window stays open for the next reading."""
    session = Session({gpm.PCIE_RECEIVE_MIB: 100.0}, failure)

    with pytest.raises(raised):
        read(session)
    assert session.undone == 1


class Counting:
    """A session whose counter of SM cycles runs at 1 GHz, with samples 100 ms apart."""

    open_since_seconds = 0.0
    failure = None

    def __init__(self) -> None:
        self.taken = 0

    def open(self) -> None:
        """Nothing to allocate."""

    def close(self) -> None:
        """Nothing to free."""

    def sample(self) -> tuple[float, float] | None:
        self.taken += 1
        return ((self.taken - 2) / 10, (self.taken - 1) / 10) if self.taken > 1 else None

    def metrics(self, _ids: Iterable[int]) -> dict[int, float]:
        return {gpm.SM: 50.0, gpm.SM_CYCLES_ELAPSED: (self.taken - 1) * 1e8}


@pytest.mark.parametrize(
    ("wrong", "name", "windows"),
    [
        (0, "gpm_cycles", 3),
        (2, "gpm_cycles", 4),  # the clocks of windows 3 and 4 are right
        (9, "gpm", 6),
    ],
)
def test_a_trial_goes_on_until_cycles_have_kept_time_twice_in_a_row(
    wrong: int, name: str, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock that was read may be that before a rise: three more windows decide, and no more."""
    monkeypatch.setattr("exporter.collect.gpm_windows.time.sleep", lambda _seconds: None)
    session: Any = Counting()
    source = GpmWindows([session], sm_count=132, max_hertz=1.98e9, on_implausible=print)
    clocks = iter([0.3e9] * wrong + [1e9] * 9)

    assert open_together([source], lambda: next(clocks)) == []

    assert source.name == name
    assert session.taken == 1 + windows
