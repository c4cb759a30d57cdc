"""What of the holders is configurable."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HolderSettings:
    """`pod_resources` is auto (where the socket is), on or off; None turns the directory off.

    `interval_seconds` is the time between readings of one source; a change that can be seen
    from outside (a new socket, a written file, a new process on a GPU) is read within a second.
    """

    pod_resources: str = "auto"
    socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    job_mapping_dir: Path | None = Path("/var/run/flopwatch/jobs")
    job_processes: bool = True
    interval_seconds: float = 10.0
    timeout_seconds: float = 5.0
