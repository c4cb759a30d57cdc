"""Records every call through pynvml: its name in the library, its code, answer and time.

The daemon's own reading code runs on top, so the recorded calls are the daemon's.
"""

import ctypes
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pynvml

from benchmarks.gpu_acceptance_parts.recording import CallRecord, FieldRecord, MetricRecord


# Answers that identify the device, or processes on it, are not kept.
_PRIVATE = frozenset(
    {
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetSerial",
        "nvmlDeviceGetPciInfo",
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetProcessUtilization",
        "nvmlDeviceGetProcessesUtilizationInfo",
        "nvmlSystemGetProcessName",
    }
)
_FIELD_VALUES, _METRICS_GET = "nvmlDeviceGetFieldValues", "nvmlGpmMetricsGet"
# nvmlValueType_t: which member of the union holds the value.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

_Key = tuple[str, tuple[Any, ...]]


class CallRecorder:
    """Records from `install` on, for the life of the process."""

    def __init__(self) -> None:
        self.fields: dict[tuple[int, int], FieldRecord] = {}
        self.metrics: dict[int, MetricRecord] = {}
        self._times: dict[_Key, list[float]] = {}
        self._last: dict[_Key, tuple[int, Any]] = {}
        self._symbols: dict[_Key, set[str]] = {}
        self._current: _Key | None = None

    def install(self) -> None:
        """Put a wrapper around every function of pynvml."""
        module: Any = pynvml
        find = module._nvmlGetFunctionPointer

        def found(name: str) -> Any:
            function = find(name)
            if self._current is None:  # called by its symbol, without a function of pynvml's
                return self._timed(name, function)
            self._symbols[self._current].add(name)
            return function

        module._nvmlGetFunctionPointer = found
        for name, value in list(vars(module).items()):
            if name.startswith("nvml") and callable(value) and not isinstance(value, type):
                setattr(module, name, self._wrapped(name, value))

    def records(self) -> tuple[CallRecord, ...]:
        """All calls so far, in the order of the first calls."""
        made = []
        for key, times in self._times.items():
            code, answer = self._last[key]
            function, arguments = key
            made.append(
                CallRecord(
                    function=function,
                    symbols=tuple(sorted(self._symbols[key])),
                    arguments=arguments,
                    code=code,
                    answer=None if function in _PRIVATE else answer,
                    count=len(times),
                    median_microseconds=round(statistics.median(times) * 1e6, 1),
                    longest_microseconds=round(max(times) * 1e6, 1),
                )
            )
        return tuple(made)

    def _timed(self, symbol: str, function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            key: _Key = (symbol, ())
            self._symbols.setdefault(key, set()).add(symbol)
            began = time.perf_counter()
            code = int(function(*arguments))
            self._times.setdefault(key, []).append(time.perf_counter() - began)
            self._last[key] = (code, None)
            return code

        return call

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._current is not None:  # pynvml calling itself
                return function(*arguments)
            key = (name, _arguments(name, arguments))
            self._symbols.setdefault(key, set())
            self._current = key
            code, answer = 0, None
            began = time.perf_counter()
            try:
                answer = function(*arguments)
            except pynvml.NVMLError as error:
                code = int(error.value)
                raise
            else:
                return answer
            finally:
                seconds = time.perf_counter() - began
                self._current = None
                self._times.setdefault(key, []).append(seconds)
                self._last[key] = (code, None if name in _PRIVATE else plain(answer))
                if code == 0:
                    self._look_inside(name, arguments, answer)

        return call

    def _look_inside(self, name: str, arguments: tuple[Any, ...], answer: Any) -> None:
        if name == _FIELD_VALUES:
            for entry in answer:
                key = (int(entry.fieldId), int(entry.scopeId))
                value = _field_value(entry) if entry.nvmlReturn == 0 else None
                self.fields[key] = FieldRecord(*key, int(entry.nvmlReturn), value)
        elif name == _METRICS_GET:
            request = arguments[0]
            for entry in request.metrics[: request.numMetrics]:
                value = float(entry.value)
                usable = entry.nvmlReturn == 0 and math.isfinite(value)
                self.metrics[int(entry.metricId)] = MetricRecord(
                    int(entry.metricId),
                    int(entry.nvmlReturn),
                    value if usable else None,
                    _text(entry.metricInfo.shortName),
                    _text(entry.metricInfo.unit),
                )


def plain(value: Any) -> Any:
    """An answer as a JSON value; handles and the like become their type's name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, ctypes.Structure):
        names = [entry[0] for entry in value._fields_]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, ctypes.Array):
        return f"{len(value)} entries"
    return type(value).__name__


def _arguments(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What distinguishes calls: plain arguments; for GPM requests their number of metrics."""
    if name == _METRICS_GET:
        return (int(arguments[0].numMetrics),)
    if name in _PRIVATE:
        return ()
    kept: list[Any] = []
    for argument in arguments:
        if isinstance(argument, (int, str)):
            kept.append(argument)
        elif isinstance(argument, (list, tuple)):
            kept.append(str(list(argument)))
    return tuple(kept)


def _field_value(entry: Any) -> float | None:
    if not 0 <= entry.valueType < len(_MEMBERS):
        return None
    value = float(getattr(entry.value, _MEMBERS[entry.valueType]))
    return value if math.isfinite(value) else None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value or ""
