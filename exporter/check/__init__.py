"""The report of `flopwatch check`: its findings, one fact each."""

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


def ok(area: str, text: str) -> CheckResult:
    """Something that works."""
    return CheckResult(area, Level.OK, text)


def note(area: str, text: str, remedy: str | None = None) -> CheckResult:
    """Something that is absent, and not configured."""
    return CheckResult(area, Level.NOTE, text, remedy)


def warning(area: str, text: str, remedy: str | None = None) -> CheckResult:
    """Something that reduces what the daemon can do."""
    return CheckResult(area, Level.WARNING, text, remedy)


def failure(area: str, text: str, remedy: str | None = None) -> CheckResult:
    """Something that the daemon needs and that fails."""
    return CheckResult(area, Level.FAILURE, text, remedy)


@dataclass(frozen=True, slots=True)
class Report:
    """All findings. `driver`, `gpus` and `torch` hold the raw answers."""

    findings: tuple[CheckResult, ...]
    driver: dict[str, Any]
    gpus: tuple[dict[str, Any], ...]
    torch: dict[str, Any]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return not any(finding.level is Level.FAILURE for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """The report as plain data, for --json."""
        return {
            "healthy": self.healthy,
            "findings": [finding.document() for finding in self.findings],
            "driver": self.driver,
            "gpus": list(self.gpus),
            "torch": self.torch,
        }
