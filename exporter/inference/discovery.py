"""Finds engines that are not configured: on local ports, or among listed pods."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from exporter import procfs
from exporter.http_client import ScrapeError
from exporter.inference.config import ListPods
from exporter.inference.engines.registry import ENGINES, PREFIXES
from exporter.inference.engines.registry import identify as identify_prefixes
from exporter.inference.exposition import parse
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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A discovered engine, with its processes if it was found through them."""

    name: str
    engine: str
    url: str
    processes: frozenset[int] = frozenset()


def discover_ports(
    ports: Sequence[int] = DEFAULT_PORTS, *, fetch: Fetch = fetch_text, host: str = "127.0.0.1"
) -> tuple[Endpoint, ...]:
    """Return the engines that answer on `ports` of this host."""
    found = []
    for port in ports:
        for path in PATHS:
            url = f"http://{host}:{port}{path}"
            engine = identify(url, fetch=fetch)
            if engine is not None:
                found.append(Endpoint(f"{engine}-{port}", engine, url))
                break
    return tuple(found)


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
