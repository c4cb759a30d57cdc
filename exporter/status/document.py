"""The status document: what `/api/v1/status` answers, the page shows and `flopwatch top` reads.

Plain values in base units; None where a value is not known. Fields are only ever added within one
`api_version`; docs/status-page.md describes them. Below them are the words and units in which the
page, the terminal and the findings put these values for people.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from exporter.findings import Finding


API_VERSION: Final = 1
STATUS_PATH: Final = "/api/v1/status"


class Flops(msgspec.Struct, frozen=True, kw_only=True):
    """Achieved against peak in the headline precision, mean of the last minute.

    `executed_flops` is a processor's own count, over all precisions that it counts. These are not
    one precision, so it has no share of a peak.
    """

    precision: str | None = None
    precision_origin: str | None = None
    achieved_flops: float | None = None
    peak_flops: float | None = None
    peak_origin: str | None = None
    utilization_ratio: float | None = None
    executed_flops: float | None = None


class Attainable(msgspec.Struct, frozen=True, kw_only=True):
    """What the probes last measured that the device can do, and which share of the peak that is.

    `flops` is at the headline precision where that was measured, else at the fastest one that was.
    """

    precision: str | None = None
    flops: float | None = None
    peak_ratio: float | None = None
    bandwidth_bytes_per_second: float | None = None
    last_success_unix_seconds: float | None = None


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of the last minute went: shares by state, of the seconds that were watched."""

    seconds: float
    states: dict[str, float] = {}


class Hour(msgspec.Struct, frozen=True, kw_only=True):
    """The last hour by minute, oldest first. A share is None in a minute that was not watched."""

    step_seconds: int
    watched_seconds: float
    states: dict[str, list[float | None]] = {}


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """The SM clock of the last tick, the reasons that hold now, and what held it in the last hour."""

    hertz: float | None = None
    max_hertz: float | None = None
    reasons: list[str] = []
    held_by_power_ratio: float | None = None
    held_by_heat_ratio: float | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Device memory and its bandwidth (mean of the last minute, of the theoretical one)."""

    used_bytes: float | None = None
    size_bytes: float | None = None
    bandwidth_ratio: float | None = None
    bandwidth_bytes_per_second: float | None = None
    peak_bandwidth_bytes_per_second: float | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that an inference engine serves on the device.

    `not_counted` names parts of it, such as a vision tower, that its MFU and MBU leave out.
    """

    workload: str
    model: str
    engine: str
    precision: str | None = None
    flops_utilization_ratio: float | None = None
    bandwidth_utilization_ratio: float | None = None
    not_counted: list[str] = []


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the device: a container of Kubernetes, a batch job, an engine or a process (`workload`).

    On a shared device also what it did in the last minute: its share of the busy time, its FLOP per
    second, and how that was found. A holder without a name is the work that no holder could be charged for.
    """

    namespace: str | None = None
    pod: str | None = None
    container: str | None = None
    job: str | None = None
    workload: str | None = None
    basis: str | None = None
    share_ratio: float | None = None
    achieved_flops: float | None = None


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel's last accepted result. `unit` is `FLOP/s`, `B/s` or `s`; `peer` the other GPU."""

    kernel: str
    value: float | None = None
    unit: str = ""
    peer: str | None = None
    peak_ratio: float | None = None
    efficiency_ratio: float | None = None
    baseline_ratio: float | None = None
    mismatches: int | None = None
    last_success_unix_seconds: float | None = None


