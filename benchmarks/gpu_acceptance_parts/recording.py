"""A recording of what a driver answered, as values and JSON."""

from pathlib import Path
from typing import Any

import msgspec


FORMAT = 1


class CallRecord(msgspec.Struct, frozen=True):
    """One function with one set of arguments, called `count` times."""

    function: str
    """pynvml's name."""
    symbols: tuple[str, ...]
    """The library's exported names behind it."""
    arguments: tuple[Any, ...]
    code: int
    """NVML's return code of the last call."""
    answer: Any
    """The last answer, without what names the one device (UUID, serial) or its processes."""
    count: int
    median_microseconds: float
    longest_microseconds: float


class FieldRecord(msgspec.Struct, frozen=True):
    """One field id (NVML_FI_DEV_*); `scope` 2^32 - 1 is the sum over all links."""

    id: int
    scope: int
    code: int
    value: float | None


class MetricRecord(msgspec.Struct, frozen=True):
    """One GPM metric, with the driver's own name and unit of it."""

    id: int
    code: int
    value: float | None
    name: str = ""
    unit: str = ""


class Recording(msgspec.Struct, frozen=True):
    """All of the daemon's calls on one GPU, as one user."""

    format: int
    user: str
    driver: str
    nvidia_ml_py: str
    calls: tuple[CallRecord, ...]
    fields: tuple[FieldRecord, ...]
    metrics: tuple[MetricRecord, ...]
    cycles_per_second: float | None
    """How fast SM_CYCLES_ELAPSED ran while the recording was made."""
    sm_clock_hertz: float | None
    """The SM clock meanwhile."""

    def calls_of(self, function: str) -> list[CallRecord]:
        """The records of one pynvml function."""
        return [record for record in self.calls if record.function == function]

    def answer_of(self, function: str, *arguments: Any) -> Any:
        """The answer to a call, None where it failed or was not made; without arguments: to any."""
        for record in self.calls_of(function):
            if record.code == 0 and arguments in ((), record.arguments):
                return record.answer
        return None

    def codes(self) -> dict[str, int]:
        """Return codes by call, field and metric: what two recordings can be compared by."""
        found = {
            f"{record.function}{tuple(record.arguments)}": record.code for record in self.calls
        }
        found |= {f"field {record.id} scope {record.scope}": record.code for record in self.fields}
        return found | {f"metric {record.id}": record.code for record in self.metrics}


def write(recording: Recording, path: Path) -> None:
    """Write it as readable JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(recording), indent=1) + b"\n")


def read(data: bytes) -> Recording:
    """The reverse; raises ValueError."""
    recording = msgspec.json.decode(data, type=Recording)
    if recording.format != FORMAT:
        raise ValueError(f"a recording of format {recording.format}; this program reads {FORMAT}")
    return recording
