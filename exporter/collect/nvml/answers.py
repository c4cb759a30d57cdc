"""The driver's answers: field values, and the checks that every answer passes.

Field values are many counters in one batched call, with ids from nvml.h (NVML_FI_DEV_*); each entry
of the answer has its own return code. A value that cannot be true becomes None and is counted by name.
"""

import math
from collections.abc import Sequence
from typing import Any

from exporter.collect.nvml.library import FIELD_VALUES, DeviceCalls, NvmlError, call, error_for


SW_POWER_CAP = 74  # ns, as are the other clock event reasons
SYNC_BOOST = 76
MEMORY_TEMPERATURE = 82
ENERGY = 83  # mJ since the driver was loaded
SW_THERMAL_SLOWDOWN = 269
HW_THERMAL_SLOWDOWN = 270
HW_POWER_BRAKE = 271
PCIE_TRANSMIT = 197  # bytes
PCIE_RECEIVE = 198
NVLINK_TRANSMIT = 138  # KiB, scope: link or all
NVLINK_RECEIVE = 139
RECOVERY_ACTION = 230
MMA_STALL = 297  # percent
NVLINK_ECC = 160
NVLINK_REPLAY = 161
NVLINK_RECOVERY = 162
NVLINK_CRC = 163
# Blackwell counts link recoveries here instead of in 161-163.
NVLINK_RECOVERY_SUCCESSFUL = 213
NVLINK_RECOVERY_FAILED = 214
# C2C, the link to a Grace processor; scope: link, as NCCL and UCX ask for it.
C2C_LINK_COUNT = 170
C2C_STATUS = 171  # 0 inactive, 1 active
C2C_BANDWIDTH = 172  # MB/s, active links
C2C_CRC = 231
C2C_REPLAY = 232
C2C_REPLAY_BACK_TO_BACK = 233
C2C_POWER_STATE = 234  # 0 full power, 1 low power
ENERGY_BY_SCOPE = 191  # mJ since the driver was loaded
POWER_AVERAGE = 185  # mW
POWER_INSTANT = 186
POWER_CURRENT_LIMIT = 190

ALL_LINKS = 0xFFFFFFFF  # scope of the sum over links
# Scopes of power and energy; a Grace module is processor and GPUs together.
GPU_ALONE = 0
MODULE = 1

Field = int | tuple[int, int]

# nvmlValueType_t: which member of the union holds the value.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
# Values that drivers and DCGM use for 'no value': the largest of each register, signed and
# unsigned, and 2^47, DCGM's for a double. As integers, so that none is rounded into another.
_BLANKS = frozenset({2**31 - 1, 2**32 - 1, 2**47, 2**63 - 1, 2**63, 2**64 - 1, 2**64})

SWITCH = {0: False, 1: True}  # nvmlEnableState_t; anything else is a blank
_MEGA = 1e6
_CLOCK_MAX_MHZ = 1e5  # far above any clock: more is a blank


def is_blank(value: float) -> bool:
    """Whether a value as the driver gave it, not yet scaled, means 'no value'.

    2^63 and 2^64 are the 64-bit blanks as doubles, DCGM's begin 16 below 2^63; -1 is a signed
    register with all bits set. No counter comes near 2^63: NVLink counts in KiB, the rest is slower.
    """
    return not math.isfinite(value) or value in _BLANKS or value == -1 or value >= 2**63 - 16


def read_fields(calls: DeviceCalls, fields: Sequence[Field]) -> dict[Field, float]:
    """The values of the fields that the device has, in one call.

    Fields that are not supported or have no value are left out.
    """
    whole = (FIELD_VALUES,)
    wanted = [field for field in fields if calls.may_ask((FIELD_VALUES, field))]
    if not wanted or not calls.may_ask(whole):
        return {}
    try:
        answers = call(FIELD_VALUES, calls.handle, wanted)
    except NvmlError as error:
        calls.refuse(whole, error)
        return {}
    calls.answered(whole)
    values: dict[Field, float] = {}
    for field, answer in zip(wanted, answers, strict=True):
        if answer.nvmlReturn != 0:
            calls.refuse((FIELD_VALUES, field), error_for(FIELD_VALUES, answer.nvmlReturn))
            continue
        value = _value_of(answer)
        if value is None or is_blank(value):
            calls.implausible(f"field {field}")
            continue
        calls.answered((FIELD_VALUES, field))
        values[field] = float(value)
    return values


def is_refused(calls: DeviceCalls, field: Field) -> bool:
    """Whether the device has answered that it has no such field."""
    return calls.is_refused(FIELD_VALUES, field) or calls.is_refused(FIELD_VALUES)


def _value_of(answer: Any) -> float | None:
    """The value as the driver returned it: integers stay integers, so blanks can be recognized."""
    if not 0 <= answer.valueType < len(_MEMBERS):
        return None
    value: float = getattr(answer.value, _MEMBERS[answer.valueType])
    return value


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
    if value < 0 or is_blank(value):
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
