"""Which processes serve an address, and so which GPUs: the listener and all its descendants.

Paths are strings: Path interns every part, and process ids come and go in the interpreter's table of
these, which never shrinks.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit


_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})  # noqa: S104 - compared


def serving_processes(url: str, proc: Path = Path("/proc")) -> frozenset[int]:
    """Return the processes behind a local address; empty where it is remote or not ours to see.

    An engine's API server listens and its workers hold the GPUs, so the whole tree below the
    listener's process is returned. Reading other users' sockets needs root or CAP_SYS_PTRACE.
    """
    parts = urlsplit(url)
    if parts.hostname not in _LOCAL_HOSTS:
        return frozenset()
    root = str(proc)
    inodes = _listening_inodes(parts.port or 80, root)
    listeners = _holders(inodes, root) if inodes else frozenset()
    return _with_descendants(listeners, root)


def _listening_inodes(port: int, proc: str) -> frozenset[str]:
    inodes = set()
    for name in ("tcp", "tcp6"):
        for line in _lines(f"{proc}/net/{name}")[1:]:
            fields = line.split()
            if len(fields) < 10 or fields[3] != _LISTEN:
                continue
            if int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return frozenset(inodes)


def _holders(inodes: frozenset[str], proc: str) -> frozenset[int]:
    sockets = {f"socket:[{inode}]" for inode in inodes}
    return frozenset(pid for pid in _pids(proc) if _holds(f"{proc}/{pid}/fd", sockets))


def _holds(folder: str, sockets: set[str]) -> bool:
    try:
        with os.scandir(folder) as links:
            return any(os.readlink(link.path) in sockets for link in links)  # noqa: PTH115
    except OSError:  # the process is gone, or not ours to see
        return False


def _with_descendants(roots: frozenset[int], proc: str) -> frozenset[int]:
    if not roots:
        return roots
    children: dict[int, list[int]] = {}
    for pid in _pids(proc):
        children.setdefault(_parent(pid, proc), []).append(pid)
    found, open_ends = set(roots), list(roots)
    while open_ends:
        for child in children.get(open_ends.pop(), ()):
            if child not in found:
                found.add(child)
                open_ends.append(child)
    return frozenset(found)


def _parent(pid: int, proc: str) -> int:
    # The second field is the command in parentheses and may hold spaces and parentheses.
    lines = _lines(f"{proc}/{pid}/stat")
    fields = lines[0].rpartition(")")[2].split() if lines else []
    return int(fields[1]) if len(fields) > 1 else 0


def _pids(proc: str) -> Iterable[int]:
    try:
        with os.scandir(proc) as entries:
            return [int(entry.name) for entry in entries if entry.name.isdecimal()]
    except OSError:
        return []


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read().splitlines()
    except OSError:
        return []
