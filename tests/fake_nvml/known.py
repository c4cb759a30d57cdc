"""Return codes and ids of nvml.h that the tests name, and a piece of work whose integrals are known by hand."""

from __future__ import annotations

import time

from tests.fake_nvml import EventReason, FakeNvml, Load


UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
LIB_RM_VERSION_MISMATCH = 18
NO_DATA = 21
UNKNOWN = 999

# GPM metric ids and field ids of nvml.h.
GRAPHICS_UTIL, SM_UTIL, HMMA_UTIL, DRAM_UTIL, FP32_UTIL = 1, 2, 7, 10, 12
PCIE_TX_PER_SEC, NVLINK_RX_PER_SEC, NVLINK_L0_RX_PER_SEC = 20, 60, 62
SM_CYCLES_ELAPSED, HMMA_CYCLES_ACTIVE, PCIE_TX = 248, 252, 255
POWER_VIOLATION_NS, MEMORY_TEMPERATURE, ENERGY_MJ, NVLINK_DATA_TX = 74, 82, 83, 138
NVLINK_STATE, PCIE_TX_BYTES, RECOVERY_ACTION, MMA_STALL, GPU_TEMPERATURE = 165, 197, 230, 297, 308
ALL_LINKS = 0xFFFFFFFF

# An idle GPU whose clock is stopped: nothing is integrated, so samples may be taken at any moment.
STANDSTILL = Load(sm_clock_mhz=0, power_watts=0)


def wait_until(moment_ns: int) -> None:
    """Sleep up to a moment of the monotonic clock."""
    while (left_ns := moment_ns - time.monotonic_ns()) >= 0:
        time.sleep(left_ns / 1e9 + 1e-4)


def wait_for_hang(fake: FakeNvml, function: str) -> None:
    """Sleep until a call hangs in a function."""
    while not fake.hanging(function):
        time.sleep(0.005)


def run_known_work(fake: FakeNvml) -> None:
    """On GPU 0: 0.2 s at 1 GHz with a fifth of HMMA, then 0.1 s at 2 GHz with four fifths, then a standstill.

    By hand: 0.2e9 + 0.2e9 = 4e8 cycles elapsed; HMMA 0.04e9 + 0.16e9 = 2e8, half of them. Energy
    0.2 × 300 W + 0.1 × 600 W = 120 J. PCIe 0.2 × 1 GB/s = 2e8 bytes. Power cap active for 0.1 s.
    """
    gpu = fake.gpu(0)
    first = Load(
        sm=0.5, hmma_tensor=0.2, sm_clock_mhz=1000, power_watts=300, pcie_tx_bytes_per_second=1e9
    )
    second = Load(
        sm=0.9,
        hmma_tensor=0.8,
        sm_clock_mhz=2000,
        power_watts=600,
        event_reasons=EventReason.SW_POWER_CAP,
    )
    begin_ns = gpu.set_load(first)
    gpu.set_load(second, begin_ns + 200_000_000)
    end_ns = gpu.set_load(STANDSTILL, begin_ns + 300_000_000)
    wait_until(end_ns)
