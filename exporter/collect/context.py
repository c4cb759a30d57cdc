"""What a sampled GPU needs from the daemon around it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from exporter.collect.dcgm.source import DcgmSource
from exporter.collect.nvml.library import DriverLibrary
from exporter.collect.settings import SamplingSettings
from exporter.state import State, XidCounts


@dataclass(frozen=True, slots=True)
class GpuContext:
    """Callbacks are cheap and thread-safe."""

    library: DriverLibrary
    settings: Callable[[], SamplingSettings]
    # The last State, for what was found out about the device elsewhere.
    state: Callable[[], State]
    xids: Callable[[str], XidCounts]
    on_mismatch: Callable[[], None]
    # Whether the GPU of a UUID is the caller's to sample, and no other's already.
    claim: Callable[[str, Any], bool]
    dcgm: DcgmSource
