"""What sources return: frozen values in SI units, `None` where a value could not be read.

Instants are seconds on the monotonic clock and come with the reading: accounting has no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


# The source whose windows come from dcgm-exporter, and end before the tick that reads them.
DCGM_SOURCE = "dcgm"
# NVML's names of the recommended recovery actions in snake case, by code (nvml.h, nvmlDeviceGpuRecoveryAction_t).
RECOVERY_ACTIONS = {
    0: "none",
    1: "gpu_reset",
    2: "node_reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex_domain",
    6: "bus_reset",
    7: "system_reboot",
}


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """A monitored device: a GPU, a MIG instance, or the host processor.

    `index` is the NVML index ("0"), or "cpu0"; `minor` the number of the device node, which need
    not be the index; `mig` the GPU instance id of a MIG instance, `placement` the id of its profile
    and its first memory slice, where the driver reports them.
    """

    index: str
    uuid: str
    name: str
    architecture: str | None = None
    compute_capability: tuple[int, int] | None = None
    pci_bus_id: str | None = None
    driver_version: str | None = None
    serial: str | None = None
    sm_count: int | None = None
    sm_clock_max_hertz: float | None = None
    memory_clock_max_hertz: float | None = None
    memory_bus_width_bits: int | None = None
    memory_size_bytes: int | None = None
    c2c_link_count: int | None = None
    mig: str | None = None
    minor: int | None = None
    placement: tuple[int, int] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Index and UUID: indices move, and a device that has not answered yet has no UUID."""
        return self.index, self.uuid


@dataclass(frozen=True, slots=True)
class ClockSample:
    """SM clock and clock event reasons (NVML's bit mask) at one instant."""

    at_seconds: float
    sm_clock_hertz: float | None
    event_reasons: int | None


@dataclass(frozen=True, slots=True)
class FastReading:
    """What is read every tick. Ratios are 0..1; counters are the device's own and only grow."""

    at_seconds: float
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    event_reasons: int | None = None
    event_reason_seconds: Mapping[str, float] = field(default_factory=dict)
    power_watts: float | None = None
    energy_joules: float | None = None
    temperature_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    gpu_utilization: float | None = None
    memory_utilization: float | None = None
    memory_size_bytes: float | None = None
    memory_used_bytes: float | None = None
    memory_free_bytes: float | None = None
    memory_reserved_bytes: float | None = None
    performance_state: int | None = None
    tensor_stall: float | None = None
    recovery_action: int | None = None
    pcie_receive_bytes: float | None = None
    pcie_transmit_bytes: float | None = None
    nvlink_receive_bytes: float | None = None
    nvlink_transmit_bytes: float | None = None
    module_power_watts: float | None = None
    module_energy_joules: float | None = None
    # SM seconds by process id since the device was opened; None where the driver reports none.
    process_sm_seconds: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """A process with a context on the device. `used_bytes` is None where the driver hides it."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class SlowReading:
    """What is read every slow interval: health, links, limits, processes.

    `nvlinks_unknown` counts links that did not answer this time, and `processes_incomplete` says
    that the driver's list had impossible entries: sums over either are unknown then.
    """

    at_seconds: float
    power_limit_watts: float | None = None
    engine_utilization: Mapping[str, float] = field(default_factory=dict)
    ecc_errors: Mapping[str, float] = field(default_factory=dict)
    remapped_rows: Mapping[str, float] = field(default_factory=dict)
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    retired_pages: Mapping[str, float] = field(default_factory=dict)
    pcie_link_generation: int | None = None
    pcie_link_generation_max: int | None = None
    pcie_link_width: int | None = None
    pcie_link_width_max: int | None = None
    pcie_replays: float | None = None
    nvlink_up: Mapping[str, bool] = field(default_factory=dict)
    nvlinks_unknown: int = 0
    nvlink_errors: Mapping[str, float] = field(default_factory=dict)
    c2c_up: Mapping[str, bool] = field(default_factory=dict)
    c2c_low_power: Mapping[str, bool] = field(default_factory=dict)
    c2c_errors: Mapping[str, float] = field(default_factory=dict)
    c2c_bandwidth_bytes_per_second: float | None = None
    module_power_limit_watts: float | None = None
    fan_speed: float | None = None
    compute_mode: str | None = None
    mig_enabled: bool | None = None
    processes: tuple[ProcessUse, ...] | None = None
    processes_incomplete: bool = False


# The fields of ActivityWindow that are shares of the SMs' cycles.
SM_ACTIVITIES = (
    "sm",
    "occupancy",
    "integer",
    "tensor",
    "dfma_tensor",
    "hmma_tensor",
    "dmma_tensor",
    "imma_tensor",
    "fp64",
    "fp32",
    "fp16",
)


@dataclass(frozen=True, slots=True)
class ActivityWindow:
    """Mean activities over one window, as shares 0..1 of elapsed SM cycles.

    `graphics` and `dram` are shares of time. `sm_cycles` is the number of elapsed cycles of one SM
    where the device counted them (source `gpm_cycles`), else None. Bytes are those moved in the
    window. `source` is `gpm_cycles`, `gpm` or `dcgm`.
    """

    source: str
    start_seconds: float
    end_seconds: float
    graphics: float | None = None
    sm: float | None = None
    occupancy: float | None = None
    integer: float | None = None
    tensor: float | None = None
    dfma_tensor: float | None = None
    hmma_tensor: float | None = None
    dmma_tensor: float | None = None
    imma_tensor: float | None = None
    dram: float | None = None
    fp64: float | None = None
    fp32: float | None = None
    fp16: float | None = None
    sm_cycles: float | None = None
    pcie_receive_bytes: float | None = None
    pcie_transmit_bytes: float | None = None
    nvlink_receive_bytes: float | None = None
    nvlink_transmit_bytes: float | None = None
    c2c_receive_bytes: float | None = None
    c2c_transmit_bytes: float | None = None

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the host reports about itself; None where it cannot be read."""

    expected_gpus: int | None = None
    boot_unix_seconds: float | None = None
