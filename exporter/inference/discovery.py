"""Finds engines that are not configured: on local ports, among listed pods, behind processes.

The engines of processes are found without an API server: a process that holds a GPU has a network
namespace, whose sockets and addresses are in /proc/<pid>/net. Listening sockets there are queried for
an engine's metrics. In Kubernetes that needs the host's process ids (`hostPID`) and permission to
inspect other users' processes (root with CAP_SYS_PTRACE). Only GET requests for metrics are sent, and
few of them.
"""

import itertools
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from exporter import procfs
from exporter.errors import ScrapeError
from exporter.inference.config import ListPods
from exporter.inference.engines import ENGINES, PREFIXES
from exporter.inference.engines import identify as identify_prefixes
from exporter.inference.reading import parse
from exporter.inference.scraper import Fetch, fetch_text


# Default ports of the engines, and the next ones, used when several share a host.
DEFAULT_PORTS: tuple[int, ...] = (
    *sorted({port for engine in ENGINES.values() for port in engine.ports}),
    8001,
    8002,
    8003,
    30001,
)
PATHS: tuple[str, ...] = tuple(dict.fromkeys(engine.path for engine in ENGINES.values()))
PORT_TIMEOUT_SECONDS = 1.0
# Words in the command lines and titles of engines. A process that matches is queried only if it
# listens.
_ENGINE_WORDS = re.compile(
    r"llama[-_]server|llama_cpp|vllm|sglang|lmdeploy|text-generation|trtllm|dynamo|tritonserver",
    re.IGNORECASE,
)
_LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})  # noqa: S104 - compared
# Limits of one pass: processes that hold GPUs, and sockets queried per network namespace.
LARGEST_PROCESS_COUNT = 1024
LARGEST_SOCKET_COUNT = 16
# What answers at a socket is asked again after this time.
ASK_AGAIN_SECONDS = 600.0
LARGEST_MEMORY = 4096
_EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared
# Command names of programs that start arbitrary programs: their children are not related.
_STARTERS = re.compile(
    r"(?:ba|da|fi|k|tc|z)?sh|su|sudo|login|init|sshd.*|tmux.*|screen.*|systemd.*|supervisord"
    r"|slurmstepd.*|containerd-shim.*|docker-init|tini"
)
_NO_PIDS = "the processes that hold GPUs are not visible: the host's PID namespace is needed"
_NO_RIGHT = (
    "no permission to inspect the processes that hold GPUs: root and CAP_SYS_PTRACE are needed"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A discovered engine, with its processes if it was found through them."""

    name: str
    engine: str
    url: str
    processes: frozenset[int] = frozenset()


def discover_ports(ports: Sequence[int], *, fetch: Fetch = fetch_text) -> tuple[Endpoint, ...]:
    """Return the engines that answer on `ports` of this host."""
    asked = ((port, _engine_at(f"127.0.0.1:{port}", fetch)) for port in ports)
    return tuple(Endpoint(f"{found[0]}-{port}", *found) for port, found in asked if found)


def discover_pods(list_pods: ListPods, *, fetch: Fetch = fetch_text) -> tuple[Endpoint, ...]:
    """Return the listed endpoints that are engines."""
    named = ((name, url, identify(url, fetch=fetch)) for name, url in list_pods())
    return tuple(Endpoint(name, engine, url) for name, url, engine in named if engine is not None)


def place(url: str) -> tuple[str, int]:
    """Host and port of an address, with one name for all addresses of this host."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    default = 443 if parts.scheme == "https" else 80
    return ("localhost" if host in _LOCAL_HOSTS else host), parts.port or default


def identify(url: str, *, fetch: Fetch = fetch_text) -> str | None:
    """Return the engine whose metrics are at `url`, or None."""
    try:
        text = fetch(url, PORT_TIMEOUT_SECONDS)
    except ScrapeError:
        return None
    return identify_prefixes(parse(text, (), PREFIXES).prefixes)


def _engine_at(place: str, fetch: Fetch) -> tuple[str, str] | None:
    """The engine at an address and port, on any of the engines' paths, and its URL."""
    urls = (f"http://{place}{path}" for path in PATHS)
    return next(((engine, url) for url in urls if (engine := identify(url, fetch=fetch))), None)


def engine_processes(proc: Path = procfs.PROC) -> frozenset[int]:
    """Return the processes that look like engines by their command line.

    For hosts without a GPU, where no driver lists the computing processes.
    """
    return frozenset(
        process.pid
        for process in procfs.processes(proc)
        if _ENGINE_WORDS.search(procfs.read(process.pid, "cmdline", proc))
    )


def serving_processes(url: str, proc: Path = procfs.PROC) -> frozenset[int]:
    """Return the processes behind a local address; empty if it is remote or not visible to us.

    An engine's API server listens and its workers hold the GPUs: all descendants of the listener
    belong to it.
    """
    parts = urlsplit(url)
    if parts.hostname not in _LOCAL_HOSTS:
        return frozenset()
    return procfs.with_descendants(procfs.listeners(parts.port or 80, proc), proc)


class ContainerDiscovery:
    """Remembers earlier queries, so that each pass is cheap. Not thread-safe."""

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
        # By address and port: when it was asked, and the engine and URL that were found.
        self._asked: dict[str, tuple[float, tuple[str, str] | None]] = {}
        # Why discovery is not possible; None if it is, or if no process holds a GPU.
        self.unavailable: str | None = None

    def discover(self, pids: Collection[int]) -> Iterator[Endpoint]:
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
            yield from self._on_this_host(group) if namespace == here else self._in_pod(group)

    def _in_pod(self, pids: list[int]) -> Iterator[Endpoint]:
        """Engines in another network namespace: a pod's or a container's."""
        related = self._related(pids)
        reachable = procfs.addresses(pids[0], self._proc)[:1]
        found: list[Endpoint] = []
        for socket in self._sockets(pids[0], reachable)[:LARGEST_SOCKET_COUNT]:
            listeners = procfs.holders(socket.inode, related, self._proc)
            address = socket.address if socket.address in reachable else reachable[0]
            answer = self._ask(f"{address}:{socket.port}")
            if answer is not None:
                engine, url = answer
                behind = procfs.with_descendants(listeners, self._proc) or frozenset(pids)
                found.append(Endpoint(f"{engine}-{socket.port}", engine, url, behind))
        name = self._host_name(pids[0])
        for endpoint in found:
            own = name if len(found) == 1 else f"{name}-{endpoint.url.split(':')[2].split('/')[0]}"
            yield replace(endpoint, name=own) if name else endpoint

    def _on_this_host(self, pids: list[int]) -> Iterator[Endpoint]:
        """Engines in our own network namespace, where every service of the host listens.

        A socket belongs to a process that holds a GPU if that process or one of its descendants
        holds it; else if its parent or another child of its parent does, and so on upwards. The
        nearest engine is used: an API server above its workers, or a router beside them.
        """
        known = procfs.processes(self._proc)
        sockets = self._sockets(pids[0], ("127.0.0.1",))
        behind: dict[tuple[str, str, int], frozenset[int]] = {}
        for pid in pids:
            for root in (pid, *self._above(pid)):
                engines = self._engines_of(
                    procfs.with_descendants({root}, self._proc, known), sockets
                )
                for place, listeners in engines.items():
                    family = procfs.with_descendants(listeners, self._proc, known)
                    behind[place] = behind.get(place, frozenset()) | family | {pid}
                if engines:
                    break
        for (engine, url, port), processes in behind.items():
            yield Endpoint(f"{engine}-{port}", engine, url, processes)

    def _engines_of(
        self, family: frozenset[int], sockets: Iterable[procfs.Listener]
    ) -> dict[tuple[str, str, int], frozenset[int]]:
        """The engines among the sockets of these processes, each with the process that holds it."""
        held = (
            (socket, listeners)
            for socket in sockets
            if (listeners := procfs.holders(socket.inode, family, self._proc))
        )
        found = {}
        for socket, listeners in itertools.islice(held, LARGEST_SOCKET_COUNT):
            answer = self._ask(f"127.0.0.1:{socket.port}")
            if answer is not None:
                found[(*answer, socket.port)] = listeners
        return found

    def _above(self, pid: int) -> Iterator[int]:
        """The ancestors of a process, up to a shell or a service manager."""
        ours = {self._own_pid, *procfs.ancestors(self._own_pid, self._proc)}
        group = procfs.read(pid, "cgroup", self._proc)
        for parent in procfs.ancestors(pid, self._proc):
            name = procfs.process_name(parent, self._proc)
            if (
                parent in ours
                or _STARTERS.fullmatch(name)
                or procfs.read(parent, "cgroup", self._proc) != group
            ):
                return
            yield parent

    def _related(self, pids: Iterable[int]) -> frozenset[int]:
        """The processes, their ancestors, and all descendants of those."""
        namespace = {procfs.network_namespace(pid, self._proc) for pid in pids}
        ours = {self._own_pid, *procfs.ancestors(self._own_pid, self._proc)}
        above = {
            parent
            for pid in pids
            for parent in procfs.ancestors(pid, self._proc)
            # Excludes ancestors outside the container, and our own ancestors.
            if parent not in ours and procfs.network_namespace(parent, self._proc) in namespace
        }
        return procfs.with_descendants({*pids, *above}, self._proc)

    def _sockets(self, pid: int, reachable: Collection[str]) -> list[procfs.Listener]:
        """Sockets that are reachable from here; the usual ports of engines first."""
        usable = {
            listener.port: listener
            for listener in procfs.listening(pid, self._proc)
            if listener.address in _EVERY_ADDRESS or listener.address in reachable
        }
        if not reachable:
            return []
        return sorted(usable.values(), key=lambda one: (one.port not in DEFAULT_PORTS, one.port))

    def _ask(self, place: str) -> tuple[str, str] | None:
        """The engine at an address and port, and its URL; None if there is none.

        It is asked again after a while: another engine may have taken the place.
        """
        now = self._clock()
        asked_at, found = self._asked.pop(place, (-ASK_AGAIN_SECONDS, None))
        if now - asked_at >= ASK_AGAIN_SECONDS:
            asked_at, found = now, _engine_at(place, self._fetch)
        self._asked[place] = asked_at, found
        while len(self._asked) > LARGEST_MEMORY:
            del self._asked[next(iter(self._asked))]
        return found

    def _host_name(self, pid: int) -> str:
        """The host name of a container; in Kubernetes, its pod's name."""
        text = procfs.read(pid, "root/etc/hostname", self._proc).strip()
        return re.sub(r"[^A-Za-z0-9.-]", "-", text)[:200]
