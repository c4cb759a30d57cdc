"""Numbers in the words of people: the same on the page, in the terminal and in sentences."""

from typing import Final


_PREFIXES: Final = (
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
)
_BINARY_PREFIXES: Final = (
    (2**50, "Pi"),
    (2**40, "Ti"),
    (2**30, "Gi"),
    (2**20, "Mi"),
    (2**10, "Ki"),
)
# Between number and unit, so that they are never torn apart.
SPACE: Final = "\N{NO-BREAK SPACE}"


def percent(ratio: float) -> str:
    """A ratio as per cent: whole ones, but one digit more below 1 %."""
    value = ratio * 100
    if 0 < value < 0.05:
        return f"<0.1{SPACE}%"
    return f"{value:.1f}{SPACE}%" if 0 < value < 0.95 else f"{value:,.0f}{SPACE}%"


def quantity(value: float, unit: str) -> str:
    """Three significant digits with an SI prefix: 98.4 TFLOP/s."""
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor * 0.9995:
            return f"{_digits(value / factor)}{SPACE}{prefix}{unit}"
    return f"{_digits(value)}{SPACE}{unit}"


def binary(value_bytes: float) -> str:
    """Bytes with a binary prefix: 79.6 GiB."""
    for factor, prefix in _BINARY_PREFIXES:
        if abs(value_bytes) >= factor * 0.9995:
            return f"{_digits(value_bytes / factor)}{SPACE}{prefix}B"
    return f"{value_bytes:,.0f}{SPACE}B"


def megahertz(hertz: float) -> str:
    """A clock without its unit, for '1,200 of 1,980 MHz'."""
    return f"{hertz / 1e6:,.0f}"


def span(seconds: float) -> str:
    """A span of time in its largest unit, rounded down as people say it: 34 s, 5 min, 3 h, 2 days."""
    if seconds < 120:
        return f"{max(0, int(seconds))}{SPACE}s"
    if seconds < 2 * 3600:
        return f"{int(seconds / 60)}{SPACE}min"
    if seconds < 2 * 86400:
        return f"{int(seconds / 3600)}{SPACE}h"
    return f"{int(seconds / 86400)}{SPACE}days"


def count(number: float, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 error, 2,000 errors."""
    return f"{number:,.0f}{SPACE}{noun if number == 1 else plural or noun + 's'}"


def _digits(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
