"""Finds the config.json of a model that an engine names, where the daemon can read it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path


# A repository id of the Hugging Face hub: owner/name.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def locate_config(model_name: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the config.json of `model_name`, or None.

    A name is an absolute folder, as engines report for local models, or a hub id looked up in the
    hub's cache (`HF_HUB_CACHE`, `HF_HOME`). The name comes from another program: nothing but a
    file called config.json is ever looked at, and nothing is downloaded.
    """
    if model_name.startswith("/"):
        return _existing(Path(model_name) / "config.json")
    if not _REPOSITORY.fullmatch(model_name) or ".." in model_name:
        return None
    folder = _hub_cache(environment if environment is not None else os.environ)
    if folder is None:
        return None
    snapshots = folder / f"models--{model_name.replace('/', '--')}" / "snapshots"
    try:
        candidates = sorted(snapshots.glob("*/config.json"), key=lambda file: file.stat().st_mtime)
    except OSError:
        return None
    return candidates[-1] if candidates else None


def _hub_cache(environment: Mapping[str, str]) -> Path | None:
    if environment.get("HF_HUB_CACHE"):
        return Path(environment["HF_HUB_CACHE"])
    if environment.get("HF_HOME"):
        return Path(environment["HF_HOME"]) / "hub"
    home = environment.get("HOME")
    return Path(home) / ".cache" / "huggingface" / "hub" if home else None


def _existing(path: Path) -> Path | None:
    try:
        return path if path.is_file() else None
    except OSError:
        return None
