"""The results of an acceptance run, as JSON and as values."""

from pathlib import Path
from typing import Any, Literal

import msgspec


FORMAT = 1

Status = Literal["done", "partial", "failed", "timed_out", "not_run"]
Verdict = Literal["pass", "fail", "undecided", ""]


class Goal(msgspec.Struct, frozen=True, omit_defaults=True):
    """The values that are good enough, bounds included."""

    low: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One figure. `low` and `high` are its 95 % confidence interval, if there is one."""

    name: str
    value: float | None
    """None: it could not be told, and `note` says why."""
    unit: str
    low: float | None = None
    high: float | None = None
    goal: Goal | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Empty without a goal; undecided where the goal's bound is inside the interval."""
        if self.goal is None:
            return ""
        if self.value is None:
            return "undecided"
        ends = {
            self.goal.holds(end) for end in (self.value, self.low, self.high) if end is not None
        }
        if len(ends) == 2:
            return "undecided"
        return "pass" if ends.pop() else "fail"


class PartReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part: its figures, what it had no time for, and its errors."""

    name: str
    status: Status
    seconds: float = 0.0
    figures: tuple[Figure, ...] = ()
    left_out: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    details: dict[str, Any] = {}

    @property
    def sound(self) -> bool:
        """Whether it had no error; a step that there was no time for is not an error."""
        return self.status in ("done", "partial")


class Machine(msgspec.Struct, frozen=True):
    """The machine it ran on. Versions by name: python, torch, cuda, nvidia-ml-py, flopwatch."""

    gpu: str
    driver: str
    compute_capability: str
    sm_count: int | None
    versions: dict[str, str]


class Results(msgspec.Struct, frozen=True):
    """A whole run."""

    format: int
    started: str
    """UTC, ISO 8601."""
    rehearsal: bool
    """Workloads ran on the host processor, in small: nothing here is a figure of a GPU."""
    machine: Machine
    parts: tuple[PartReport, ...]

    @property
    def sound(self) -> bool:
        """Whether every part that was asked for ran without an error."""
        return all(part.sound for part in self.parts)


def encode(results: Results) -> bytes:
    """Readable JSON."""
    return msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"


def decode(data: bytes) -> Results:
    """The reverse; raises ValueError for anything else, or another format."""
    results = msgspec.json.decode(data, type=Results)
    if results.format != FORMAT:
        raise ValueError(f"results of format {results.format}; this program reads {FORMAT}")
    return results


def file_stem(gpu: str, started: str) -> str:
    """`nvidia-h100-80gb-hbm3-2026-01-31`: the name of a run's files, of the GPU and the day."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in gpu.lower()).split()
    return f"{'-'.join(words) or 'unknown'}-{started[:10]}"


def free_path(directory: Path, stem: str, suffix: str) -> Path:
    """A path that no earlier run of the same day has taken."""
    path, number = directory / f"{stem}{suffix}", 2
    while path.exists():
        path, number = directory / f"{stem}-{number}{suffix}", number + 1
    return path
