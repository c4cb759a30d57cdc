"""Whose a process is, as /proc tells it: control group, host name, mounts.

In a pod, `/etc/hostname` holds the pod's name (cut at 63 characters), unless it uses the host's
network. The kubelet mounts the container's termination log from
`/var/lib/kubelet/pods/<uid>/containers/<container>/…`, which names the container. Both need the right
to look into another user's process (CAP_SYS_PTRACE, or root); without it only the control group is
there. Slurm jobs are found by their control groups (job_processes).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from exporter.attribution.job_processes import process_job
from exporter.attribution.snapshot import ProcessOwner
from exporter.procfs import process_name


_FILE_BYTES_MAX = 64 * 1024  # a pod has some dozens of mounts
_HOST_NAME_BYTES_MAX = 256
_POD = "kubepods"
_CONTAINER = re.compile(r"/pods/[0-9a-f-]{8,36}/containers/([a-z0-9-]{1,63})/")
_START_TIME_FIELD = 22  # proc_pid_stat(5)
_PROCESSES_MAX = 4096


class ProcessOwners:
    """Finds the owners of processes, and remembers them for as long as the process lives."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._known: dict[int, tuple[str, ProcessOwner]] = {}

    def find(self, pids: Iterable[int]) -> Mapping[int, ProcessOwner]:
        """The owners of those processes that are there. Ids that are handed out again are read again."""
        found: dict[int, tuple[str, ProcessOwner]] = {}
        for pid in list(dict.fromkeys(pids))[:_PROCESSES_MAX]:
            started = _start_time(pid, self._proc)
            if started is None:
                # It has ended; what it did in its last tick is still its owner's.
                if pid in self._known:
                    found[pid] = self._known[pid]
                continue
            known = self._known.get(pid)
            if known is None or known[0] != started:
                known = started, process_owner(pid, self._proc)
            found[pid] = known
        self._known = found
        return {pid: owner for pid, (_started, owner) in found.items()}


def process_owner(pid: int, proc: Path = Path("/proc")) -> ProcessOwner:
    """What /proc says of a process; empty strings where it says nothing."""
    host_name = container = ""
    if _POD in _read(f"{proc}/{pid}/cgroup"):
        host_name = _read(f"{proc}/{pid}/root/etc/hostname", _HOST_NAME_BYTES_MAX).strip()
        mount = _CONTAINER.search(_read(f"{proc}/{pid}/mountinfo"))
        container = mount[1] if mount else ""
    return ProcessOwner(
        host_name=host_name,
        container=container,
        job=process_job(pid, proc) or "",
        name=process_name(pid, proc),
    )


def _start_time(pid: int, proc: Path) -> str | None:
    """When the process began, in clock ticks since boot: with its id, its identity."""
    # The name, in parentheses, may hold spaces; what follows begins with field 3.
    fields = _read(f"{proc}/{pid}/stat").rpartition(")")[2].split()
    position = _START_TIME_FIELD - 3
    return fields[position] if len(fields) > position else None


def _read(path: str, limit: int = _FILE_BYTES_MAX) -> str:
    """The beginning of a file of /proc; empty where it is gone, or not ours to see."""
    try:
        # Not by Path: it interns every part, and the interpreter's table of these never shrinks.
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
