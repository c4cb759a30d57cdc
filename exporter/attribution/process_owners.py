"""Finds the owner of a process from /proc: control group, host name, mounts.

In a pod, `/etc/hostname` holds the pod's name (truncated to 63 characters), unless it uses the
host's network. The kubelet mounts the container's termination log from
`/var/lib/kubelet/pods/<uid>/containers/<container>/…`, which names the container. Both need
permission to inspect another user's process (CAP_SYS_PTRACE, or root); without it only the control
group is readable. Slurm jobs are found by their control groups (job_processes).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from exporter.attribution.job_processes import process_job
from exporter.attribution.snapshot import ProcessOwner
from exporter.procfs import PROC, process, process_name, read


_POD = "kubepods"
_CONTAINER = re.compile(r"/pods/[0-9a-f-]{8,36}/containers/([a-z0-9-]{1,63})/")
_PROCESSES_MAX = 4096


# The inode of the first PID namespace (PROC_PID_INIT_INO in include/linux/proc_ns.h).
_HOST_PID_NAMESPACE = "pid:[4026531836]"


def sees_host_processes(proc: Path = PROC) -> bool:
    """Whether this process is in the host's PID namespace; True if that cannot be read."""
    try:
        return str((proc / "self/ns/pid").readlink()) == _HOST_PID_NAMESPACE
    except OSError:
        return True


class ProcessOwners:
    """Finds the owners of processes, and caches them while the processes live."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._known: dict[int, tuple[int, ProcessOwner]] = {}

    def find(self, pids: Iterable[int]) -> Mapping[int, ProcessOwner]:
        """The owners of the processes that exist. A reused process id is read again."""
        found: dict[int, tuple[int, ProcessOwner]] = {}
        for pid in list(dict.fromkeys(pids))[:_PROCESSES_MAX]:
            now = process(pid, self._proc)
            if now is None:
                # It has ended; its work in the last tick still belongs to its owner.
                if pid in self._known:
                    found[pid] = self._known[pid]
                continue
            known = self._known.get(pid)
            if known is None or known[0] != now.start_ticks:
                known = now.start_ticks, process_owner(pid, self._proc)
            found[pid] = known
        self._known = found
        return {pid: owner for pid, (_started, owner) in found.items()}


def process_owner(pid: int, proc: Path = PROC) -> ProcessOwner:
    """The owner of a process from /proc; strings are empty where /proc has no answer."""
    host_name = container = ""
    if _POD in read(pid, "cgroup", proc):
        host_name = read(pid, "root/etc/hostname", proc).strip()
        mount = _CONTAINER.search(read(pid, "mountinfo", proc))
        container = mount[1] if mount else ""
    return ProcessOwner(
        host_name=host_name,
        container=container,
        job=process_job(pid, proc) or "",
        name=process_name(pid, proc),
    )
