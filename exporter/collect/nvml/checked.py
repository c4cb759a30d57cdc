"""Checks of the driver's values: one that cannot be true becomes None and is counted by name."""

from typing import Any

from exporter.collect.nvml import fields
from exporter.collect.nvml.library import DeviceCalls


SWITCH = {0: False, 1: True}  # nvmlEnableState_t; anything else is a blank
_MEGA = 1e6
_CLOCK_MAX_MHZ = 1e5  # above any clock of the next years: more is a blank


def plausible(calls: DeviceCalls, what: str, value: Any, maximum: float) -> float | None:
    """The value if it can be true; otherwise None, and `what` is counted as implausible."""
    if value is None:
        return None
    if not 0 <= value <= maximum:
        calls.implausible(what)
        return None
    return float(value)


def whole(calls: DeviceCalls, what: str, value: Any, maximum: int) -> int | None:
    """A number of things that the device has at least one of."""
    known = plausible(calls, what, value, maximum)
    return int(known) if known else None


def count(calls: DeviceCalls, what: str, value: Any) -> float | None:
    """A count, unless it is one of the driver's blanks, which are the largest values of a register."""
    if value is None:
        return None
    if value < 0 or fields.is_blank(value):
        calls.implausible(what)
        return None
    return float(value)


def scaled(value: Any, factor: float) -> float | None:
    """The value in another unit."""
    return None if value is None else float(value) * factor


def percent(calls: DeviceCalls, what: str, value: Any, maximum: float = 100) -> float | None:
    """A percentage as a ratio."""
    return scaled(plausible(calls, what, value, maximum), 0.01)


def switch(calls: DeviceCalls, what: str, value: Any) -> bool | None:
    """A flag that is 0 or 1; anything else is a blank, not a 'yes'."""
    if value is None:
        return None
    if value not in SWITCH:
        calls.implausible(what)
        return None
    return SWITCH[value]


def hertz(calls: DeviceCalls, function: str, clock: int) -> float | None:
    """A clock in Hz; None where the device has no such clock."""
    # A zero means that there is no such clock: a running clock is never zero.
    megahertz = plausible(calls, f"{function} {clock}", calls.ask(function, clock), _CLOCK_MAX_MHZ)
    return megahertz * _MEGA if megahertz else None


def text(value: Any) -> str | None:
    """A string of the driver; None for an empty one."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value or None
