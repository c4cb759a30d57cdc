"""How a part reports its findings: line by line into a file, so that nothing is lost when it dies."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gpu_acceptance_parts.budget import TimeBox
from benchmarks.gpu_acceptance_parts.schema import Figure, Goal, PartReport, Status


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
