"""What a sampled GPU needs from the daemon around it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from exporter.accounting.peaks import Peaks
from exporter.collect.dcgm.source import DcgmSource
from exporter.collect.nvml.library import DriverLibrary
from exporter.collect.settings import SamplingSettings
from exporter.readings import DeviceIdentity
from exporter.state import XidCounts


@dataclass(frozen=True, slots=True)
class GpuContext:
    """Callbacks are cheap and thread-safe."""

    library: DriverLibrary
    settings: Callable[[], SamplingSettings]
    # Headline precision and its origin; None where the device has no tensor pipe.
    precision: Callable[[DeviceIdentity, Peaks], tuple[str | None, str]]
    reachable_bandwidth: Callable[[DeviceIdentity], float | None]
    xids: Callable[[str], XidCounts]
    gpm_mode: Callable[[], str]  # auto, on, off
    on_mismatch: Callable[[], None]
    # Whether the GPU of a UUID is the caller's to sample, and no other's already.
    claim: Callable[[str, Any], bool]
    dcgm: DcgmSource
