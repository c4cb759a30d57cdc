"""What a part is given: its place, its time, and where it reports its findings.

Findings are written line by line into a file, so that nothing is lost when the part dies.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from benchmarks.gpu_acceptance_parts.schema import Figure, Goal, Machine, PartReport, Status


# Reserved for ending processes and writing the results.
RESERVE_SECONDS = 15.0
_WARNING = 30


def share_out(left_seconds: float, weights: Sequence[float]) -> float:
    """Seconds for the first of the remaining parts; unused time goes to the later ones."""
    return max(0.0, left_seconds) * weights[0] / sum(weights)


class TimeBox:
    """An end in time."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left_seconds(self) -> float:
        """What remains, 0 at least."""
        return max(0.0, self._end - self._clock())

    def fits(self, seconds: float) -> bool:
        """Whether something that takes this long ends in time."""
        return seconds <= self.left_seconds


class Reporter:
    """Writes one part's findings, and runs its steps."""

    def __init__(self, path: Path, box: TimeBox) -> None:
        self._path = path
        self.box = box

    def figure(
        self,
        name: str,
        value: float | None,
        unit: str,
        *,
        low: float | None = None,
        high: float | None = None,
        goal: Goal | None = None,
        note: str = "",
    ) -> None:
        """A figure was found."""
        figure = Figure(name, value, unit, low, high, goal, note)
        self._write("figure", msgspec.to_builtins(figure))

    def detail(self, name: str, value: Any) -> None:
        """Raw values behind the figures, for the JSON only."""
        self._write("detail", [name, value])

    def left_out(self, what: str, why: str) -> None:
        """Something was not done."""
        self._write("left_out", f"{what}: {why}")

    def error(self, what: str, error: BaseException) -> None:
        """Something failed; the part continues."""
        last = traceback.extract_tb(error.__traceback__)[-1:]
        where = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
        text = str(error).strip() or "no message"
        self._write("error", f"{what}: {type(error).__name__}: {text[:2000]}{where}")

    def step(self, name: str, seconds: float, task: Callable[[], None]) -> bool:
        """Run `task` if its `seconds` still fit; a failure is recorded and ends only this step."""
        if not self.box.fits(seconds):
            left = self.box.left_seconds
            self.left_out(name, f"needs about {seconds:.0f} s, {left:.0f} s were left")
            return False
        try:
            task()
        except Exception as error:
            self.error(name, error)
            return False
        return True

    def _write(self, kind: str, value: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([kind, value]) + "\n")


def collect(name: str, path: Path, seconds: float, *, ended: str) -> PartReport:
    """The report of a part from its lines. `ended`: empty if it ended well, else how it ended."""
    found: dict[str, list[Any]] = {"figure": [], "detail": [], "left_out": [], "error": []}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.splitlines():
        try:
            kind, value = json.loads(line)
        except ValueError:
            continue  # a part that was killed in the middle of a line
        found[kind].append(value)
    errors = [*found["error"], *([ended] if ended else [])]
    status: Status = "done"
    if ended.startswith("no time left"):
        status = "timed_out"
    elif errors:
        status = "failed"
    elif found["left_out"]:
        status = "partial"
    return PartReport(
        name=name,
        status=status,
        seconds=round(seconds, 1),
        figures=tuple(msgspec.convert(value, Figure) for value in found["figure"]),
        left_out=tuple(found["left_out"]),
        errors=tuple(errors),
        details=dict(found["detail"]),
    )


class Survey(msgspec.Struct, frozen=True):
    """What the machine has, determined in a separate process."""

    machine: Machine
    uuid: str = ""
    no_gpu: str = ""
    """Why there is no GPU; empty: there is one."""
    no_cuda: str = ""
    """Why torch cannot use it; empty: it can."""
    in_use_by: int = 0
    """Other processes on the GPU: figures taken beside them are not of the product alone."""


class Order(msgspec.Struct, frozen=True):
    """What a part's process is asked to do."""

    part: str
    lines: str
    """Path of the file for its findings."""
    seconds: float
    gpu: int
    rehearsal: bool
    out: str
    scratch: str
    survey: Survey


@dataclass(frozen=True, slots=True)
class Context:
    """A part's surroundings."""

    report: Reporter
    survey: Survey
    gpu: int
    rehearsal: bool
    out: Path
    scratch: Path

    @property
    def device(self) -> str:
        """Where workloads run: `cuda`, or `cpu` in a rehearsal."""
        return "cpu" if self.rehearsal else "cuda"

    @property
    def has_device(self) -> bool:
        """Whether workloads can run at all."""
        return self.rehearsal or not self.survey.no_cuda


def log_to_stderr() -> None:
    """Log warnings of the project to standard error: answers are on standard output."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(_WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
