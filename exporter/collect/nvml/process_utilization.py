"""SM time by process, from the samples that the driver keeps of each process on a device.

The driver samples a few times a second and keeps some seconds of it; an idle process has no
samples, and an idle device answers NOT_FOUND. Each sample counts once, by its timestamp. The
samples give the share of the SMs' time that a process had since its last sample (nvml.h,
nvmlProcessUtilizationSample_t and nvmlProcessUtilizationInfo_v1_t).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from exporter.collect.nvml.errors import NvmlError
from exporter.collect.nvml.library import DeviceCalls, call


SYMBOLS = ("nvmlDeviceGetProcessesUtilizationInfo", "nvmlDeviceGetProcessUtilization")
_NOT_FOUND = 6
_MICROSECONDS = 1e6
# Drivers sample at 1 Hz or faster. A longer span between two samples means that the process was
# idle: there are none for idle time.
_SAMPLE_SECONDS_MAX = 1.0
_PERCENT_MAX = 100
_PID_MAX = 2**22  # PID_MAX_LIMIT of Linux on 64-bit machines
# Processes of the last hours; the least recently seen are dropped first.
_PROCESSES_MAX = 1024


class ProcessUtilization:
    """Adds up the samples of one device. One thread owns it."""

    def __init__(self) -> None:
        self._seen_us = 0
        self._sampled_us: dict[int, int] = {}
        self._seconds: dict[int, float] = {}

    def read(self, calls: DeviceCalls) -> Mapping[int, float] | None:
        """SM seconds by process id since this object was created; None if the driver reports none.

        A value never decreases. Raises DeviceLost, DriverGone or DriverMismatch.
        """
        for symbol in SYMBOLS:
            question = partial(_samples, symbol, calls.handle, self._seen_us)
            samples = calls.ask_by((symbol,), question)
            if samples is not None:
                self._add(calls, samples)
                return dict(self._seconds)
            if not calls.unsupported(symbol):
                break  # the older call replaces one that is missing, not one that fails
        return dict(self._seconds) if self._seconds else None

    def _add(self, calls: DeviceCalls, samples: list[Any]) -> None:
        newest = self._seen_us
        for sample in sorted(samples, key=lambda each: int(each.timeStamp)):
            pid, at_us, percent = int(sample.pid), int(sample.timeStamp), int(sample.smUtil)
            if at_us <= self._seen_us:
                continue  # the driver's buffer begins before the requested time
            if not 0 < pid <= _PID_MAX or percent > _PERCENT_MAX:
                calls.implausible("process utilization")
                continue
            before_us = self._sampled_us.pop(pid, self._seen_us)
            seconds = min((at_us - before_us) / _MICROSECONDS, _SAMPLE_SECONDS_MAX)
            self._sampled_us[pid] = at_us  # at the end: the order is that of the last sample
            self._seconds[pid] = self._seconds.get(pid, 0.0) + max(0.0, seconds) * percent / 100
            newest = max(newest, at_us)
        self._seen_us = newest
        while len(self._sampled_us) > _PROCESSES_MAX:
            oldest = next(iter(self._sampled_us))
            del self._sampled_us[oldest]
            del self._seconds[oldest]


def _samples(symbol: str, handle: Any, seen_us: int) -> list[Any]:
    """Samples newer than an instant; none where no process was busy. Raises NvmlError."""
    try:
        return list(call(symbol, handle, seen_us))
    except NvmlError as error:
        if error.code == _NOT_FOUND:
            return []
        raise
