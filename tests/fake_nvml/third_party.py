"""Boards as a third party's driver simulates them, and how it differs from what we knew.

NVIDIA's own mock of NVML (repository NVIDIA/k8s-test-infra, pkg/gpu/mocknvml) was tried from
outside with the daemon; none of its code is here. It reports no core count, its energy counter
answers and does not move, it has no GPM metric above the NVLink ones, and its GB300 has compute
capability 10.0.
"""

from dataclasses import replace

from tests.fake_nvml.layout import MAX_METRICS
from tests.fake_nvml.profiles import H100, NOT_SUPPORTED, GpuProfile


# NVML_GPM_METRIC_NVLINK_L17_TX_PER_SEC, the last one that the mock knows.
_LAST_GPM_METRIC = 97


def _as_mocked(profile: GpuProfile) -> GpuProfile:
    return replace(
        profile,
        energy_stands_still=True,
        function_codes={**profile.function_codes, "nvmlDeviceGetNumGpuCores": NOT_SUPPORTED},
        metric_codes=dict.fromkeys(range(_LAST_GPM_METRIC + 1, MAX_METRICS), NOT_SUPPORTED),
        field_codes={297: NOT_SUPPORTED, 308: NOT_SUPPORTED},
    )


MOCKED_H100 = _as_mocked(H100)
MOCKED_GB300 = _as_mocked(
    replace(
        H100,
        name="NVIDIA GB300 NVL",
        architecture="blackwell",
        compute_major=10,
        compute_minor=0,
        memory_bus_width_bits=8192,
        memory_total_bytes=294_912 << 20,
        max_sm_clock_mhz=2062,
        max_memory_clock_mhz=3996,
        power_limit_watts=1400,
    )
)
MOCKED_UNKNOWN = _as_mocked(replace(MOCKED_GB300, name="NVIDIA GB400"))
