"""The exporter's own judgement of the devices, and what it needs to judge them over time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from exporter.findings import Finding
from exporter.metrics.family import Label, Sample, Subject
from exporter.metrics.rows import Samples
from exporter.readings import HostFacts


SUBJECT = Subject("Findings")

FINDING = SUBJECT.gauge(
    "flopwatch_finding",
    labels=("kind", "severity"),
    help=(
        "Current finding about the device, always 1; the status page shows its text. Severity: "
        "critical, warning or info."
    ),
    interpretation="The exporter's verdict. Alerts and dashboards use the same kinds and thresholds.",
)
FINDING_SINCE_TIMESTAMP_SECONDS = SUBJECT.gauge(
    "flopwatch_finding_since_timestamp_seconds",
    labels=("kind",),
    help="Unix time when the finding began. Kept in the state file across restarts.",
    interpretation="How long a device has been in this condition.",
)
GPU_RESET_TIMESTAMP_SECONDS = SUBJECT.gauge(
    "flopwatch_gpu_reset_timestamp_seconds",
    help=(
        "Unix time when the exporter last saw evidence of a GPU reset or driver reload: the "
        "energy counter restarted, or a pending row remapping was done. Absent if none was "
        "seen."
    ),
    interpretation="XIDs and memory errors from before this time count as repaired.",
)
CONFIGURATION_PROBLEM = SUBJECT.gauge(
    "flopwatch_configuration_problem",
    labels=("problem",),
    per_device=False,
    help="Item of the configuration that this host does not have, always 1.",
    interpretation="A mistake in the configuration, or a GPU that is gone.",
)
EXPECTED_GPUS = SUBJECT.gauge(
    "flopwatch_expected_gpus",
    unit="GPUs",
    per_device=False,
    help=(
        "NVIDIA GPUs on the PCI bus, from /sys/bus/pci, whether or not the driver lists them. "
        "Virtual functions and devices bound to vfio-pci do not count."
    ),
    interpretation="More than the driver lists: a GPU is missing or the driver is not loaded.",
)
BOOT_TIME_SECONDS = SUBJECT.gauge(
    "flopwatch_boot_time_seconds",
    per_device=False,
    help="Unix time of the host's boot, from /proc/stat.",
    interpretation="XIDs and memory errors from before the boot count as repaired.",
)
TIME_SECONDS = SUBJECT.gauge(
    "flopwatch_time_seconds",
    per_device=False,
    help="Unix time on the host's clock when this exposition was rendered.",
    interpretation="A difference from the time of the scrape means that a clock is wrong.",
)


@dataclass(frozen=True, slots=True)
class DeviceFindings:
    """A device's labels, its findings, their start (by kind), and its last reset (Unix time)."""

    labels: tuple[Label, ...]
    findings: tuple[Finding, ...]
    since_unix_seconds: dict[str, float]
    reset_unix_seconds: float | None


def finding_samples(devices: Iterable[DeviceFindings]) -> Iterator[Sample]:
    """The findings, each kind and severity once per device."""
    for device in devices:
        held = dict.fromkeys((found.kind, found.severity) for found in device.findings)
        for kind, severity in held:
            labels = (("kind", kind), ("severity", severity.value))
            yield Sample(FINDING, (*device.labels, *labels), 1.0)
        for kind in dict.fromkeys(kind for kind, _ in held):
            if kind in device.since_unix_seconds:
                since = device.since_unix_seconds[kind]
                yield Sample(
                    FINDING_SINCE_TIMESTAMP_SECONDS, (*device.labels, ("kind", kind)), since
                )
        if device.reset_unix_seconds is not None:
            yield Sample(GPU_RESET_TIMESTAMP_SECONDS, device.labels, device.reset_unix_seconds)


def host_fact_samples(told: tuple[HostFacts, float]) -> Iterator[Sample]:
    """What the host reports about itself, and the Unix time on its clock."""
    facts, unix_seconds = told
    yield Sample(TIME_SECONDS, (), unix_seconds)
    if facts.expected_gpus is not None:
        yield Sample(EXPECTED_GPUS, (), float(facts.expected_gpus))
    if facts.boot_unix_seconds is not None:
        yield Sample(BOOT_TIME_SECONDS, (), facts.boot_unix_seconds)


def configuration_problem_samples(problems: Iterable[str]) -> Iterator[Sample]:
    """What the configuration names and the host does not have, in words."""
    for problem in dict.fromkeys(problems):
        yield Sample(CONFIGURATION_PROBLEM, (("problem", problem),), 1.0)


FINDINGS: Samples[list[DeviceFindings]] = Samples(finding_samples)
HOST_FACTS: Samples[tuple[HostFacts, float]] = Samples(host_fact_samples)
CONFIGURATION_PROBLEMS: Samples[list[str]] = Samples(configuration_problem_samples)