class Xid(msgspec.Struct, frozen=True, kw_only=True):
    """XID events of one code since the exporter started."""

    xid: int
    count: int
    last_unix_seconds: float | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Health as the device reports it. ECC counts are over its life, `new_…` since the exporter started."""

    xids: list[Xid] = []
    ecc_errors: dict[str, float] = {}
    new_ecc_errors: dict[str, float] = {}
    remapped_rows: dict[str, float] = {}
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    recovery_action: str | None = None
    nvlinks_up: int | None = None
    nvlinks: int | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One source of readings on the device."""

    source: str
    up: bool
    last_success_unix_seconds: float | None = None
    errors: dict[str, int] = {}


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device. `health` is `critical`, `warning` or `ok`, the worst of its findings."""

    gpu: str
    uuid: str
    name: str
    mig: str | None = None
    architecture: str | None = None
    pci_bus_id: str | None = None
    serial: str | None = None
    driver_version: str | None = None
    up: bool
    health: str
    findings: list[Finding] = []
    finding_since_unix_seconds: dict[str, float] = {}
    reset_unix_seconds: float | None = None
    age_seconds: float
    flops: Flops = Flops()
    attainable: Attainable | None = None
    minute: Span = Span(seconds=0.0)
    hour: Hour | None = None
    clock: Clock = Clock()
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    utilization_ratio: float | None = None
    memory: Memory = Memory()
    processes: int | None = None
    models: list[Model] = []
    holders: list[Holder] = []
    probes: list[Probe] = []
    events: Health = Health()
    sources: list[Source] = []


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """An inference engine of this host that is configured or was found.

    `advice` has a sentence for each of its models that a change would help: the best one.
    """

    workload: str
    engine: str
    up: bool
    reason: str | None = None
    advice: list[str] = []


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The host in one look. Sums are over devices that are up and know the value."""

    name: str
    summary: str
    health: str
    devices: int
    devices_up: int
    searching: bool
    expected_gpus: int | None = None
    driver_version: str | None = None
    driver_error: str | None = None
    achieved_flops: dict[str, float] = {}
    peak_flops: dict[str, float] = {}
    attainable_flops: dict[str, float] = {}
    attainable_bandwidth_bytes_per_second: float | None = None
    power_watts: float | None = None
    memory_used_bytes: float | None = None
    memory_size_bytes: float | None = None
    workloads: list[Workload] = []


class Exporter(msgspec.Struct, frozen=True, kw_only=True):
    """The exporter itself. `probes` is `running`, `paused` or `off`."""

    version: str
    revision: str
    uptime_seconds: float
    interval_seconds: float
    configuration_ok: bool
    configuration_unix_seconds: float
    probes: str
    probe_gpu_seconds: float | None = None
    ticks_missed: int = 0
    resident_bytes: float | None = None
    cpu_seconds: float | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole document. Devices with problems come first."""

    api_version: int = API_VERSION
    unix_seconds: float
    host: Host
    exporter: Exporter
    devices: list[Device] = []
    links: dict[str, str] = {}


# In the order of the stack: useful work first, lost time last. Names are the metric's labels.
STATES: Final[Mapping[str, str]] = {
    "tensor": "tensor pipe",
    "memory": "waiting for memory",
    "stall": "stalled",
    "underfill": "SMs empty",
    "unresolved": "unknown",
    "clock_power": "clock held down by power",
    "clock_thermal": "clock held down by heat",
    "clock_other": "clock held down, other cause",
    "idle": "idle",
}
# A shape and a word beside each colour.
HEALTH: Final = {
    "critical": ("✖", "critical"),
    "warning": ("▲", "warning"),
    "ok": ("✔", "OK"),
}
_REASONS: Final = {
    "gpu_idle": "idle",
    "applications_clocks_setting": "application clocks",
    "sw_power_cap": "power cap",
    "hw_slowdown": "hardware slowdown",
    "sync_boost": "sync boost",
    "sw_thermal_slowdown": "heat (driver)",
    "hw_thermal_slowdown": "heat (hardware)",
    "hw_power_brake_slowdown": "power brake",
    "display_clock_setting": "display clock",
}
_BASIS: Final = {
    "process_utilization": "by SM time",
    "equal": "divided equally, not measured",
    "exclusive": "not shared",
}


def device_name(device: Device) -> str:
    """What the device is called on its host: `GPU 3`, `GPU 3 MIG 1` or `cpu0`."""
    name = f"GPU {device.gpu}" if device.gpu.isdigit() else device.gpu
    return name if device.mig is None else f"{name} MIG {device.mig}"


def sentence(finding: Finding) -> str:
    """The finding's text, with a capital letter."""
    return finding.text[:1].upper() + finding.text[1:]


def state_word(state: str, device: Device) -> str:
    """A state in words. Where utilization is known, so is idle time, and the rest was busy."""
    if state == "unresolved" and device.utilization_ratio is not None:
        return "busy"
    return STATES[state]


