"""How an engine was started: settings from its command line that its metrics do not have.

Read from /proc/<pid>/cmdline of the processes that serve an address of this host. Only parsed
values are used; a command line is never logged or exported, because it may contain secrets.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter import procfs
from exporter.inference.progress import Server


LONGEST_COMMAND_BYTES = 64 * 1024
# The limit of processes examined per address: a parent, API servers, engine cores and workers.
LARGEST_PROCESS_COUNT = 256

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "model-path"),
    "weights": ("m",),
    "served_name": ("served-model-name", "alias", "a"),
    "tensor_parallel": ("tensor-parallel-size", "tp-size", "tp"),
    "pipeline_parallel": ("pipeline-parallel-size", "pp-size", "pp"),
    "data_parallel": ("data-parallel-size", "dp-size", "dp"),
    "api_servers": ("api-server-count", "asc"),
    "chunk_tokens": ("max-num-batched-tokens", "chunked-prefill-size", "ubatch-size", "ub"),
    "cache_data_type": ("kv-cache-dtype", "cache-type-k", "ctk"),
    "transfer": ("kv-transfer-config",),
    "disaggregation": ("disaggregation-mode",),
}
_NAMES = {name: key for key, names in _OPTIONS.items() for name in names}
# vLLM replaces the command lines of its processes with titles.
_API_SERVER = re.compile(r"VLLM::APIServer(?:_\d+)?\b")
_KV_ROLES = {"kv_producer": "prefill", "kv_consumer": "decode"}


@dataclass(frozen=True, slots=True)
class Launch:
    """The settings from a command line; None if not given."""

    model: str | None = None
    served_name: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    data_parallel: int | None = None
    api_servers: int | None = None
    chunk_tokens: int | None = None
    cache_data_type: str | None = None
    role: str | None = None
    # The process whose command line this is.
    pid: int | None = None

    @property
    def gpus(self) -> int | None:
        """GPUs of the whole engine, on all hosts; None if the command line does not give it."""
        sizes = (self.tensor_parallel, self.pipeline_parallel, self.data_parallel)
        if all(size is None for size in sizes):
            return None
        return (sizes[0] or 1) * (sizes[1] or 1) * (sizes[2] or 1)

    @property
    def server(self) -> Server:
        """The part that the account needs."""
        return Server(self.api_servers, self.chunk_tokens, self.cache_data_type)


def launch_of(processes: Iterable[int], proc: Path = procfs.PROC) -> Launch:
    """Return how the engine behind `processes` was started; empty if that cannot be read."""
    found, titled = Launch(), 0
    for pid in sorted(processes)[:LARGEST_PROCESS_COUNT]:
        arguments = _arguments(pid, proc)
        titled += any(_API_SERVER.search(argument) for argument in arguments[:1])
        if found == Launch():
            found = parse(arguments)
            if found != Launch():
                found = replace(found, pid=pid)
    servers = titled or found.api_servers
    if servers is None and found.data_parallel:
        # By default, `vllm serve` starts as many API servers as data-parallel ranks.
        servers = found.data_parallel
    return replace(found, api_servers=servers)


def parse(arguments: Sequence[str]) -> Launch:
    """Parse a command line with the options of vLLM, SGLang or llama.cpp."""
    values = _values(arguments)
    serve = list(arguments).index("serve") + 1 if "serve" in arguments else 0
    positional = (
        arguments[serve] if 0 < serve < len(arguments) and arguments[serve][:1] != "-" else None
    )
    model = values.get("model") or values.get("weights") or positional
    return Launch(
        model=model,
        served_name=values.get("served_name"),
        tensor_parallel=_size(values.get("tensor_parallel")),
        pipeline_parallel=_size(values.get("pipeline_parallel")),
        data_parallel=_size(values.get("data_parallel")),
        api_servers=_size(values.get("api_servers")),
        chunk_tokens=_size(values.get("chunk_tokens")),
        cache_data_type=values.get("cache_data_type"),
        role=_role(values),
    )


def _values(arguments: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        key = _NAMES.get(name.replace("_", "-"))
        if key is None:
            continue
        if not equals:
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        if value and not value.startswith("--"):
            values[key] = value
    return values


def _role(values: Mapping[str, str]) -> str | None:
    """The role in a prefill/decode split, if the command line sets it."""
    mode = values.get("disaggregation")
    if mode in {"prefill", "decode"}:
        return mode
    try:
        transfer = json.loads(values.get("transfer") or "{}")
    except ValueError:
        return None
    return _KV_ROLES.get(str(transfer.get("kv_role"))) if isinstance(transfer, dict) else None


def _arguments(pid: int, proc: Path) -> tuple[str, ...]:
    text = procfs.read(pid, "cmdline", proc, limit=LONGEST_COMMAND_BYTES)
    return tuple(text.rstrip("\0").split("\0")) if text else ()


def _size(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and 0 < int(text) < 1 << 31 else None
