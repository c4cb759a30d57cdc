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


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """A locked package."""

    name: str
    version: str


def packages(lock: Path) -> tuple[Package, ...]:
    """Everything that a lock pins, in its order."""
    return tuple(Package(*found) for found in _REQUIREMENT.findall(lock.read_text()))


def tool(name: str) -> Path:
    """A tool's executable, installed the first time it is asked for."""
    executable = _ENVIRONMENT / "bin" / name
    if not executable.exists():
        subprocess.run([sys.executable, "-m", "venv", str(_ENVIRONMENT)], check=True)
        subprocess.run(
            [_ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", *_TOOLS],
            check=True,
        )
    return executable
