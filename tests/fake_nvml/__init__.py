"""A fake driver library (libnvidia-ml.so.1), driven live by a test while the real pynvml uses it. See README.md."""

from tests.fake_nvml.build import BuildError, build
from tests.fake_nvml.control import FakeNvml
from tests.fake_nvml.gpu import FakeGpu
from tests.fake_nvml.loads import EventReason, Load
from tests.fake_nvml.mig import (
    A100_1G_10GB,
    A100_2G_20GB,
    A100_3G_40GB,
    H100_1G_10GB,
    H100_2G_20GB,
    H100_3G_40GB,
    MigInstance,
)
from tests.fake_nvml.profiles import (
    A100,
    B200,
    H100,
    H100_NO_CYCLES,
    H200,
    L4,
    RTX_5090,
    T4,
    GpuProfile,
)
from tests.fake_nvml.schedule import LoadSchedule, Truth


__all__ = [
    "A100",
    "A100_1G_10GB",
    "A100_2G_20GB",
    "A100_3G_40GB",
    "B200",
    "H100",
    "H100_1G_10GB",
    "H100_2G_20GB",
    "H100_3G_40GB",
    "H100_NO_CYCLES",
    "H200",
    "L4",
    "RTX_5090",
    "T4",
    "BuildError",
    "EventReason",
    "FakeGpu",
    "FakeNvml",
    "GpuProfile",
    "Load",
    "LoadSchedule",
    "MigInstance",
    "Truth",
    "build",
]
