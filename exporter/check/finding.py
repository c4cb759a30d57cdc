"""The findings of `flopwatch check`, one fact per line."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How much a finding matters. Only a failure makes the exit code 1."""

    OK = "ok"
    NOTE = "note"  # absent, and not configured
    WARNING = "warning"  # the daemon runs, with reduced function
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One fact about this host. `remedy` says what to do, if anything can be done."""

    area: str
    level: Level
    text: str
    remedy: str | None = None

    def document(self) -> dict[str, Any]:
        """The fact as plain data, for --json."""
        return {**asdict(self), "level": self.level.value}
