"""Finds batch jobs, in the scheduler's files and by processes, and the owners of processes.

Job files are in a directory kept by the scheduler's prolog and epilog. The format is dcgm-exporter's:
a file per GPU, named by its index (`0`), or by index and GPU instance (`0.3`) for MIG; each line is
a job. Files may also be named by a UUID, or by a device node (`nvidia4`), as flopwatch's own Slurm
prolog does: Slurm's index of a GPU is not always NVML's. A line may give an array task's job id and
its name, `1235 1234_7`: the name is shown. The directory's writers are trusted only with job names:
links and special files are not opened, and all sizes are bounded.

Processes are looked up in /proc. In a pod, `/etc/hostname` holds the pod's name (truncated to 63
characters), unless it uses the host's network. The kubelet mounts the container's termination log
from `/var/lib/kubelet/pods/<uid>/containers/<container>/…`, which names the container. Both need
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

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import structlog

from exporter import procfs
from exporter.attribution.snapshot import DeviceKey, JobUse, ProcessOwner
from exporter.errors import HolderSourceError
from exporter.state import State


log = structlog.get_logger(__name__)

_FILES_MAX = 1024
_FILE_BYTES_MAX = 16 * 1024
_JOBS_PER_FILE_MAX = 64
_JOB_LENGTH_MAX = 128
_FILES_NAMED_MAX = 8  # in the log
_INDEX = re.compile(r"(\d{1,4})(?:\.(\d{1,4}))?")
_NAMED = re.compile(r"(\d{1,18}) +(\d{1,18}_\d{1,18})")
_NODE = re.compile(r"nvidia(\d{1,4})")
_UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z-]{1,64}")

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


class JobFiles:
    """The jobs in a directory of job files. Used by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._was_cut = False

    def read(self) -> tuple[JobUse, ...]:
        """All jobs of all devices. Raises HolderSourceError if the directory cannot be read.

        What is beyond the limits is left out, and logged when that begins and ends.
        """
        uses: dict[JobUse, None] = {}
        cut: list[str] = []
        left_out = 0
        names = self._names()
        for name in names[:_FILES_MAX]:
            key = _device(name)
            if key is None:
                continue
            jobs, is_whole = _lines(self._folder / name)
            uses.update(dict.fromkeys(_use(key, job) for job in jobs[:_JOBS_PER_FILE_MAX]))
            left_out += len(jobs[_JOBS_PER_FILE_MAX:])
            if len(jobs) > _JOBS_PER_FILE_MAX or not is_whole:
                cut.append(name)
        is_cut = bool(cut) or len(names) > _FILES_MAX
        if is_cut and not self._was_cut:
            log.warning(
                "jobs_left_out",
                folder=str(self._folder),
                files=cut[:_FILES_NAMED_MAX],
                jobs_at_least=left_out,
                jobs_per_file_max=_JOBS_PER_FILE_MAX,
                files_max=_FILES_MAX,
            )
        elif self._was_cut and not is_cut:
            log.info("jobs_complete", folder=str(self._folder))
        self._was_cut = is_cut
        return tuple(uses)

    def mark(self) -> object:
        """Changes when a file is added, removed or written; None without the directory."""
        try:
            with os.scandir(self._folder) as entries:
                return frozenset(
                    (entry.name, status.st_mtime_ns, status.st_size, status.st_ino)
                    for entry in islice(entries, _FILES_MAX)
                    for status in [entry.stat(follow_symlinks=False)]
                )
        except OSError:
            return None

    def _names(self) -> list[str]:
        """The names of the files, up to one more than are read. Raises HolderSourceError."""
        folder = self._folder
        try:
            with os.scandir(folder) as entries:
                return sorted(entry.name for entry in islice(entries, _FILES_MAX + 1))
        except FileNotFoundError:
            raise HolderSourceError("absent", f"{folder} is not there") from None
        except PermissionError:
            raise HolderSourceError("permission", f"{folder} may not be read") from None
        except OSError as error:
            raise HolderSourceError(
                "unreadable", f"{folder}: {os.strerror(error.errno or 0)}"
            ) from None


def _use(device: DeviceKey, line: str) -> JobUse:
    named = _NAMED.fullmatch(line)
    return JobUse(device, named[2], named[1]) if named else JobUse(device, line)


def _device(name: str) -> DeviceKey | None:
    indexed = _INDEX.fullmatch(name)
    if indexed:
        return DeviceKey(index=str(int(indexed[1])), mig=indexed[2])
    node = _NODE.fullmatch(name)
    if node:
        return DeviceKey(minor=str(int(node[1])))
    return DeviceKey(uuid=name) if _UUID.fullmatch(name) else None


def _lines(path: Path) -> tuple[list[str], bool]:
    """The lines of a regular file that can be job names, and whether the whole file was read.

    A file that was just removed has none.
    """
    try:
        # O_NOFOLLOW: a link must not turn the lines of another file into labels. O_NONBLOCK: a
        # named pipe must not block the thread.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return [], True
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return [], True
        content = os.read(handle, _FILE_BYTES_MAX + 1)
    except OSError:
        return [], True
    finally:
        os.close(handle)
    is_whole = len(content) <= _FILE_BYTES_MAX
    if not is_whole:  # the last line may be a part of a name
        content = content[: content.rfind(b"\n") + 1]
    lines = (line.strip() for line in content.decode("utf-8", "replace").splitlines())
    jobs = [line for line in lines if line and line.isprintable() and len(line) <= _JOB_LENGTH_MAX]
    return jobs, is_whole


def merged(mapped: tuple[JobUse, ...], found: tuple[JobUse, ...]) -> tuple[JobUse, ...]:
    """Jobs reported by the scheduler and found by processes, each once and under one name.

    An array task uses the name that its prolog wrote. A job whose processes do not give its number
    is left out if the scheduler names a job on any device: it is the same job.
    """
    names = {use.job_id: use.job for use in mapped if use.job_id is not None}
    renamed = [
        replace(use, job=names.get(use.job, use.job))
        for use in found
        if not (mapped and is_sluid(use.job))
    ]
    named = [replace(use, job_id=None) for use in mapped]
    return tuple(dict.fromkeys([*named, *renamed]))


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
    uses = (
        JobUse(device, job)
        for device, pids in processes.items()
        for pid in sorted(pids)
        if (job := process_job(pid, proc)) is not None
    )
    return tuple(dict.fromkeys(uses))


def process_job(pid: int, proc: Path = procfs.PROC) -> str | None:
    """The Slurm job of a process; None if it has none, has ended, or is not visible to us.

    The job's number, or its SLUID if nothing on this host gives the number.
    """
    process = procfs.process(pid, proc)
    job = slurm_job(procfs.read(pid, "cgroup", proc))
    if process is None or job is None:
        return None
    if is_sluid(job):
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
