"""What the status is made of: the State of one instant, and a few words about the exporter."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from exporter.advice.advise import AdviceSnapshot
from exporter.findings import DEFAULT_THRESHOLDS, Thresholds
from exporter.readings import HostFacts
from exporter.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSources:
    """What the status page asks of the daemon. Each is cheap, thread-safe and never touches a device.

    `configuration` gives the active configuration as plain data; `interval_seconds` the time
    between ticks.
    """

    state: Callable[[], State]
    configuration: Callable[[], Mapping[str, Any]]
    interval_seconds: Callable[[], float]
    host_name: str
    telemetry_path: str = "/metrics"
    wall_clock: Callable[[], float] = time.time
    facts: Callable[[], HostFacts] = HostFacts
    advice: Callable[[], AdviceSnapshot] = AdviceSnapshot
    thresholds: Callable[[], Thresholds] = Thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All of them at one instant. `unix_seconds` and `now_seconds` (monotonic) are the same moment."""

    state: State
    interval_seconds: float
    host_name: str
    telemetry_path: str
    unix_seconds: float
    now_seconds: float
    uptime_seconds: float
    facts: HostFacts = field(default_factory=HostFacts)
    advice: AdviceSnapshot = field(default_factory=AdviceSnapshot)
    thresholds: Thresholds = DEFAULT_THRESHOLDS
