"""What a process uses: CPU time to the nanosecond, resident memory, threads, descriptors."""

import time
from dataclasses import dataclass
from pathlib import Path


# CPUCLOCK_SCHED of another process (linux/posix-timers.h): its threads, including dead ones.
_SCHEDULER_CLOCK = 2


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process since it started."""
    return time.clock_gettime((~pid << 3) | _SCHEDULER_CLOCK)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process, bytes. `shared_with` is the mapping of one file within it."""

    resident: int
    peak: int
    mapping: int

    @property
    def own(self) -> int:
        """Resident memory without the mapping."""
        return self.resident - self.mapping


def memory(pid: int, mapped_file: str) -> Memory:
    """Resident memory, and how much of it is this file's mapping: the fake driver's control block."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    mapping, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            inside = line.endswith(mapped_file)
        elif inside and name == "Rss:":
            mapping += int(rest.split()[0]) * 1024
    return Memory(
        resident=int(status["VmRSS"].split()[0]) * 1024,
        peak=int(status["VmHWM"].split()[0]) * 1024,
        mapping=mapping,
    )


def threads(pid: int) -> int:
    """Number of threads."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def descriptors(pid: int) -> int:
    """Number of open file descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
