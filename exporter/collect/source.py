"""What an activity source is, and what it can learn about its device.

`SOURCES` in `exporter/collect/device.py` lists the sources, the best first.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from exporter.collect.dcgm.source import DcgmSource
from exporter.collect.nvml.gpm import GpmSession
from exporter.collect.nvml.library import DeviceCalls, DriverLibrary
from exporter.collect.settings import SamplingSettings
from exporter.device_state import SourceHealth, XidCounts
from exporter.readings import ActivityWindow, DeviceIdentity, FastReading


if TYPE_CHECKING:
    from exporter.state import State  # loaded while sampling has begun


@dataclass(frozen=True, slots=True)
class GpuContext:
    """What a sampled GPU needs from the daemon around it. Callbacks are cheap and thread-safe."""

    library: DriverLibrary
    settings: Callable[[], SamplingSettings]
    # The last State, for what is known about the device from elsewhere.
    state: "Callable[[], State]"
    xids: Callable[[str], XidCounts]
    on_mismatch: Callable[[], None]
    # Whether the caller may sample the GPU with this UUID: no other caller does.
    claim: Callable[[str, Any], bool]
    dcgm: DcgmSource


class MeasuredDevice(Protocol):
    """A GPU or a MIG instance, as its sources see it."""

    @property
    def context(self) -> GpuContext:
        """The services of the daemon around it."""

    @property
    def identity(self) -> DeviceIdentity:
        """The device's identity."""

    @property
    def sm_count(self) -> int | None:
        """Number of SMs: as the driver reports it, else as the model has them."""

    @property
    def calls(self) -> DeviceCalls | None:
        """The driver's calls; None while the device is away."""

    @property
    def gpm_sessions(self) -> Sequence[GpmSession]:
        """The methods of taking GPM samples of a MIG instance; empty for a GPU."""

    @property
    def gpu(self) -> "MeasuredDevice | None":
        """The GPU that a MIG instance belongs to."""

    @property
    def instances(self) -> "Sequence[MeasuredDevice]":
        """The MIG instances of a GPU, measured before it in every tick."""

    @property
    def mig_enabled(self) -> bool:
        """Whether a GPU is in MIG mode."""

    @property
    def in_use(self) -> "ActivitySource | None":
        """The source that this tick's activities come from."""

    @property
    def window(self) -> ActivityWindow | None:
        """The activity window that ended with this tick, as its source gave it."""


class ActivitySource(Protocol):
    """Reports how busy the parts of one device were.

    In every tick the device takes its first source that opens; those after it stand by. The thread
    of the GPU calls all methods. Each may raise NvmlError, but only when the device or the driver
    is gone: any other failure is counted, logged once and retried by the source.
    """

    # Whether windows include the bytes that the links moved, so that NVML need not be read for
    # them.
    counts_traffic: ClassVar[bool] = False
    device: MeasuredDevice

    def __init__(self, device: MeasuredDevice) -> None:
        self.device = device

    @classmethod
    def prepare(cls, sources: Sequence[Self]) -> None:
        """Prepare all sources of this kind, of a GPU and its instances, before each tick.

        For work that costs less once for all of them than in the `open` of each.
        """

    @abstractmethod
    def open(self) -> bool:
        """Get ready if possible; whether the source can be read in this tick."""

    @abstractmethod
    def read(self, fast: FastReading, settings: SamplingSettings) -> ActivityWindow | None:
        """The window that ended with this tick, if one did."""

    @property
    @abstractmethod
    def open_since_seconds(self) -> float | None:
        """Start of the window that a later reading will close; None where none is open."""

    @property
    def max_window_seconds(self) -> float:
        """By how much a window may exceed the usual limit, and how long it may be shown."""
        return 0.0

    @property
    def clock_samples(self) -> int:
        """How many samples of the clock a tick needs, for the mean clock of the window."""
        return 4

    def stand_by(self) -> None:
        """A better source is in use: release everything that costs something."""

    def restart(self) -> None:
        """Count nothing of the time since the last window: it was not watched."""

    def close(self, *, driver_is_gone: bool = False) -> None:
        """Release everything, without a driver call if the driver is gone. It may open again."""

    def implausible(self) -> None:
        """Count a window that cannot be true."""

    def health(self, *, up: bool) -> dict[str, SourceHealth]:
        """The source's entry among those of the device, if it has one. `up`: the device answers."""
        return {}
