"""Finds the batch jobs that hold GPUs in a directory kept by the scheduler's prolog and epilog.

The format is dcgm-exporter's: a file per GPU, named by its index (`0`), or by index and GPU
instance (`0.3`) for MIG; each line is a job. Files may also be named by a UUID, or by a device node
(`nvidia4`), as flopwatch's own Slurm prolog does: Slurm's index of a GPU is not always NVML's. A
line may give an array task's job id and its name, `1235 1234_7`: the name is shown. The directory's
writers are trusted only with job names: links and special files are not opened, and all sizes are
bounded.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from exporter.attribution.snapshot import DeviceKey, JobUse
from exporter.errors import HolderSourceError


_FILES_MAX = 1024
_FILE_BYTES_MAX = 16 * 1024
_JOBS_PER_DEVICE_MAX = 64
_JOB_LENGTH_MAX = 128
_INDEX = re.compile(r"(\d{1,4})(?:\.(\d{1,4}))?")
_NAMED = re.compile(r"(\d{1,18}) +(\d{1,18}_\d{1,18})")
_NODE = re.compile(r"nvidia(\d{1,4})")
_UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z-]{1,64}")


def read_jobs(folder: Path) -> tuple[JobUse, ...]:
    """All jobs of all devices. Raises HolderSourceError if the directory cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry, _ in zip(entries, range(_FILES_MAX), strict=False))
    except FileNotFoundError:
        raise HolderSourceError("absent", f"{folder} is not there") from None
    except PermissionError:
        raise HolderSourceError("permission", f"{folder} may not be read") from None
    except OSError as error:
        raise HolderSourceError(
            "unreadable", f"{folder}: {os.strerror(error.errno or 0)}"
        ) from None
    return tuple(dict.fromkeys(_jobs(folder, names)))


def change_mark(folder: Path) -> object:
    """A value that changes when a file is added, removed or written; None without the directory."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(
                (entry.name, status.st_mtime_ns, status.st_size, status.st_ino)
                for entry, _ in zip(entries, range(_FILES_MAX), strict=False)
                for status in [entry.stat(follow_symlinks=False)]
            )
    except OSError:
        return None


def _jobs(folder: Path, names: list[str]) -> Iterator[JobUse]:
    for name in names:
        key = _device(name)
        if key is not None:
            for job in _lines(folder / name)[:_JOBS_PER_DEVICE_MAX]:
                named = _NAMED.fullmatch(job)
                yield JobUse(key, named[2], named[1]) if named else JobUse(key, job)


def _device(name: str) -> DeviceKey | None:
    indexed = _INDEX.fullmatch(name)
    if indexed:
        return DeviceKey(index=str(int(indexed[1])), mig=indexed[2])
    node = _NODE.fullmatch(name)
    if node:
        return DeviceKey(minor=str(int(node[1])))
    return DeviceKey(uuid=name) if _UUID.fullmatch(name) else None


def _lines(path: Path) -> list[str]:
    """The lines of a regular file that can be job names. A file that was just removed has none."""
    try:
        # O_NOFOLLOW: a link must not turn the lines of another file into labels. O_NONBLOCK: a
        # named pipe must not block the thread.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return []
        content = os.read(handle, _FILE_BYTES_MAX)
    except OSError:
        return []
    finally:
        os.close(handle)
    lines = (line.strip() for line in content.decode("utf-8", "replace").splitlines())
    return [line for line in lines if line and line.isprintable() and len(line) <= _JOB_LENGTH_MAX]
