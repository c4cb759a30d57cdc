"""Operations done in a window, from pipe activities.

activity x SM cycles x SM count x dense FLOP per cycle and SM. GPM's HMMA metric says how long the
half-precision matrix pipe was active, not in which precision: its work is valued at the headline
precision. Integer matrix work is IMMA, FP64 matrix work DMMA or DFMA.
"""

from collections.abc import Mapping
from typing import NamedTuple

from exporter.accounting.peaks import Peaks
from exporter.readings import ActivityWindow


PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp6", "fp4", "int8", "int4")
INTEGER_PRECISIONS = frozenset({"int8", "int4"})
# Precisions for which NVIDIA documents no GPM metric. Field reports disagree whether Hopper's FP8
# moves HMMA or only ANY_TENSOR, so tensor time of no named pipe is attributed to them.
_UNDOCUMENTED_PIPE = frozenset({"fp8", "fp6", "fp4"})


class PipeWork(NamedTuple):
    """The key of a FLOP counter: which pipe, valued at which precision."""

    pipe: str
    precision: str


def count_flop(
    window: ActivityWindow, peaks: Peaks, precision: str, sm_clock_hertz: float | None
) -> Mapping[PipeWork, float]:
    """FLOP done in the window by pipe and precision.

    `precision` is the headline precision, `sm_clock_hertz` the mean SM clock of the window. Pipes
    whose activity or rate is unknown are left out; without SM count or clock nothing is counted.
    """
    cycles = window.sm_cycles  # of one SM: as counted by the device, else mean clock x time
    if cycles is None and sm_clock_hertz is not None:
        cycles = sm_clock_hertz * window.seconds
    if cycles is None or peaks.sm_count is None:
        return {}
    all_cycles = cycles * peaks.sm_count
    work: dict[PipeWork, float] = {}

    def add(pipe: str, precision: str, activity: float | None, rate: float | None) -> None:
        if activity is not None and rate is not None:
            key = PipeWork(pipe, precision)
            work[key] = work.get(key, 0.0) + max(0.0, activity) * all_cycles * rate

    for name, activity in tensor_activities(window, peaks, precision):
        add("tensor", name, activity, peaks.tensor_rate.get(name))
    for name, activity in (("fp64", window.fp64), ("fp32", window.fp32), ("fp16", window.fp16)):
        add(name, name, activity, peaks.plain_rate.get(name))
    return work


def tensor_activities(
    window: ActivityWindow, peaks: Peaks, precision: str
) -> tuple[tuple[str, float | None], ...]:
    """Share of cycles of the tensor pipe by the precision at which it is valued."""
    floating = precision if precision not in INTEGER_PRECISIONS else peaks.default_precision
    integer = precision if precision in INTEGER_PRECISIONS else "int8"
    hmma = window.hmma_tensor
    double = [value for value in (window.dmma_tensor, window.dfma_tensor) if value is not None]
    fp64 = max(double, default=None)
    if hmma is None:
        # Only the union is known (DCGM's default field set): all of it at the headline precision.
        return ((precision, window.tensor),)
    if precision in _UNDOCUMENTED_PIPE and window.tensor is not None:
        named = hmma + (window.imma_tensor or 0.0) + (fp64 or 0.0)
        hmma += max(0.0, window.tensor - named)
    activities: list[tuple[str, float | None]] = [(integer, window.imma_tensor), ("fp64", fp64)]
    if floating is not None:
        activities.insert(0, (floating, hmma))
    return tuple(activities)
