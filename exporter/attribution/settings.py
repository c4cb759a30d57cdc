"""The settings of holders and prices."""

from dataclasses import dataclass
from pathlib import Path

from flopwatch.option_parsers import boolean, choice, currency_code, integer, number, optional, text
from flopwatch.options import option


@dataclass(frozen=True, slots=True)
class PriceRule:
    """One entry of `prices`: the hourly cost of devices that match all given patterns."""

    uuid: str | None = option("match.uuid", optional(text()), None, "Device UUID (glob).", "GPU-*")
    index: int | None = option(
        "match.index", optional(integer(at_least=0, at_most=10_000)), None, "NVML index.", "0"
    )
    name: str | None = option(
        "match.name", optional(text()), None, "Product name (glob).", '"NVIDIA H100*"'
    )
    per_gpu_hour: float = option(
        "per_gpu_hour",
        number(above=0, at_most=1e9),
        0.0,
        "Price of one hour of one GPU.",
        "2.50",
        required=True,
    )
    currency: str = option(
        "currency", currency_code(), "USD", "Currency, as an ISO 4217 code.", "USD"
    )


@dataclass(frozen=True, slots=True)
class HolderSettings:
    """`pod_resources` is auto (on if the socket exists), on or off; None turns the directory off.

    `interval_seconds` is the time between reads of one source; a visible change (a new socket, a
    written file, a new process on a GPU) is read within a second.
    """

    pod_resources: str = option(
        "kubernetes.pod_resources",
        choice("auto", "on", "off"),
        "auto",
        "Ask the kubelet which pods hold the GPUs.",
        "auto",
    )
    socket: Path = option(
        "kubernetes.socket",
        text(),
        "/var/lib/kubelet/pod-resources/kubelet.sock",
        "The kubelet's pod-resources socket.",
        "/var/lib/kubelet/pod-resources/kubelet.sock",
        convert=Path,
    )
    job_mapping_dir: Path | None = option(
        "hpc.job_mapping_dir",
        optional(text()),
        "/var/run/flopwatch/jobs",
        "Directory with one file per GPU and one job per line.",
        "/var/run/flopwatch/jobs",
        convert=Path,
    )
    job_processes: bool = option(
        "hpc.job_processes",
        boolean(),
        True,
        "Find Slurm jobs by the control groups of GPU processes.",
        "true",
    )
    by_process: bool = option(
        "processes.holders",
        boolean(),
        False,
        "Charge devices that no pod, job or engine holds to their processes, by name (at most 16 a device).",
        "false",
    )
    interval_seconds: float = 10.0
    timeout_seconds: float = 5.0
