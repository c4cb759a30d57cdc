"""How much CPU time an exporter's calls take in the fake driver library itself.

A child process loads the library and times each function in a loop of bare ctypes calls; what a
ctypes call of an empty function takes is subtracted.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping


_CALLS = 2000
_GPM_SAMPLES = 2
# Functions (device, pointer) that return one number or a small struct.
_SCRATCH_BYTES = 1 << 16


def driver_share(environment: Mapping[str, str], calls_per_second: Mapping[str, float]) -> float:
    """CPU seconds per second inside the library at these rates. Unknown functions cost a mean call."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.driver_time"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds: dict[str, float] = json.loads(result.stdout)
    ordinary = seconds["nvmlDeviceGetPowerUsage"]
    return sum(rate * seconds.get(name, ordinary) for name, rate in calls_per_second.items())


def _time_of(function: Callable[[], object]) -> float:
    function()
    began = time.thread_time()
    for _ in range(_CALLS):
        function()
    return (time.thread_time() - began) / _CALLS


def main() -> None:
    """Print seconds of CPU per call, by function."""
    import pynvml

    pynvml.nvmlInit()
    library = ctypes.CDLL("libnvidia-ml.so.1")
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    scratch = ctypes.create_string_buffer(_SCRATCH_BYTES)
    empty = ctypes.CDLL(None).abs
    overhead = _time_of(lambda: empty(1, 2))
    power = library.nvmlDeviceGetPowerUsage
    utilization = library.nvmlDeviceGetUtilizationRates
    seconds = {
        "nvmlDeviceGetPowerUsage": _time_of(lambda: power(handle, scratch)),
        "nvmlDeviceGetUtilizationRates": _time_of(lambda: utilization(handle, scratch)),
    }
    samples = [pynvml.nvmlGpmSampleAlloc() for _ in range(_GPM_SAMPLES)]
    sample_get = library.nvmlGpmSampleGet
    for sample in samples:
        time.sleep(0.11)
        pynvml.nvmlGpmSampleGet(handle, sample)
    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics = 18
    request.sample1, request.sample2 = samples
    for place in range(18):
        request.metrics[place].metricId = place + 1
    pointer = ctypes.byref(request)
    metrics_get = library.nvmlGpmMetricsGet
    seconds["nvmlGpmMetricsGet"] = _time_of(lambda: metrics_get(pointer))
    seconds["nvmlGpmSampleGet"] = _time_of(lambda: sample_get(handle, samples[0]))
    fields = (pynvml.c_nvmlFieldValue_t * 9)()
    for place, field in enumerate((74, 76, 269, 270, 271, 83, 82, 230, 297)):
        fields[place].fieldId = field
    field_values = library.nvmlDeviceGetFieldValues
    seconds["nvmlDeviceGetFieldValues"] = _time_of(lambda: field_values(handle, 9, fields))
    print(json.dumps({name: max(0.0, time_ - overhead) for name, time_ in seconds.items()}))


if __name__ == "__main__":
    main()
