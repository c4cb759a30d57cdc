"""Samples to text, byte for byte as prometheus_client writes them, at a tenth of its cost.

A scrape has the same series as the one before, and most of them the same value: the text of each
line is kept, and written anew only where its value has changed.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import Enum

from prometheus_client.utils import floatToGoString

from exporter.metrics.family import Family, Label, MetricType, Sample


# Between these repr() is what prometheus_client writes; above it writes an exponent.
_PLAIN_FROM, _PLAIN_BELOW = -1e15, 1e6
# Lines of series that are gone are forgotten once they outnumber the living by as many.
_SPARE_LINES = 1024


class Format(Enum):
    """An exposition format that the daemon writes, by its Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


_Labels = tuple[Label, ...]
_Key = _Labels | tuple[_Labels, str]


@dataclass(frozen=True, slots=True)
class Written:
    """Lines by family in the order of the samples, how many there are, and how many were dropped."""

    lines: dict[Family, list[str]]
    count: int
    dropped: int
    # Whether so many series have gone that all that was kept was let go.
    forgot: bool = False


class LineWriter:
    """Writes samples as exposition lines; both formats write them alike. Not thread-safe."""

    def __init__(self) -> None:
        # By family and series: the value when last written, that line, and what of the line
        # precedes the value.
        self._lines: dict[Family, dict[_Key, tuple[float, str, str]]] = {}

    def write(
        self, samples: Iterable[Sample], *, limit: int, always: Container[Family] = ()
    ) -> Written:
        """Write the first `limit` samples, and those of the families in `always` beyond them."""
        known = self._lines
        written: dict[Family, list[str]] = {}
        count = dropped = 0
        current: Family | None = None
        lines: list[str] = []
        kept: dict[_Key, tuple[float, str, str]] = {}
        for family, labels, value, suffix in samples:
            if count >= limit and family not in always:
                dropped += 1
                continue
            count += 1
            if family is not current:  # samples of a family come in runs
                current = family
                lines = written.setdefault(family, [])
                kept = known.setdefault(family, {})
            key = (labels, suffix) if suffix else labels
            entry = kept.get(key)
            if entry is None or entry[0] != value:
                prefix = _prefix(family, labels, suffix) if entry is None else entry[2]
                line = f"{prefix}{_number(value)}\n"
                kept[key] = (value, line, prefix)
                lines.append(line)
            else:
                lines.append(entry[1])
        forgot = sum(map(len, known.values())) > 2 * count + _SPARE_LINES
        if forgot:
            known.clear()
        return Written(written, count, dropped, forgot)


def write_line(sample: Sample) -> str:
    """The line of one sample that changes too seldom, or too often, to be kept."""
    return f"{_prefix(sample.family, sample.labels, sample.suffix)}{_number(sample.value)}\n"


def header(family: Family, format_: Format) -> str:
    """The HELP and TYPE lines of a family."""
    name = family.name
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if format_ is Format.OPENMETRICS:
        text = text.replace('"', r"\"")
        if family.type is MetricType.COUNTER:
            name = name.removesuffix("_total")
    return f"# HELP {name} {text}\n# TYPE {name} {family.type}\n"


def _number(value: float) -> str:
    if _PLAIN_FROM < value < _PLAIN_BELOW:
        return repr(value)
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _prefix(family: Family, labels: _Labels, suffix: str) -> str:
    if not labels:
        return f"{family.name}{suffix} "
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels))
    return f"{family.name}{suffix}{{{text}}} "


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
