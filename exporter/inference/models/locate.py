"""Finds and describes the file of a model named by an engine, if the daemon can read it.

Names come from another program and are not trusted. Only a config.json or a GGUF file is ever
opened, nothing is downloaded, and links are not followed out of the search root.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from exporter.inference.models.config import load_description
from exporter.inference.models.description import ModelDescription
from exporter.inference.models.gguf import is_gguf, load_gguf


# A repository id of the Hugging Face hub: owner/name.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LONGEST_PATH = 4096
LARGEST_LINK_COUNT = 40
LARGEST_SNAPSHOT_COUNT = 64
LONGEST_ENVIRONMENT_BYTES = 256 * 1024
_HUB_VARIABLES = ("HF_HUB_CACHE", "HF_HOME", "HOME")


def load_model(
    path: Path | str, *, cache_data_type: str | None = None, precision: str | None = None
) -> ModelDescription:
    """Return the description of the model that `path` describes.

    `cache_data_type` (as the engine names it) and `precision` override what the file says.
    Raises ModelDescriptionError with one line naming the file and what is wrong.
    """
    place = Path(path)
    load = load_gguf if is_gguf(place) else load_description
    return load(place, cache_data_type=cache_data_type, precision=precision)


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
    if path.suffix.lower() == ".gguf":
        found = resolve_under(root, path)
        return found if found is not None and _is_file(found) else None
    if path.name != "config.json":
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
