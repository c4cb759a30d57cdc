"""The text of an exposition, byte for byte as prometheus_client writes it."""

from enum import Enum

from prometheus_client.utils import floatToGoString

from exporter.metrics.family import Family, Label, MetricType


# Between these repr() is what prometheus_client writes; above it writes an exponent.
_PLAIN_FROM, _PLAIN_BELOW = -1e15, 1e6
_EXPONENT_BELOW = 1e16


class Format(Enum):
    """An exposition format that the daemon writes, by its Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def header(family: Family, format_: Format) -> str:
    """The HELP and TYPE lines of a family."""
    name = family.name
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if format_ is Format.OPENMETRICS:
        text = text.replace('"', r"\"")
        if family.type is MetricType.COUNTER:
            name = name.removesuffix("_total")
    return f"# HELP {name} {text}\n# TYPE {name} {family.type}\n"


def series_text(family: Family, labels: tuple[Label, ...], suffix: str) -> str:
    """What precedes the value on the line of a series; the same in both formats."""
    if not labels:
        return f"{family.name}{suffix} "
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels))
    return f"{family.name}{suffix}{{{text}}} "


def number_texts(values: list[float]) -> list[str]:
    """The numbers as Go writes them: with an exponent from a million on."""
    return [
        repr(value) if _PLAIN_FROM < value < _PLAIN_BELOW else _large(value) for value in values
    ]


def renewed_texts(values: list[float], before: list[float], texts: list[str]) -> list[str]:
    """Like `number_texts`, given the values before and their texts: most values have not changed."""
    return [
        text
        if value == old
        else (repr(value) if _PLAIN_FROM < value < _PLAIN_BELOW else _large(value))
        for value, old, text in zip(values, before, texts, strict=True)
    ]


def _large(value: float) -> str:
    if not _PLAIN_BELOW <= value < _EXPONENT_BELOW:
        return str(floatToGoString(value))  # type: ignore[no-untyped-call]
    whole, _, fraction = repr(value).partition(".")
    digits = f"{whole[0]}.{whole[1:]}{fraction}".rstrip("0.")
    return f"{digits}e+{len(whole) - 1:02d}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
