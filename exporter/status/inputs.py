"""What the status is made of: the snapshots of one instant, and where they come from."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.attribution.snapshot import HoldersSnapshot
from exporter.exposition.own import ReloadStatus
from exporter.inference.snapshot import WorkloadsSnapshot
from exporter.state import HostSnapshot
from probes.records import ProbesSnapshot


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSources:
    """What the status page asks of the daemon. Each is cheap, thread-safe and never touches a device.

    `configuration` gives the configuration in force as plain data; `interval_seconds` the time
    between ticks. A part of the daemon that does not run gives None.
    """

    devices: Callable[[], HostSnapshot]
    configuration: Callable[[], Mapping[str, Any]]
    reload: Callable[[], ReloadStatus]
    interval_seconds: Callable[[], float]
    host_name: str
    telemetry_path: str = "/metrics"
    probes: Callable[[], ProbesSnapshot | None] = _nothing
    workloads: Callable[[], WorkloadsSnapshot | None] = _nothing
    holders: Callable[[], HoldersSnapshot | None] = _nothing
    wall_clock: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All of them at one instant. `unix_seconds` and `host.now_seconds` are the same moment."""

    host: HostSnapshot
    reload: ReloadStatus
    interval_seconds: float
    host_name: str
    telemetry_path: str
    unix_seconds: float
    uptime_seconds: float
    probes: ProbesSnapshot | None = None
    workloads: WorkloadsSnapshot | None = None
    holders: HoldersSnapshot | None = None
