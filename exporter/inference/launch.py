"""How an engine was started, and the file of its model: what its metrics do not have.

Settings are read from /proc/<pid>/cmdline of the processes that serve an address of this host. Only
parsed values are used; a command line is never logged or exported, because it may contain secrets.

The names of models come from another program and are not trusted. Only a config.json or a GGUF file
is ever opened, nothing is downloaded, and links are not followed out of the search root.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from exporter import procfs
from exporter.inference.reading import positive_integer


LONGEST_COMMAND_BYTES = 64 * 1024
# The limit of processes examined per address: a parent, API servers, engine cores and workers.
LARGEST_PROCESS_COUNT = 256
# A repository id of the Hugging Face hub: owner/name.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LONGEST_PATH = 4096
LARGEST_LINK_COUNT = 40
LARGEST_SNAPSHOT_COUNT = 64
LONGEST_ENVIRONMENT_BYTES = 256 * 1024
_HUB_VARIABLES = ("HF_HUB_CACHE", "HF_HOME", "HOME")

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
        known = [size for size in sizes if size is not None]
        return math.prod(known) if known else None


def launch_of(processes: Iterable[int], proc: Path = procfs.PROC) -> Launch:
    """Return how the engine behind `processes` was started; empty if that cannot be read."""
    found, titled = Launch(), 0
    for pid in sorted(processes)[:LARGEST_PROCESS_COUNT]:
        text = procfs.read(pid, "cmdline", proc, limit=LONGEST_COMMAND_BYTES)
        arguments = text.rstrip("\0").split("\0") if text else []
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
    serve = arguments.index("serve") + 1 if "serve" in arguments else 0
    positional = (
        arguments[serve] if 0 < serve < len(arguments) and arguments[serve][:1] != "-" else None
    )
    model = values.get("model") or values.get("weights") or positional
    return Launch(
        model=model,
        served_name=values.get("served_name"),
        tensor_parallel=positive_integer(values.get("tensor_parallel")),
        pipeline_parallel=positive_integer(values.get("pipeline_parallel")),
        data_parallel=positive_integer(values.get("data_parallel")),
        api_servers=positive_integer(values.get("api_servers")),
        chunk_tokens=positive_integer(values.get("chunk_tokens")),
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
    except (ValueError, RecursionError):
        return None
    return _KV_ROLES.get(str(transfer.get("kv_role"))) if isinstance(transfer, dict) else None


def locate_config(model_name: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the config.json or GGUF file of `model_name` on this host, or None.

    A name is an absolute path, as reported by engines for local models, or a hub id, which is
    looked up in the hub's cache (`HF_HUB_CACHE`, `HF_HOME`).
    """
    variables = os.environ if environment is None else environment
    return _locate(Path("/"), model_name, variables, PurePosixPath("/"))


def locate_in_process(pid: int, model: str, proc: str = "/proc") -> Path | None:
    """Return the model file named by the command line of process `pid`, as seen by the process.

    The path is resolved through the process's root, so that it is read in the container's file
    system. Needs permission to follow /proc/<pid>/root: the same user, or CAP_SYS_PTRACE.
    """
    try:
        folder = PurePosixPath(os.readlink(f"{proc}/{pid}/cwd"))  # noqa: PTH115
    except OSError:
        folder = PurePosixPath("/")
    return _locate(Path(f"{proc}/{pid}/root"), model, _variables(pid, proc), folder)


def resolve_under(root: Path, path: PurePosixPath) -> Path | None:
    """Return `path` below `root`, following links as if `root` were /; None if it is missing."""
    parts = list(reversed(path.parts))
    done: list[str] = []
    links = 0
    while parts:
        part = parts.pop()
        if part in {"/", "."}:
            continue
        if part == "..":
            del done[-1:]
            continue
        here = root.joinpath(*done, part)
        try:
            target = os.readlink(here)  # noqa: PTH115
        except OSError:  # no link
            done.append(part)
            continue
        links += 1
        if links > LARGEST_LINK_COUNT or len(target) > LONGEST_PATH:
            return None
        if target.startswith("/"):
            done = []
        parts.extend(reversed(PurePosixPath(target).parts))
    found = root.joinpath(*done)
    try:
        return found if found.exists() else None
    except OSError:
        return None


def _locate(
    root: Path, name: str, variables: Mapping[str, str], folder: PurePosixPath
) -> Path | None:
    if not name or len(name) > LONGEST_PATH or "\0" in name:
        return None
    if name.startswith("/"):
        return _model_file(root, PurePosixPath(name))
    if root != Path("/"):  # relative to the working directory of the process
        found = _model_file(root, folder / name)
        if found is not None:
            return found
    if not _REPOSITORY.fullmatch(name) or ".." in name:
        return None
    cache = _hub_cache(variables)
    return _newest_snapshot(root, cache, name) if cache is not None else None


def _model_file(root: Path, path: PurePosixPath) -> Path | None:
    """The config.json in a folder, or a GGUF file itself."""
    if path.suffix.lower() != ".gguf" and path.name != "config.json":
        path /= "config.json"
    found = resolve_under(root, path)
    return found if found is not None and _is_file(found) else None


def _newest_snapshot(root: Path, cache: PurePosixPath, name: str) -> Path | None:
    snapshots = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    folder = resolve_under(root, snapshots)
    if folder is None:
        return None
    try:
        names = sorted(entry.name for entry in os.scandir(folder))[:LARGEST_SNAPSHOT_COUNT]
    except OSError:
        return None
    found = [_model_file(root, snapshots / entry) for entry in names]
    files = [file for file in found if file is not None]
    return max(files, key=_modified, default=None)


def _variables(pid: int, proc: str) -> dict[str, str]:
    """The variables that locate the process's hub cache; the rest of its environment is dropped."""
    try:
        with open(f"{proc}/{pid}/environ", "rb") as file:  # noqa: PTH123
            entries = file.read(LONGEST_ENVIRONMENT_BYTES).split(b"\0")
    except OSError:
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
    return {name: value for name, _equals, value in pairs if name in _HUB_VARIABLES}


def _hub_cache(environment: Mapping[str, str]) -> PurePosixPath | None:
    if environment.get("HF_HUB_CACHE"):
        return PurePosixPath(environment["HF_HUB_CACHE"])
    if environment.get("HF_HOME"):
        return PurePosixPath(environment["HF_HOME"]) / "hub"
    home = environment.get("HOME")
    return PurePosixPath(home) / ".cache" / "huggingface" / "hub" if home else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
