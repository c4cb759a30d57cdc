"""Which Slurm jobs hold GPUs: the control groups of the processes that NVML lists.

Slurm's cgroup plugin puts each step below `…/job_<id>/step_<id>`, in every version: with cgroup v1
`/slurm/uid_1000/job_42/step_0/task_0`, with v2
`/system.slice/slurmstepd.scope/job_42/step_0/user/task_0`. (Slurm documentation, cgroup.conf and
cgroup v2 pages.) It needs neither root nor a prolog, but sees only jobs that have opened the GPU.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from exporter.attribution.snapshot import DeviceKey, JobUse
from exporter.state import State


_PROCESSES_PER_DEVICE_MAX = 1024
# A process is in a dozen hierarchies at most, with paths of a few hundred bytes.
_CGROUP_BYTES_MAX = 16 * 1024
_SLURM_JOB = re.compile(r"^\d+:[^\n]*slurm[^\n]*/job_(\d{1,18})(?:/|$)", re.MULTILINE)


def device_processes(state: State) -> dict[DeviceKey, frozenset[int]]:
    """Process ids by device, of those devices that have any."""
    found = {}
    for device in state.devices:
        if device.slow is not None and device.slow.processes:
            pids = sorted(process.pid for process in device.slow.processes)
            key = DeviceKey(uuid=device.identity.uuid)
            found[key] = frozenset(pids[:_PROCESSES_PER_DEVICE_MAX])
    return found


def slurm_jobs(
    processes: Mapping[DeviceKey, frozenset[int]], proc: Path = Path("/proc")
) -> tuple[JobUse, ...]:
    """The jobs of these processes, each once per device."""
    return tuple(dict.fromkeys(_jobs(processes, proc)))


def _jobs(processes: Mapping[DeviceKey, frozenset[int]], proc: Path) -> Iterator[JobUse]:
    for device, pids in processes.items():
        for pid in sorted(pids):
            # Not by Path: it interns every part, and the interpreter's table of these never shrinks.
            job = slurm_job(f"{proc}/{pid}/cgroup")
            if job is not None:
                yield JobUse(device, job)


def slurm_job(path: str | Path) -> str | None:
    """The job id in a process' cgroup file; None where it is in no job, gone, or not ours to see."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            groups = file.read(_CGROUP_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return None
    found = _SLURM_JOB.search(groups)
    return found[1] if found else None
