"""Finds engines by the processes that hold GPUs, through their network namespaces.

No API server is asked: a process that holds a GPU has a network namespace; its sockets are in
/proc/<pid>/net, and so are its addresses. What listens there is asked for an engine's metrics. In
Kubernetes that needs the host's process ids (`hostPID`) and the right to look at other users'
processes (root with CAP_SYS_PTRACE). Only GET requests for metrics are sent, and few of them.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from exporter import procfs
from exporter.inference.discovery import DEFAULT_PORTS, PATHS, Endpoint, identify
from exporter.inference.scraper import Fetch, fetch_text


# Bounds of one look: processes that hold GPUs, and sockets asked in one network namespace.
LARGEST_PROCESS_COUNT = 1024
LARGEST_SOCKET_COUNT = 16
# A socket that was no engine's is asked again after so long.
ASK_AGAIN_SECONDS = 600.0
LARGEST_MEMORY = 4096

_EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared
_NO_PIDS = "the processes that hold GPUs are not to be seen: it needs the host's process ids"
_NO_RIGHT = "the processes that hold GPUs are not ours to look at: it needs root and CAP_SYS_PTRACE"


class ContainerDiscovery:
    """Remembers what was asked, so that each look costs little. Not thread-safe."""

    def __init__(
        self,
        *,
        fetch: Fetch = fetch_text,
        proc: Path = procfs.PROC,
        clock: Callable[[], float] = time.monotonic,
        own_pid: int | None = None,
    ) -> None:
        self._fetch = fetch
        self._own_pid = os.getpid() if own_pid is None else own_pid
        self._proc = proc
        self._clock = clock
        self._engines: dict[str, str] = {}
        self._asked: dict[str, float] = {}
        # Why nothing can be found; None while it can, or no process holds a GPU.
        self.unavailable: str | None = None

    def look(self, pids: Collection[int]) -> Iterator[Endpoint]:
        """Yield the engines behind these processes, which hold GPUs."""
        self.unavailable = None
        if not pids:
            return
        own = procfs.with_descendants({self._own_pid}, self._proc)
        others = sorted(set(pids) - own)[:LARGEST_PROCESS_COUNT]
        if not others:
            return
        seen = [pid for pid in others if procfs.process(pid, self._proc) is not None]
        if not seen:
            self.unavailable = _NO_PIDS
            return
        groups: dict[str, list[int]] = {}
        for pid in seen:
            namespace = procfs.network_namespace(pid, self._proc)
            if namespace is not None:
                groups.setdefault(namespace, []).append(pid)
        if not groups:
            self.unavailable = _NO_RIGHT
            return
        here = procfs.network_namespace("self", self._proc)
        for namespace, group in groups.items():
            yield from self._in_namespace(group, shared=namespace == here)

    def _in_namespace(self, pids: list[int], *, shared: bool) -> Iterator[Endpoint]:
        """Engines of one network namespace; of one that we share only those of these processes."""
        related = self._related(pids)
        reachable = ("127.0.0.1",) if shared else procfs.addresses(pids[0], self._proc)[:1]
        found: list[Endpoint] = []
        for socket in self._sockets(pids[0], reachable):
            listeners = procfs.holders(socket.inode, related, self._proc)
            if shared and not listeners:
                continue  # another service of the host
            address = socket.address if socket.address in reachable else reachable[0]
            answer = self._ask(f"{address}:{socket.port}")
            if answer is not None:
                engine, url = answer
                behind = procfs.with_descendants(listeners, self._proc) or frozenset(pids)
                found.append(Endpoint(f"{engine}-{socket.port}", engine, url, behind))
        name = "" if shared else self._host_name(pids[0])
        for endpoint in found:
            own = name if len(found) == 1 else f"{name}-{endpoint.url.split(':')[2].split('/')[0]}"
            yield (
                endpoint
                if not name
                else Endpoint(own, endpoint.engine, endpoint.url, endpoint.processes)
            )

    def _related(self, pids: Iterable[int]) -> frozenset[int]:
        """The processes, those that started them, and all that these started."""
        namespace = {procfs.network_namespace(pid, self._proc) for pid in pids}
        ours = {self._own_pid, *procfs.ancestors(self._own_pid, self._proc)}
        above = {
            parent
            for pid in pids
            for parent in procfs.ancestors(pid, self._proc)
            # Up to what started the container, or what started us too.
            if parent not in ours and procfs.network_namespace(parent, self._proc) in namespace
        }
        return procfs.with_descendants({*pids, *above}, self._proc)

    def _sockets(self, pid: int, reachable: Collection[str]) -> list[procfs.Listener]:
        """Sockets that can be reached from here; the usual ports of engines first."""
        usable = {
            listener.port: listener
            for listener in procfs.listening(pid, self._proc)
            if listener.address in _EVERY_ADDRESS or listener.address in reachable
        }
        if not reachable:
            return []
        order = sorted(usable.values(), key=lambda one: (one.port not in DEFAULT_PORTS, one.port))
        return order[:LARGEST_SOCKET_COUNT]

    def _ask(self, place: str) -> tuple[str, str] | None:
        """The engine at an address and port, and its URL; None for one that was no engine's lately."""
        known = self._engines.get(place)
        if known is not None:
            engine, _, url = known.partition(" ")
            return engine, url
        now = self._clock()
        if now - self._asked.get(place, -ASK_AGAIN_SECONDS) < ASK_AGAIN_SECONDS:
            return None
        for path in PATHS:
            url = f"http://{place}{path}"
            engine_found = identify(url, fetch=self._fetch)
            if engine_found is not None:
                self._engines[place] = f"{engine_found} {url}"
                return engine_found, url
        self._asked[place] = now
        for memory in (self._asked, self._engines):
            while len(memory) > LARGEST_MEMORY:
                del memory[next(iter(memory))]
        return None

    def _host_name(self, pid: int) -> str:
        """The host name of a container, which is its pod's name in Kubernetes."""
        text = procfs.read(pid, "root/etc/hostname", self._proc).strip()
        return re.sub(r"[^A-Za-z0-9.-]", "-", text)[:200]
