"""Finds the owners of the processes that NVML lists, from /proc: Slurm job, pod, container.

In a pod, `/etc/hostname` holds the pod's name (truncated to 63 characters), unless it uses the
host's network. The kubelet mounts the container's termination log from
`/var/lib/kubelet/pods/<uid>/containers/<container>/…`, which names the container. Both need
permission to inspect another user's process (CAP_SYS_PTRACE, or root); without it only the control
group is readable.

Slurm's cgroup plugin puts each step below `…/job_<id>/step_<id>`: with cgroup v1
`/slurm/uid_1000/job_42/step_0/task_0`, with v2
`/system.slice/slurmstepd.scope/job_42/step_0/user/task_0`. From 26.05 on, unless
`CgroupJobIdPaths=yes` is set, the job's directory is its SLUID (an `s` and 13 characters of
Crockford's base 32): `/system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_0/user/task_0`. The number
is then in the process title of the step's daemon, `slurmstepd: [42.0]`. (Slurm documentation,
cgroup.conf and cgroup v2 pages.) This needs neither root nor a prolog, but sees only jobs that have
opened the GPU.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from exporter import procfs
from exporter.attribution.snapshot import DeviceKey, JobUse, ProcessOwner
from exporter.state import State


_POD = "kubepods"
_CONTAINER = re.compile(r"/pods/[0-9a-f-]{8,36}/containers/([a-z0-9-]{1,63})/")
_PROCESSES_MAX = 4096

# The inode of the first PID namespace (PROC_PID_INIT_INO in include/linux/proc_ns.h).
_HOST_PID_NAMESPACE = "pid:[4026531836]"

_PROCESSES_PER_DEVICE_MAX = 1024
_SLURM_JOB = re.compile(
    r"^\d+:[^\n]*slurm[^\n]*/(?:job_(\d{1,18})(?:/|$)|(s[0-9A-HJKMNP-TV-Z]{13})/step_)",
    re.MULTILINE,
)
_SLUID = re.compile(r"s[0-9A-HJKMNP-TV-Z]{13}")
# A task may be a script that starts others; a bound against loops in the ancestry.
_ANCESTORS_MAX = 64
_STEP_DAEMON = re.compile(r"slurmstepd: \[(\d{1,18})[.+\]]")


def sees_host_processes(proc: Path = procfs.PROC) -> bool:
    """Whether this process is in the host's PID namespace; True if that cannot be read."""
    try:
        return str((proc / "self/ns/pid").readlink()) == _HOST_PID_NAMESPACE
    except OSError:
        return True


class ProcessOwners:
    """Finds the owners of processes, and caches them while the processes live."""

    def __init__(self, proc: Path = procfs.PROC) -> None:
        self._proc = proc
        self._known: dict[int, tuple[int, ProcessOwner]] = {}

    def find(self, pids: Iterable[int]) -> Mapping[int, ProcessOwner]:
        """The owners of the processes that exist. A reused process id is read again."""
        found: dict[int, tuple[int, ProcessOwner]] = {}
        for pid in list(dict.fromkeys(pids))[:_PROCESSES_MAX]:
            now = procfs.process(pid, self._proc)
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


def process_owner(pid: int, proc: Path = procfs.PROC) -> ProcessOwner:
    """The owner of a process from /proc; strings are empty where /proc has no answer."""
    host_name = container = ""
    if _POD in procfs.read(pid, "cgroup", proc):
        host_name = procfs.read(pid, "root/etc/hostname", proc).strip()
        mount = _CONTAINER.search(procfs.read(pid, "mountinfo", proc))
        container = mount[1] if mount else ""
    return ProcessOwner(
        host_name=host_name,
        container=container,
        job=process_job(pid, proc) or "",
        name=procfs.process_name(pid, proc),
    )


def device_processes(state: State) -> dict[DeviceKey, frozenset[int]]:
    """Process ids by device, for the devices that have any."""
    found = {}
    for device in state.devices:
        if device.slow is not None and device.slow.processes:
            pids = sorted(process.pid for process in device.slow.processes)
            key = DeviceKey(uuid=device.identity.uuid)
            found[key] = frozenset(pids[:_PROCESSES_PER_DEVICE_MAX])
    return found


def slurm_jobs(
    processes: Mapping[DeviceKey, frozenset[int]], proc: Path = procfs.PROC
) -> tuple[JobUse, ...]:
    """The jobs of these processes, once per device."""
    return tuple(dict.fromkeys(_jobs(processes, proc)))


def _jobs(processes: Mapping[DeviceKey, frozenset[int]], proc: Path) -> Iterator[JobUse]:
    for device, pids in processes.items():
        for pid in sorted(pids):
            job = process_job(pid, proc)
            if job is not None:
                yield JobUse(device, job)


def process_job(pid: int, proc: Path = procfs.PROC) -> str | None:
    """The Slurm job of a process; None if it has none, has ended, or is not visible to us.

    The job's number, or its SLUID if nothing on this host gives the number.
    """
    process = procfs.process(pid, proc)
    job = slurm_job(procfs.read(pid, "cgroup", proc))
    if process is None or job is None:
        return None
    if _SLUID.fullmatch(job):
        job = _number_by_ancestors(process, proc) or job
    # If it has ended meanwhile, the answers may be from two processes.
    return job if procfs.process(pid, proc) == process else None


def slurm_job(groups: str) -> str | None:
    """The job in the text of a process's cgroup file, by number or SLUID; None without a job."""
    found = _SLURM_JOB.search(groups)
    return (found[1] or found[2]) if found else None


def is_sluid(job: str) -> bool:
    """Whether a job is named by its SLUID, which `squeue` accepts in place of its number."""
    return _SLUID.fullmatch(job) is not None


def _number_by_ancestors(process: procfs.Process, proc: Path) -> str | None:
    """The job's number in the process title of the slurmstepd that started the process.

    Only a root process is trusted: any process can use the title slurmstepd.
    """
    for _generation in range(_ANCESTORS_MAX):
        parent = procfs.process(process.parent, proc)
        if process.parent <= 1 or parent is None or parent.start_ticks > process.start_ticks:
            return None
        process = parent
        title = _STEP_DAEMON.match(procfs.read(process.pid, "cmdline", proc))
        if title is not None:
            return title[1] if procfs.owner(process.pid, proc) == 0 else None
    return None
