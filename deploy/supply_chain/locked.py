"""The locked requirements, and the environment that the supply-chain tools run in."""
# ruff: noqa: S603  a command line that runs fixed tools

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parent.parent.parent
LOCKS = {name: ROOT / "deploy" / "requirements" / f"{name}.txt" for name in ("slim", "full")}
_ENVIRONMENT = ROOT / ".cache" / "supply-chain"
_TOOLS = ("pip-audit>=2.9,<3", "cyclonedx-bom>=7,<8")
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


class ToolMissingError(Exception):
    """A tool is not installed and cannot be, mostly for lack of a network."""


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """A locked package."""

    name: str
    version: str


def packages(lock: Path) -> tuple[Package, ...]:
    """Everything that a lock file pins, in order."""
    return tuple(Package(*found) for found in _REQUIREMENT.findall(lock.read_text()))


def tool(name: str) -> Path:
    """A tool's executable, installed on first use. Raises ToolMissingError."""
    executable = _ENVIRONMENT / "bin" / name
    if executable.exists():
        return executable
    pip = [_ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", *_TOOLS]
    for command in ([sys.executable, "-m", "venv", str(_ENVIRONMENT)], pip):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            words = result.stderr.strip().splitlines() or ["no reason given"]
            raise ToolMissingError(f"{name} could not be installed: {words[-1]}")
    return executable
