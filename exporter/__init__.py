"""flopwatch: a Prometheus exporter for the FLOPS of GPUs. Here: its version, and the revision it was built from."""

import os
import re
from pathlib import Path


VERSION = "0.1.0"
# Beside this file in a wheel or sdist; a checkout has its git folder instead.
REVISION_FILE = "revision.txt"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def version_line() -> str:
    """What `flopwatch --version` prints."""
    return f"flopwatch {VERSION} (revision {REVISION})"


def find_revision(package: Path) -> str:
    """The commit of this package folder: of its build, else of its checkout, else `unknown`."""
    noted = _text(package / REVISION_FILE)
    return noted or _checked_out(package.parent) or "unknown"


def _checked_out(root: Path) -> str:
    """The commit that is checked out, read from git's files: git itself may be absent, or refuse."""
    git = root / ".git"
    pointer = _text(git)  # of a worktree or submodule: a file that names the folder
    if pointer.startswith("gitdir: "):
        git = root / pointer.removeprefix("gitdir: ")
    head = _text(git / "HEAD")
    if not head.startswith("ref: "):
        return head if _COMMIT.fullmatch(head) else ""
    name = head.removeprefix("ref: ")
    common = git / (_text(git / "commondir") or ".")
    for folder in (git, common):
        commit = _text(folder / name)
        if _COMMIT.fullmatch(commit):
            return commit
    for line in _text(common / "packed-refs").splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name and _COMMIT.fullmatch(commit):
            return commit
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


# The container build knows it, and sets it.
REVISION = os.environ.get("FLOPWATCH_REVISION") or find_revision(Path(__file__).parent)
