"""What a simulated GPU is. Numbers from the boards' data sheets and from NVML on them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from tests.fake_nvml.loads import Load


NOT_SUPPORTED = 3
DEPRECATED = 26
ARCHITECTURES = {"volta": 5, "turing": 6, "ampere": 7, "ada": 8, "hopper": 9, "blackwell": 10}
XID_ECC_AND_CLOCK_EVENTS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10
RECOVERY_EVENTS = 0x4000 | 0x8000
ALL_EVENT_REASONS = 0x7FF

_H100_SM_CLOCK_MHZ = 1980
_H100_POWER_WATTS = 700
_H100_MEMORY_BYTES = 81559 << 20


def _application_clocks_are_gone() -> dict[str, int]:
    return dict.fromkeys(
        ("nvmlDeviceGetApplicationsClock", "nvmlDeviceGetDefaultApplicationsClock"), DEPRECATED
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProfile:
    """One model of GPU. An empty `uuid`, `serial` or a zero `pci_bus` is made up, different for each GPU.

    `gpm_support` "cycles" answers percentages and raw counters, "percent" percentages only, "none" nothing.
    `cycles_mode` says whether a raw counter is the mean over the SMs or their sum, which NVIDIA documents nowhere.
    The codes are NVML return codes that the GPU always gives for a function, field id or GPM metric.
    """

    name: str
    architecture: str
    compute_major: int
    compute_minor: int
    num_gpu_cores: int
    multiprocessor_count: int
    memory_bus_width_bits: int
    memory_total_bytes: int
    max_sm_clock_mhz: int
    max_memory_clock_mhz: int
    power_limit_watts: int

    uuid: str = ""
    serial: str = ""
    board_part_number: str = "699-2G520-0200-000"
    vbios_version: str = "96.00.74.00.01"
    inforom_image_version: str = "G520.0200.00.05"
    brand: int = 14  # NVML_BRAND_NVIDIA
    pci_domain: int = 0
    pci_bus: int = 0
    pci_device: int = 0
    pci_device_id: int = 0x233010DE
    pci_subsystem_id: int = 0x16C110DE
    memory_reserved_bytes: int = 578 << 20
    bar1_total_bytes: int = 128 << 30
    bar1_used_bytes: int = 1 << 20
    max_video_clock_mhz: int = 1545
    max_customer_boost_mhz: int = 1980
    power_limit_min_watts: int = 200
    idle_power_watts: float = 70.0
    power_average_ns: int = 0
    temperature_shutdown_c: int = 95
    temperature_slowdown_c: int = 89
    temperature_memory_max_c: int = 95
    temperature_gpu_max_c: int = 87
    supported_event_reasons: int = ALL_EVENT_REASONS
    supported_event_types: int = XID_ECC_AND_CLOCK_EVENTS | RECOVERY_EVENTS
    pcie_generation: int = 5
    pcie_generation_max: int = 5
    pcie_width: int = 16
    pcie_width_max: int = 16
    nvlink_count: int = 0
    nvlink_version: int = 0
    nvlink_speed_mbps: int = 0
    c2c_link_count: int = 0
    c2c_link_mbps: int = 0
    module_power_limit_watts: int = 0
    total_energy_is_modules: bool = False
    energy_stands_still: bool = False
    gpm_support: Literal["cycles", "percent", "none"] = "cycles"
    cycles_mode: Literal["mean", "sum"] = "mean"
    cycles_at_boot: int = 1_500_000_000_000_000
    bytes_at_boot: int = 40_000_000_000_000
    ecc_supported: bool = True
    ecc_mode: bool = True
    compute_mode: int = 0
    persistence_mode: bool = True
    virtualization_mode: int = 0
    fan_count: int = 0
    decoder_count: int = 0
    encoder_count: int = 0
    jpeg_count: int = 0
    ofa_count: int = 0
    fabric_state: int = 0
    mig_supported: bool = False
    function_codes: dict[str, int] = field(default_factory=_application_clocks_are_gone)
    field_codes: dict[int, int] = field(default_factory=dict)
    metric_codes: dict[int, int] = field(default_factory=dict)

    def idle(self) -> Load:
        """An idle load at this board's own clocks and power."""
        return replace(
            Load.idle(),
            memory_clock_mhz=self.max_memory_clock_mhz,
            power_watts=self.idle_power_watts,
        )

    def fit(self, load: Load) -> Load:
        """A load of an H100, scaled to this board's clocks, power, memory and links."""
        return replace(
            load,
            sm_clock_mhz=round(load.sm_clock_mhz * self.max_sm_clock_mhz / _H100_SM_CLOCK_MHZ),
            memory_clock_mhz=self.max_memory_clock_mhz,
            power_watts=load.power_watts * self.power_limit_watts / _H100_POWER_WATTS,
            memory_used_bytes=load.memory_used_bytes * self.memory_total_bytes / _H100_MEMORY_BYTES,
            nvlink_rx_bytes_per_second=load.nvlink_rx_bytes_per_second if self.nvlink_count else 0,
            nvlink_tx_bytes_per_second=load.nvlink_tx_bytes_per_second if self.nvlink_count else 0,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The reverse of `to_json`; unknown keys are an error."""
        given: dict[str, Any] = json.loads(text)
        unknown = given.keys() - {entry.name for entry in fields(cls)}
        if unknown:
            raise ValueError(f"unknown keys in the GPU profile: {', '.join(sorted(unknown))}")
        for name in ("field_codes", "metric_codes"):
            given[name] = {int(key): int(code) for key, code in given.get(name, {}).items()}
        return cls(**given)

    @classmethod
    def load(cls, name: str) -> Self:
        """A profile from the folder `profiles`, recorded from a real GPU or written by hand."""
        return cls.from_json((Path(__file__).parent / "profiles" / f"{name}.json").read_text())

    def to_json(self) -> str:
        """Everything as JSON, to be kept in the folder `profiles`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


H100 = GpuProfile(
    name="NVIDIA H100 80GB HBM3",
    architecture="hopper",
    compute_major=9,
    compute_minor=0,
    num_gpu_cores=16896,
    multiprocessor_count=132,
    memory_bus_width_bits=5120,
    memory_total_bytes=81559 << 20,
    max_sm_clock_mhz=1980,
    max_memory_clock_mhz=2619,
    power_limit_watts=700,
    nvlink_count=18,
    nvlink_version=4,
    nvlink_speed_mbps=26562,
    decoder_count=7,
    jpeg_count=7,
    ofa_count=1,
    fabric_state=3,  # registration with the fabric manager completed
    mig_supported=True,
)

H100_NO_CYCLES = replace(
    H100,
    gpm_support="percent",
    # MMA stall, GPU_TEMP: not in older drivers.
    field_codes={297: NOT_SUPPORTED, 308: NOT_SUPPORTED},
)
"""An H100 under a driver from before the raw cycle counters."""

H200 = replace(
    H100,
    name="NVIDIA H200",
    memory_bus_width_bits=6144,
    memory_total_bytes=143771 << 20,
    max_memory_clock_mhz=3201,
    pci_device_id=0x233510DE,
    pci_subsystem_id=0x18BE10DE,
    bar1_total_bytes=256 << 30,
)

B200 = replace(
    H100,
    name="NVIDIA B200",
    architecture="blackwell",
    compute_major=10,
    num_gpu_cores=18944,
    multiprocessor_count=148,
    memory_bus_width_bits=7680,
    memory_total_bytes=183359 << 20,
    max_sm_clock_mhz=1965,
    max_customer_boost_mhz=1965,
    max_memory_clock_mhz=3996,
    power_limit_watts=1000,
    nvlink_version=5,
    nvlink_speed_mbps=53125,
    pci_device_id=0x290110DE,
    pci_subsystem_id=0x199910DE,
    bar1_total_bytes=256 << 30,
    idle_power_watts=140.0,
)

A100 = GpuProfile(
    name="NVIDIA A100-SXM4-80GB",
    architecture="ampere",
    compute_major=8,
    compute_minor=0,
    num_gpu_cores=6912,
    multiprocessor_count=108,
    memory_bus_width_bits=5120,
    memory_total_bytes=81920 << 20,
    max_sm_clock_mhz=1410,
    max_customer_boost_mhz=1410,
    max_video_clock_mhz=1290,
    max_memory_clock_mhz=1593,
    power_limit_watts=400,
    power_limit_min_watts=100,
    idle_power_watts=60.0,
    board_part_number="692-2G506-0210-002",
    vbios_version="92.00.45.00.03",
    pci_device_id=0x20B210DE,
    pci_subsystem_id=0x147F10DE,
    pcie_generation=4,
    pcie_generation_max=4,
    nvlink_count=12,
    nvlink_version=3,
    nvlink_speed_mbps=25000,
    gpm_support="none",
    decoder_count=5,
    jpeg_count=1,
    ofa_count=1,
    mig_supported=True,
    # GA100 has no averaged power.
    field_codes={185: NOT_SUPPORTED, 297: NOT_SUPPORTED, 308: NOT_SUPPORTED},
)

L4 = GpuProfile(
    name="NVIDIA L4",
    architecture="ada",
    compute_major=8,
    compute_minor=9,
    num_gpu_cores=7424,
    multiprocessor_count=58,
    memory_bus_width_bits=192,
    memory_total_bytes=23034 << 20,
    max_sm_clock_mhz=2040,
    max_customer_boost_mhz=2040,
    max_video_clock_mhz=1770,
    max_memory_clock_mhz=6251,
    power_limit_watts=72,
    power_limit_min_watts=40,
    idle_power_watts=13.0,
    board_part_number="900-2G193-0000-001",
    vbios_version="95.04.29.00.05",
    memory_reserved_bytes=486 << 20,
    bar1_total_bytes=32 << 30,
    pci_device_id=0x27B810DE,
    pci_subsystem_id=0x16CA10DE,
    pcie_generation=4,
    pcie_generation_max=4,
    temperature_memory_max_c=0,
    gpm_support="none",
    decoder_count=4,
    encoder_count=2,
    jpeg_count=4,
    ofa_count=1,
    # No memory temperature sensor.
    field_codes={82: NOT_SUPPORTED, 297: NOT_SUPPORTED, 308: NOT_SUPPORTED},
)

T4 = GpuProfile.load("t4")
"""Before Ampere: pages retire instead of rows being remapped."""

RTX_5090 = GpuProfile.load("rtx-5090")
"""A GeForce: GPM percentages, a fan, no ECC, no serial number."""
