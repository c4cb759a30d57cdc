"""GPM's answers as windows."""

from collections.abc import Iterable
from typing import Any

import pytest

from exporter.collect.gpm_windows import GpmWindows
from exporter.collect.nvml import gpm
from exporter.collect.nvml.errors import NotSupported, NvmlError, Transient
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
