"""The other side of `client.py`: reads expressions, writes JSON. Imports nothing of the project."""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pynvml


KEPT: dict[Any, Any] = {}  # values that a later expression needs


def keep(name: object, value: object) -> None:
    KEPT[name] = value


def device(index: int) -> Any:
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def fields(handle: Any, ids: list[Any]) -> list[tuple[int, int, float]]:
    """(return code, value type, value) of each field id, from one call."""
    answers = []
    for field in pynvml.nvmlDeviceGetFieldValues(handle, ids):
        value = field.value.dVal if field.valueType == 0 else field.value.ullVal
        answers.append((field.nvmlReturn, field.valueType, value))
    return answers


def sample(name: str, handle: Any) -> None:
    """Take a GPM sample and keep it."""
    taken = KEPT.setdefault(name, pynvml.nvmlGpmSampleAlloc())
    pynvml.nvmlGpmSampleGet(handle, taken)


def metrics(first: str, second: str, ids: list[int]) -> list[tuple[int, float]]:
    """(return code, value) of each GPM metric id, from one call."""
    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics = len(ids)
    request.sample1, request.sample2 = KEPT[first], KEPT[second]
    for entry, metric_id in zip(request.metrics, ids, strict=False):
        entry.metricId = metric_id
    pynvml.nvmlGpmMetricsGet(request)
    return [(entry.nvmlReturn, entry.value) for entry in request.metrics[: len(ids)]]


def watch(index: int, types: int) -> None:
    """Make an event set for one device and keep it."""
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(device(index), types, events)
    KEPT["events"] = events


def next_event(timeout_ms: int) -> tuple[int, int, int]:
    event = pynvml.nvmlEventSetWait_v2(KEPT["events"], timeout_ms)
    return pynvml.nvmlDeviceGetIndex(event.device), event.eventType, event.eventData


def in_threads(count: int, call: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def falls(call: Callable[[], int], seconds: float) -> int:
    """How often a counter went down while it was read for some time."""
    fallen, last, end = 0, call(), time.monotonic() + seconds
    while time.monotonic() < end:
        now = call()
        fallen += now < last
        last = now
    return fallen


def main() -> None:
    for line in sys.stdin:
        try:
            answer = {"value": eval(line, globals())}
        except pynvml.NVMLError as error:
            answer = {"code": error.value}
        print(json.dumps(answer, default=repr), flush=True)


if __name__ == "__main__":
    main()
