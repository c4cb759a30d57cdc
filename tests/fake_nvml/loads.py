"""What a simulated GPU is doing: one constant load, as a point of a schedule."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntFlag


class EventReason(IntFlag):
    """NVML's clock event reasons (nvml.h, nvmlClocksEventReason*)."""

    GPU_IDLE = 0x1
    APPLICATIONS_CLOCKS_SETTING = 0x2
    SW_POWER_CAP = 0x4
    HW_SLOWDOWN = 0x8
    SYNC_BOOST = 0x10
    SW_THERMAL_SLOWDOWN = 0x20
    HW_THERMAL_SLOWDOWN = 0x40
    HW_POWER_BRAKE_SLOWDOWN = 0x80
    DISPLAY_CLOCK_SETTING = 0x100
    BOARD_LIMIT = 0x200
    RELIABILITY = 0x400


REASON_COUNT = len(EventReason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load that stays the same until the next one.

    Shares of SM activity (`sm` to `fp16`) are fractions of elapsed SM cycles, as GPM defines them; `graphics`,
    `dram` and the engines are fractions of time. `gpu_utilization` and `memory_utilization` are the
    coarse nvidia-smi figures and follow `graphics` and `dram` unless given.
    """

    graphics: float = 0.0
    sm: float = 0.0
    occupancy: float = 0.0
    integer: float = 0.0
    any_tensor: float = 0.0
    dfma_tensor: float = 0.0
    hmma_tensor: float = 0.0
    dmma_tensor: float = 0.0
    imma_tensor: float = 0.0
    fp64: float = 0.0
    fp32: float = 0.0
    fp16: float = 0.0
    dram: float = 0.0
    gpu_utilization: float | None = None
    memory_utilization: float | None = None
    encoder_utilization: float = 0.0
    decoder_utilization: float = 0.0
    jpeg_utilization: float = 0.0
    ofa_utilization: float = 0.0
    sm_clock_mhz: float = 345.0
    memory_clock_mhz: float = 2619.0
    video_clock_mhz: float = 765.0
    power_watts: float = 70.0
    temperature_c: float = 32.0
    memory_temperature_c: float = 38.0
    fan_speed: float = 0.0
    memory_used_bytes: float = 0.0
    pcie_rx_bytes_per_second: float = 0.0
    pcie_tx_bytes_per_second: float = 0.0
    nvlink_rx_bytes_per_second: float = 0.0
    nvlink_tx_bytes_per_second: float = 0.0
    c2c_rx_bytes_per_second: float = 0.0
    c2c_tx_bytes_per_second: float = 0.0
    module_power_watts: float = 0.0
    mma_stall: float = 0.0
    performance_state: int = 0
    event_reasons: int = 0

    @classmethod
    def idle(cls, memory_used_bytes: float = 0.0) -> Load:
        """No work at all: low clocks, the gpu_idle event reason, memory possibly still held."""
        return cls(event_reasons=EventReason.GPU_IDLE, memory_used_bytes=memory_used_bytes)

    @classmethod
    def decode(cls) -> Load:
        """Token generation of a large model on an H100: limited by memory, tensor pipe mostly waiting."""
        return cls(
            graphics=0.97, sm=0.84, occupancy=0.18, integer=0.12, any_tensor=0.11, hmma_tensor=0.11,
            fp32=0.05, fp16=0.02, dram=0.71, sm_clock_mhz=1980, video_clock_mhz=1545, power_watts=455,
            temperature_c=54, memory_temperature_c=66, memory_used_bytes=72 * 2**30,
            pcie_rx_bytes_per_second=40e6, pcie_tx_bytes_per_second=25e6,
            nvlink_rx_bytes_per_second=9e9, nvlink_tx_bytes_per_second=9e9, mma_stall=0.06,
        )  # fmt: skip

    @classmethod
    def prefill(cls) -> Load:
        """Prompt processing on an H100: limited by the tensor pipe and the power cap."""
        return cls(
            graphics=0.99, sm=0.95, occupancy=0.22, integer=0.17, any_tensor=0.62, hmma_tensor=0.62,
            fp32=0.14, fp16=0.03, dram=0.34, sm_clock_mhz=1605, video_clock_mhz=1380, power_watts=697,
            temperature_c=67, memory_temperature_c=80, memory_used_bytes=72 * 2**30,
            pcie_rx_bytes_per_second=120e6, pcie_tx_bytes_per_second=60e6,
            nvlink_rx_bytes_per_second=60e9, nvlink_tx_bytes_per_second=60e9, mma_stall=0.21,
            event_reasons=EventReason.SW_POWER_CAP,
        )  # fmt: skip

    def values(self) -> list[float]:
        """Every field as a number, in `LOAD_FIELDS` order: how the driver library sees a load."""
        given = {name: getattr(self, name) for name in LOAD_FIELDS}
        if given["gpu_utilization"] is None:
            given["gpu_utilization"] = self.graphics
        if given["memory_utilization"] is None:
            given["memory_utilization"] = self.dram
        return [float(given[name]) for name in LOAD_FIELDS]


LOAD_FIELDS = tuple(field.name for field in fields(Load))

CYCLE_WEIGHTED = frozenset(
    {"sm", "occupancy", "integer", "any_tensor", "dfma_tensor", "hmma_tensor", "dmma_tensor", "imma_tensor", "fp64", "fp32", "fp16"}
)  # fmt: skip
"""Fields whose integral is over elapsed SM cycles; all others integrate over seconds."""
