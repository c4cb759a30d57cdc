"""Faults of single functions, and how often each was called."""

from __future__ import annotations

import fnmatch
from typing import Literal

from tests.fake_nvml import layout


class Functions:
    """The NVML functions of a fake library, by their exported C names or by patterns (`nvmlDeviceSet*`).

    `gpu` None means calls for any GPU, and calls that concern none.
    """

    def __init__(self, control: layout.Control, numbers: dict[str, int]) -> None:
        self.control = control
        self._functions = numbers

    def calls(self, function: str, gpu: int | None = None) -> int:
        """How often a function was called, in all processes; for one GPU or in total."""
        return sum(int(entry.calls[_column(gpu)]) for entry in self._matching(function))

    def functions_called(self) -> dict[str, int]:
        """Every function that was called, with its count."""
        counts = {
            name: int(self.control.functions[number].calls[0])
            for name, number in self._functions.items()
        }
        return {name: count for name, count in counts.items() if count}

    def fail(
        self, function: str, code: int, gpu: int | None = None, count: int | None = None
    ) -> None:
        """Make a function return `code`: `count` times, or until `clear`."""
        for entry in self._matching(function):
            fault = entry.faults[_column(gpu)]
            fault.remaining = 0
            fault.code = code
            fault.remaining = layout.UNLIMITED if count is None else count

    def clear(self, function: str = "*", gpu: int | None = None) -> None:
        """Undo `fail`, `delay`, `hang` and `crash`; without `gpu` for all GPUs."""
        columns = range(layout.COLUMNS) if gpu is None else (_column(gpu),)
        for entry in self._matching(function):
            for column in columns:
                fault = entry.faults[column]
                fault.remaining = fault.hang = fault.crash = fault.delay_ns = 0

    def delay(self, function: str, seconds: float, gpu: int | None = None) -> None:
        """Make every call take this much longer; 0 ends it."""
        for entry in self._matching(function):
            entry.faults[_column(gpu)].delay_ns = int(seconds * 1e9)

    def hang(self, function: str, gpu: int | None = None) -> None:
        """Make every call block until `release`."""
        for entry in self._matching(function):
            entry.faults[_column(gpu)].hang = 1

    def hanging(self, function: str = "*", gpu: int | None = None) -> int:
        """How many calls are blocked by `hang` right now; a process killed in one stays counted."""
        columns = range(layout.COLUMNS) if gpu is None else (_column(gpu),)
        return sum(
            entry.hanging[column] for entry in self._matching(function) for column in columns
        )

    def release(self, function: str | None = None, gpu: int | None = None) -> None:
        """Let the blocked calls continue and later ones pass."""
        columns = range(layout.COLUMNS) if gpu is None else (_column(gpu),)
        for entry in self._matching(function or "*"):
            for column in columns:
                entry.faults[column].hang = 0

    def crash(
        self, function: str, kind: Literal["abort", "segfault"] = "segfault", gpu: int | None = None
    ) -> None:
        """Kill the process that calls the function, inside the call."""
        for entry in self._matching(function):
            entry.faults[_column(gpu)].crash = (
                layout.CRASH_ABORT if kind == "abort" else layout.CRASH_SEGFAULT
            )

    def _matching(self, pattern: str) -> list[layout.Function]:
        if pattern in self._functions:
            return [self.control.functions[self._functions[pattern]]]
        names = fnmatch.filter(self._functions, pattern)
        if not names:
            raise ValueError(f"nvml.h declares no function {pattern}")
        return [self.control.functions[self._functions[name]] for name in names]


def _column(gpu: int | None) -> int:
    return layout.ALL_GPUS if gpu is None else gpu + 1
