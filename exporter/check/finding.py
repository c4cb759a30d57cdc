"""What `flopwatch check` found, one fact a line."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How much a finding matters. Only a failure makes the exit code 1."""

    OK = "ok"
    NOTE = "note"  # absent, and nobody asked for it
    WARNING = "warning"  # the daemon runs, but with less
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One fact about this host. `remedy` says what to do, where something can be done."""

    area: str
    level: Level
    text: str
    remedy: str | None = None

    def document(self) -> dict[str, Any]:
        """As plain data, for --json."""
        return {**asdict(self), "level": self.level.value}
