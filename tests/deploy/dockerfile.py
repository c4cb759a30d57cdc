"""A Dockerfile as data: stages with their instructions, continuation lines joined."""

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One `FROM … AS name`, with its instructions as (keyword, arguments)."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [arguments for word, arguments in self.instructions if word == keyword]


def stages(path: Path) -> dict[str, Stage]:
    """All stages by name, in order. Instructions before the first FROM are left out."""
    found: dict[str, Stage] = {}
    current: Stage | None = None
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        keyword, _, arguments = " ".join(line.split()).partition(" ")
        if keyword == "FROM":
            base, _, name = arguments.partition(" AS ")
            current = found[name] = Stage(base, name)
        elif keyword and current is not None:
            current.instructions.append((keyword, arguments))
    return found


def base_of(path: Path) -> str:
    """The base image that the Dockerfile names as its default."""
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", path.read_text(), re.MULTILINE)
    return str(base)


def lineage(found: dict[str, Stage], name: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of its base stages, base stages first."""
    stage = found[name]
    before = lineage(found, stage.base) if stage.base in found else []
    return [*before, *stage.instructions]
