"""The text of an exposition, byte for byte as prometheus_client writes it."""

import math
from collections.abc import Iterable
from enum import Enum

import msgspec

from exporter.metrics.family import Family, Label, MetricType


# Between these, and for 0, msgspec writes a number as prometheus_client does, in an eighth of the time
# of repr(). From a million on Go has an exponent, which msgspec writes from 1e16 on.
_PLAIN_FROM, _PLAIN_BELOW, _DIGITS_BELOW = 1e-4, 1e6, 1e16
# By the number of digits before the point.
_EXPONENTS = tuple(f"e+{digits - 1:02d}" for digits in range(18))
_ENCODER = msgspec.json.Encoder()


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


def number_texts(values: Iterable[float]) -> list[str]:
    """The numbers as Go writes them: with an exponent from a million on."""
    numbers = list(map(float, values))
    if not numbers:
        return []
    texts = _ENCODER.encode(numbers)[1:-1].decode().split(",")
    return [
        text if _PLAIN_FROM <= number < _PLAIN_BELOW or number == 0 else _unusual(number, text)
        for number, text in zip(numbers, texts, strict=True)
    ]


def _unusual(number: float, text: str) -> str:
    """A large, small or negative number, an infinity or NaN. `text` is msgspec's output."""
    if _PLAIN_BELOW <= number < _DIGITS_BELOW:
        point = text.index(".")
        digits = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
        return digits + _EXPONENTS[point]
    if math.isfinite(number):
        return repr(number)
    return "NaN" if math.isnan(number) else "+Inf" if number > 0 else "-Inf"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
