"""The error of the FLOP counter, as `flopwatch calibrate` measured it: kept in the state file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from flopwatch.state_file import StateFile


_SECTION = "calibration"


class Calibration(msgspec.Struct, frozen=True):
    """The signed error of the FLOP counter in one precision: counted over true, minus 1."""

    error_ratio: float
    timestamp_seconds: float


Calibrations = dict[str, dict[str, Calibration]]
"""By device UUID and precision."""


def read_calibrations(file: StateFile) -> Calibrations:
    """All measurements; empty when there are none or they are unusable."""
    return file.read(_SECTION, Calibrations) or {}


def save_calibrations(file: StateFile, uuid: str, errors: Mapping[str, Calibration]) -> None:
    """Keep one device's errors by precision; those of other precisions and devices stay."""

    def change(section: Any) -> Any:
        try:
            current = msgspec.convert(section or {}, Calibrations)
        except msgspec.ValidationError:
            current = {}
        current[uuid] = {**current.get(uuid, {}), **errors}
        return msgspec.to_builtins(current)

    file.update(_SECTION, change)


class CalibrationFile:
    """Follows the file: read again when `flopwatch calibrate` has written it."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path)
        self._changed_at: float | None = None
        self._errors: Mapping[str, Mapping[str, float]] = {}

    def read(self) -> Mapping[str, Mapping[str, float]]:
        """Signed error by device UUID and precision."""
        try:
            changed_at: float | None = self._file.path.stat().st_mtime
        except OSError:
            changed_at = None
        if changed_at != self._changed_at:
            self._changed_at = changed_at
            self._errors = {
                uuid: {name: entry.error_ratio for name, entry in errors.items()}
                for uuid, errors in read_calibrations(self._file).items()
            }
        return self._errors
