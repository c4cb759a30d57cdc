"""Processes as /proc shows them: the one place that reads it.

A process may end between any two readings, and its id may be reused: store the start time together
with every id. Another user's files, and those of other pid namespaces, are not readable; what
cannot be read is treated as absent. Paths are strings: Path interns every part, and process ids
come and go in the interpreter's table of these, which never shrinks.
"""

import ipaddress
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


PROC = Path("/proc")
# A cgroup file or command line is a few hundred bytes; a socket table has a line for each socket.
_FILE_BYTES_MAX = 16 * 1024
_TABLE_BYTES_MAX = 8 * 2**20
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_OWNER = re.compile(r"^Uid:\s*(\d+)", re.MULTILINE)
# Fields of /proc/<pid>/stat, counted from 1; those after the name begin with field 3.
_PARENT_FIELD, _START_TIME_FIELD, _FIRST_FIELD = 4, 22, 3


class Listener(NamedTuple):
    """A TCP socket that is listened on: its address, `0.0.0.0` and `::` for all, and its inode."""

    address: str
    port: int
    inode: str


class Process(NamedTuple):
    """A process: its id, its parent's, and when it started in clock ticks since boot."""

    pid: int
    parent: int
    start_ticks: int


def read(pid: int, file: str, proc: Path = PROC, *, limit: int = _FILE_BYTES_MAX) -> str:
    """The first bytes of a file of a process, such as `cgroup`; empty if it cannot be read."""
    return _text(f"{proc}/{pid}/{file}", limit)


def process_name(pid: int, proc: Path = PROC) -> str:
    """The process's command name, as `ps` shows it; `unknown` if it is gone or hidden."""
    return read(pid, "comm", proc).strip() or "unknown"


def process(pid: int, proc: Path = PROC) -> Process | None:
    """The process with this id now; None if there is none or it is hidden."""
    # The name, in parentheses, may hold spaces and parentheses.
    fields = read(pid, "stat", proc).rpartition(")")[2].split()
    try:
        return Process(
            pid,
            int(fields[_PARENT_FIELD - _FIRST_FIELD]),
            int(fields[_START_TIME_FIELD - _FIRST_FIELD]),
        )
    except (IndexError, ValueError):
        return None


def age_seconds(found: Process, proc: Path = PROC) -> float | None:
    """How long ago the process started."""
    try:
        uptime = float(_text(f"{proc}/uptime", _FILE_BYTES_MAX).split()[0])
    except (IndexError, ValueError):
        return None
    return max(0.0, uptime - found.start_ticks / os.sysconf("SC_CLK_TCK"))


def owner(pid: int, proc: Path = PROC) -> int | None:
    """The user id that the process runs under."""
    found = _OWNER.search(read(pid, "status", proc))
    return int(found[1]) if found else None


def processes(proc: Path = PROC) -> list[Process]:
    """All visible processes."""
    return [found for pid in _pids(proc) if (found := process(pid, proc)) is not None]


def with_descendants(
    roots: Collection[int], proc: Path = PROC, known: Collection[Process] | None = None
) -> frozenset[int]:
    """The processes `roots` and all their descendants.

    A process older than its parent is not its child: the parent's id has been reused. `known`
    saves reading all of /proc again.
    """
    if not roots:
        return frozenset()
    if known is None:
        known = processes(proc)
    by_pid = {each.pid: each for each in known}
    children: dict[int, list[Process]] = {}
    for each in known:
        parent = by_pid.get(each.parent)
        if parent is not None and parent.start_ticks <= each.start_ticks:
            children.setdefault(parent.pid, []).append(each)
    found, open_ends = set(roots), list(roots)
    while open_ends:
        for child in children.get(open_ends.pop(), ()):
            if child.pid not in found:
                found.add(child.pid)
                open_ends.append(child.pid)
    return frozenset(found)


def ancestors(pid: int, proc: Path = PROC, most: int = 16) -> tuple[int, ...]:
    """The ancestors of a process, without process 1."""
    found: list[int] = []
    while len(found) < most:
        here = process(pid, proc)
        if here is None or here.parent <= 1:
            break
        pid = here.parent
        found.append(pid)
    return tuple(found)


def network_namespace(pid: int | str, proc: Path = PROC) -> str | None:
    """The network namespace of a process (or `self`); None without permission."""
    try:
        return os.readlink(f"{proc}/{pid}/ns/net")  # noqa: PTH115
    except OSError:
        return None


def addresses(pid: int, proc: Path = PROC) -> tuple[str, ...]:
    """The IPv4 addresses of the network namespace of a process, without those of loopback."""
    found: dict[str, None] = {}
    candidate = ""
    for line in _text(f"{proc}/{pid}/net/fib_trie", _TABLE_BYTES_MAX).splitlines():
        text = line.strip()
        if text.startswith("|-- "):
            candidate = text.removeprefix("|-- ")
        elif text == "/32 host LOCAL" and candidate and not candidate.startswith("127."):
            found[candidate] = None
    return tuple(found)


def listening(pid: int, proc: Path = PROC) -> tuple[Listener, ...]:
    """All listening TCP sockets in the network namespace of a process."""
    return tuple(_listening(f"{proc}/{pid}/net"))


def holders(inode: str, pids: Iterable[int], proc: Path = PROC) -> frozenset[int]:
    """Which of these processes hold a socket."""
    socket = {f"socket:[{inode}]"}
    return frozenset(pid for pid in pids if _holds(f"{proc}/{pid}/fd", socket))


def listeners(port: int, proc: Path = PROC) -> frozenset[int]:
    """The processes that listen on a TCP port. Other users' need root or CAP_SYS_PTRACE."""
    sockets = {
        f"socket:[{listener.inode}]"
        for listener in _listening(f"{proc}/net")
        if listener.port == port
    }
    if not sockets:
        return frozenset()
    return frozenset(pid for pid in _pids(proc) if _holds(f"{proc}/{pid}/fd", sockets))


def _address(text: str) -> str:
    """An address as /proc/net writes it: words of 32 bits in the machine's order."""
    data = bytes.fromhex(text)
    words = [data[start : start + 4][::-1] for start in range(0, len(data), 4)]
    return str(ipaddress.ip_address(b"".join(words)))


def _listening(folder: str) -> Iterator[Listener]:
    for name in ("tcp", "tcp6"):
        for line in _text(f"{folder}/{name}", _TABLE_BYTES_MAX).splitlines()[1:]:
            fields = line.split()
            if len(fields) < 10 or fields[3] != _LISTEN:
                continue
            address, _, port = fields[1].rpartition(":")
            with suppress(ValueError):
                yield Listener(_address(address), int(port, 16), fields[9])


def _holds(folder: str, sockets: Collection[str]) -> bool:
    try:
        with os.scandir(folder) as links:
            return any(os.readlink(link.path) in sockets for link in links)  # noqa: PTH115
    except OSError:
        return False


def _pids(proc: Path) -> list[int]:
    try:
        with os.scandir(proc) as entries:
            return [int(entry.name) for entry in entries if entry.name.isdecimal()]
    except OSError:
        return []


def _text(path: str, limit: int) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