def clock_words(clock: Clock) -> str:
    """The clock, its maximum, and what holds it down; empty where it is not known."""
    if clock.hertz is None:
        return ""
    top = f" of {megahertz(clock.max_hertz)}" if clock.max_hertz else ""
    reasons = ", ".join(_REASONS.get(reason, reason) for reason in clock.reasons)
    return f"{megahertz(clock.hertz)}{top}{SPACE}MHz{f': {reasons}' if reasons else ''}"


def power_words(device: Device) -> str:
    """The power and its limit; empty where it is not known."""
    if device.power_watts is None:
        return ""
    limit = f" of {device.power_limit_watts:,.0f}" if device.power_limit_watts else ""
    return f"{device.power_watts:,.0f}{limit}{SPACE}W"


def holder_words(holder: Holder) -> tuple[str, str]:
    """The kind of holder and its name; on a shared device with what it did in the last minute."""
    kind, name = "No holder", ""
    if holder.pod is not None:
        kind, name = "Pod", f"{holder.namespace}/{holder.pod} ({holder.container})"
    elif holder.job is not None:
        kind, name = "Job", holder.job
    elif holder.workload is not None:
        kind, name = "Holder", holder.workload
    did = []
    if holder.share_ratio is not None:
        did.append(f"{percent(holder.share_ratio)} of the work")
    if holder.achieved_flops is not None:
        did.append(quantity(holder.achieved_flops, "FLOP/s"))
    if holder.basis is not None:
        did.append(_BASIS.get(holder.basis, holder.basis))
    return kind, ": ".join(part for part in (name, ", ".join(did)) if part)


def probe_value(probe: Probe) -> str:
    """A probe's result with its unit; a wrong one in words."""
    if probe.mismatches:
        return count(probe.mismatches, "wrong result")
    if probe.value is None:
        return "–"
    if probe.unit == "s":
        return f"{probe.value * 1e6:,.1f}{SPACE}µs"
    return quantity(probe.value, probe.unit)


_PREFIXES: Final = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY_PREFIXES: Final = (
    (2**50, "Pi"),
    (2**40, "Ti"),
    (2**30, "Gi"),
    (2**20, "Mi"),
    (2**10, "Ki"),
)
# Between number and unit, so that they are never torn apart.
SPACE: Final = "\N{NO-BREAK SPACE}"


def percent(ratio: float) -> str:
    """A ratio as per cent: whole ones, but one digit more below 1 %."""
    value = ratio * 100
    if 0 < value < 0.05:
        return f"<0.1{SPACE}%"
    return f"{value:.1f}{SPACE}%" if 0 < value < 0.95 else f"{value:,.0f}{SPACE}%"


def quantity(value: float, unit: str) -> str:
    """Three significant digits with an SI prefix: 98.4 TFLOP/s."""
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor * 0.9995:
            return f"{_digits(value / factor)}{SPACE}{prefix}{unit}"
    return f"{_digits(value)}{SPACE}{unit}"


def binary(value_bytes: float) -> str:
    """Bytes with a binary prefix: 79.6 GiB."""
    for factor, prefix in _BINARY_PREFIXES:
        if abs(value_bytes) >= factor * 0.9995:
            return f"{_digits(value_bytes / factor)}{SPACE}{prefix}B"
    return f"{value_bytes:,.0f}{SPACE}B"


def megahertz(hertz: float) -> str:
    """A clock without its unit, for '1,200 of 1,980 MHz'."""
    return f"{hertz / 1e6:,.0f}"


def span(seconds: float) -> str:
    """A span of time in its largest unit, rounded down as people say it: 34 s, 5 min, 3 h, 2 days."""
    if seconds < 120:
        return f"{max(0, int(seconds))}{SPACE}s"
    if seconds < 2 * 3600:
        return f"{int(seconds / 60)}{SPACE}min"
    if seconds < 2 * 86400:
        return f"{int(seconds / 3600)}{SPACE}h"
    return f"{int(seconds / 86400)}{SPACE}days"


def count(number: float, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 error, 2,000 errors."""
    return f"{number:,.0f}{SPACE}{noun if number == 1 else plural or noun + 's'}"


def _digits(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
