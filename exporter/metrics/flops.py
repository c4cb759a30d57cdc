"""What the GPU is, and where its FLOPS go: the heart of the contract."""

from collections.abc import Iterator

from exporter.accounting.device import COARSE_SOURCE, TICK_UTILIZATION_BOUNDS, LastWindow
from exporter.accounting.flop import PipeWork
from exporter.accounting.peaks import Peaks, pcie_bytes_per_second
from exporter.device_state import UNKNOWN, DeviceState
from exporter.metrics.family import Labels, Sample, Subject, by_label, device_labels
from exporter.metrics.rows import (
    ByKey,
    ByLabel,
    HistogramRow,
    Info,
    Rows,
    Samples,
    Value,
)
from exporter.readings import ActivityWindow, DeviceIdentity, SlowReading
from exporter.state import State


SUBJECT = Subject("What the GPU is, and where the FLOPS go")

GPU_INFO = SUBJECT.gauge(
    "flopwatch_gpu_info",
    labels=(
        "name",
        "architecture",
        "compute_capability",
        "pci_bus_id",
        "driver_version",
        "serial",
        "sm_count",
    ),
    help="Identity of the device, always 1 (NVML; for a host processor, the operating system).",
    interpretation=(
        "Join it to add a device's name to a query: `* on (instance, gpu) group_left (name) "
        "flopwatch_gpu_info`."
    ),
)
PEAK_FLOPS = SUBJECT.gauge(
    "flopwatch_peak_flops",
    labels=("precision",),
    help=(
        "Dense peak at the data-sheet boost clock, from the built-in table of GPU models; for "
        "other models, a peak derived from compute capability, SM count and maximum clock (see "
        "flopwatch_peak_info)."
    ),
    interpretation=(
        "The 100 % of the data sheet. A GPU that runs above the data sheet's tensor clock can "
        "exceed it."
    ),
)
PEAK_INFO = SUBJECT.gauge(
    "flopwatch_peak_info",
    labels=("origin", "model"),
    help=(
        "Origin of the peaks, always 1: `datasheet` (a model of the built-in table), `derived` (from compute capability, SM count and clock), "
        "`measured` (a host processor whose probes exceeded the derived peak) or `config`."
    ),
    interpretation="Data-sheet peaks are the vendor's figures; derived peaks are within about 10 %.",
)
PEAK_DRAM_BANDWIDTH_BYTES_PER_SECOND = SUBJECT.gauge(
    "flopwatch_peak_dram_bandwidth_bytes_per_second",
    help=(
        "Theoretical bandwidth of the device memory: data sheet, else 2 x maximum memory clock x "
        "bus width."
    ),
    interpretation="The limit of memory-bound work. A copy reaches about 92 % of it.",
)
PEAK_NVLINK_BANDWIDTH_BYTES_PER_SECOND = SUBJECT.gauge(
    "flopwatch_peak_nvlink_bandwidth_bytes_per_second",
    help=(
        "Theoretical NVLink bandwidth per direction over all links, from the built-in table of "
        "GPU models."
    ),
    interpretation="The limit of tensor-parallel traffic between GPUs.",
)
PEAK_PCIE_BANDWIDTH_BYTES_PER_SECOND = SUBJECT.gauge(
    "flopwatch_peak_pcie_bandwidth_bytes_per_second",
    help=(
        "Theoretical PCIe bandwidth per direction at the current generation and width of the "
        "link (NVML)."
    ),
    interpretation="Drops when a link trains down: expected while idle, a fault while busy.",
)
PEAK_C2C_BANDWIDTH_BYTES_PER_SECOND = SUBJECT.gauge(
    "flopwatch_peak_c2c_bandwidth_bytes_per_second",
    help=(
        "Bandwidth per direction of the active C2C links to the Grace processor, sum over the "
        "links (NVML). Grace Hopper and Grace Blackwell only."
    ),
    interpretation="The limit of traffic to the processor's memory. Drops with every link that is down.",
)
HEADLINE_PRECISION_INFO = SUBJECT.gauge(
    "flopwatch_headline_precision_info",
    labels=("precision", "origin"),
    help=(
        "Precision at which tensor work is counted, always 1. Origin: `config`, `engine` or "
        "`default`."
    ),
    interpretation=(
        "The same tensor time counts twice as many FLOPs in fp8 as in bf16: check that this is "
        "the precision your models run in."
    ),
)
HEADLINE_PEAK_FLOPS = SUBJECT.gauge(
    "flopwatch_headline_peak_flops",
    help="Value of flopwatch_peak_flops at the precision of flopwatch_headline_precision_info.",
    interpretation="The peak against which tensor work is compared.",
)
FLOP_TOTAL = SUBJECT.counter(
    "flopwatch_flop_total",
    unit="FLOP",
    labels=("pipe", "precision", "source"),
    help=(
        "Operations executed, by pipe: pipe activity x SM count x SM cycles x dense FLOP per "
        "cycle and SM. The tensor pipe is counted at the headline precision. The other pipes "
        "count every instruction as a fused multiply-add and are an upper bound. Integer "
        "operations for int8 and int4. For a GPU in MIG mode without counters of its own, the "
        "sum over its instances, weighted by their share of the SMs. Source `perf`: the host "
        "processor's own count (Linux perf events); `any` where it does not report the precision."
    ),
    interpretation="`rate()` is the achieved FLOP/s over any window.",
)
GPU_SECONDS_TOTAL = SUBJECT.counter(
    "flopwatch_gpu_seconds_total",
    labels=("state",),
    help=(
        "Wall-clock seconds by what the GPU did with its peak; the states sum to the observed "
        "time. tensor: used by the tensor pipe. memory, stall: SMs busy without the tensor pipe, "
        "waiting for memory or for something else. underfill: kernels resident, SMs empty. idle: "
        "no kernel resident. clock_power, clock_thermal, clock_other: lost to a lowered clock. "
        "unresolved: states that the available counters cannot distinguish. SMs outside of all "
        "MIG instances count as idle."
    ),
    interpretation='The answer to "where do the FLOPS go?". The rates stack up to 1.',
)
DRAM_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_dram_bytes_total",
    labels=("source",),
    help=(
        "Bytes moved to and from device memory: bandwidth utilization x theoretical bandwidth x "
        "time."
    ),
    interpretation="Divide flopwatch_flop_total by it for the arithmetic intensity of the workload.",
)
PCIE_RECEIVE_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_pcie_receive_bytes_total",
    help="PCIe traffic into the GPU (GPM, else NVML field values).",
    interpretation="Weights and prompts. Steadily high values indicate offloading.",
)
PCIE_TRANSMIT_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_pcie_transmit_bytes_total",
    help="PCIe traffic out of the GPU (GPM, else NVML field values).",
    interpretation="Steadily high values indicate offloading of KV cache or activations.",
)
NVLINK_RECEIVE_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_nvlink_receive_bytes_total",
    help="NVLink traffic into the GPU over all links (GPM, else NVML field values).",
    interpretation=(
        "Tensor-parallel traffic. Compare it with flopwatch_peak_nvlink_bandwidth_bytes_per_second."
    ),
)
NVLINK_TRANSMIT_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_nvlink_transmit_bytes_total",
    help="NVLink traffic out of the GPU over all links (GPM, else NVML field values).",
    interpretation=(
        "Tensor-parallel traffic. Compare it with flopwatch_peak_nvlink_bandwidth_bytes_per_second."
    ),
)
C2C_RECEIVE_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_c2c_receive_bytes_total",
    help=(
        "C2C traffic from the Grace processor into the GPU over all links, including protocol "
        "overhead (GPM). Absent without C2C."
    ),
    interpretation="Weights, KV cache and other data read from the processor's memory.",
)
C2C_TRANSMIT_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_c2c_transmit_bytes_total",
    help=(
        "C2C traffic out of the GPU to the Grace processor over all links, including protocol "
        "overhead (GPM). Absent without C2C."
    ),
    interpretation="Steadily high values indicate offloading of KV cache or activations.",
)
ENERGY_JOULES_TOTAL = SUBJECT.counter(
    "flopwatch_energy_joules_total",
    help="Energy used since the driver was loaded, the device's own counter (NVML).",
    interpretation=(
        "`rate()` is the mean power. Divide it by the rate of flopwatch_flop_total for joules "
        "per FLOP."
    ),
)
ACHIEVED_FLOPS = SUBJECT.gauge(
    "flopwatch_achieved_flops",
    labels=("precision",),
    help="Achieved FLOP/s of the tensor pipe, last tick.",
    interpretation="What the GPU delivers now. For longer windows use `rate(flopwatch_flop_total)`.",
)
FLOPS_UTILIZATION_RATIO = SUBJECT.gauge(
    "flopwatch_flops_utilization_ratio",
    labels=("precision",),
    help=(
        "Ratio of flopwatch_achieved_flops to flopwatch_peak_flops, last tick. Exceeds 1 above "
        "the data-sheet clock."
    ),
    interpretation=(
        "About 5 % is normal for decode at small batch, 30-60 % for prefill and large batches."
    ),
)
DRAM_BANDWIDTH_UTILIZATION_RATIO = SUBJECT.gauge(
    "flopwatch_dram_bandwidth_utilization_ratio",
    help="Share of the theoretical device-memory bandwidth in use, last tick (GPM or DCGM).",
    interpretation=(
        "Near 0.9 the GPU is memory-bound: more FLOPS require a larger batch, or smaller weights "
        "and KV cache."
    ),
)
PIPE_ACTIVE_RATIO = SUBJECT.gauge(
    "flopwatch_pipe_active_ratio",
    labels=("pipe",),
    help=(
        "Share of SM cycles in which the pipe was active, last tick. tensor is the union of "
        "hmma, imma, dmma and dfma."
    ),
    interpretation="Which pipe the work runs on: hmma for fp16, bf16, tf32 and fp8, imma for int8.",
)
GPU_ACTIVE_RATIO = SUBJECT.gauge(
    "flopwatch_gpu_active_ratio",
    help=(
        "Share of time in which any kernel was resident, last tick (GPM or DCGM graphics activity)."
    ),
    interpretation="The utilization shown by nvidia-smi. 1 means only that something ran.",
)
SM_ACTIVE_RATIO = SUBJECT.gauge(
    "flopwatch_sm_active_ratio",
    help=(
        "Share of SM cycles in which the SM had at least one warp, mean over the SMs, last tick."
    ),
    interpretation="Far below flopwatch_gpu_active_ratio: grids too small for the GPU.",
)
SM_OCCUPANCY_RATIO = SUBJECT.gauge(
    "flopwatch_sm_occupancy_ratio",
    help="Ratio of resident warps to the maximum, mean over the SMs, last tick.",
    interpretation="Low occupancy is normal for tensor-core kernels; investigate it for others.",
)
ESTIMATOR_ERROR_RATIO = SUBJECT.gauge(
    "flopwatch_estimator_error_ratio",
    labels=("precision",),
    help=(
        "Signed relative error of flopwatch_flop_total against GEMMs of known FLOPs, from the "
        "last `flopwatch calibrate`."
    ),
    interpretation="The accuracy of the FLOP counters on this device. Absent if it was never calibrated.",
)
TICK_FLOPS_UTILIZATION_RATIO = SUBJECT.histogram(
    "flopwatch_tick_flops_utilization_ratio",
    labels=("precision",),
    buckets=TICK_UTILIZATION_BOUNDS,
    help="FLOPS utilization at the headline precision, one observation per tick.",
    interpretation="Dips between two scrapes that an average hides.",
)


def _identity(identity: DeviceIdentity) -> Labels | None:
    if identity.uuid == UNKNOWN:
        return None
    capability = identity.compute_capability
    return (
        ("name", identity.name),
        ("architecture", identity.architecture or ""),
        ("compute_capability", f"{capability[0]}.{capability[1]}" if capability else ""),
        ("pci_bus_id", identity.pci_bus_id or ""),
        ("driver_version", identity.driver_version or ""),
        ("serial", identity.serial or ""),
        ("sm_count", str(identity.sm_count or "")),
    )


def _headline(device: DeviceState) -> Labels | None:
    if device.precision is None:
        return None
    return (("precision", device.precision), ("origin", device.precision_origin))


def _headline_peak(device: DeviceState) -> float | None:
    if device.peaks is None or device.precision is None:
        return None
    return device.peaks.flops.get(device.precision)


def _pcie_peak(slow: SlowReading) -> float | None:
    if not slow.pcie_link_generation or not slow.pcie_link_width:
        return None
    return pcie_bytes_per_second(slow.pcie_link_generation, slow.pcie_link_width)


def _energy(device: DeviceState) -> float | None:
    """The energy, as long as the device answers for it."""
    if device.fast is None or device.fast.energy_joules is None:
        return None
    return device.counters.energy_joules


def _flop_labels(key: tuple[PipeWork, str]) -> Labels:
    work, source = key
    return (("pipe", work.pipe), ("precision", work.precision), ("source", source))


IDENTITY_ROWS = Rows[DeviceIdentity](Info(GPU_INFO, _identity))
PEAK_ROWS = Rows[Peaks](
    ByLabel(PEAK_FLOPS, "precision", lambda peaks: peaks.flops),
    Info(PEAK_INFO, lambda peaks: (("origin", peaks.origin), ("model", peaks.model))),
    Value(PEAK_DRAM_BANDWIDTH_BYTES_PER_SECOND, lambda peaks: peaks.dram_bytes_per_second),
    Value(PEAK_NVLINK_BANDWIDTH_BYTES_PER_SECOND, lambda peaks: peaks.nvlink_bytes_per_second),
)
# Peaks of links, which depend on how they were trained.
LINK_ROWS = Rows[SlowReading](
    Value(PEAK_PCIE_BANDWIDTH_BYTES_PER_SECOND, _pcie_peak),
    Value(PEAK_C2C_BANDWIDTH_BYTES_PER_SECOND, lambda slow: slow.c2c_bandwidth_bytes_per_second),
)
COUNTER_ROWS = Rows[DeviceState](
    Info(HEADLINE_PRECISION_INFO, _headline),
    Value(HEADLINE_PEAK_FLOPS, _headline_peak),
    ByKey(FLOP_TOTAL, _flop_labels, lambda device: device.counters.flop),
    ByLabel(GPU_SECONDS_TOTAL, "state", lambda device: device.counters.state_seconds),
    ByLabel(DRAM_BYTES_TOTAL, "source", lambda device: device.counters.dram_bytes),
    Value(PCIE_RECEIVE_BYTES_TOTAL, lambda device: device.counters.pcie_receive_bytes),
    Value(PCIE_TRANSMIT_BYTES_TOTAL, lambda device: device.counters.pcie_transmit_bytes),
    Value(NVLINK_RECEIVE_BYTES_TOTAL, lambda device: device.counters.nvlink_receive_bytes),
    Value(NVLINK_TRANSMIT_BYTES_TOTAL, lambda device: device.counters.nvlink_transmit_bytes),
    Value(C2C_RECEIVE_BYTES_TOTAL, lambda device: device.counters.c2c_receive_bytes),
    Value(C2C_TRANSMIT_BYTES_TOTAL, lambda device: device.counters.c2c_transmit_bytes),
    Value(ENERGY_JOULES_TOTAL, _energy),
    HistogramRow(
        TICK_FLOPS_UTILIZATION_RATIO, lambda device: device.counters.tick_utilization, "precision"
    ),
)
WINDOW_ROWS = Rows[LastWindow](
    ByLabel(ACHIEVED_FLOPS, "precision", lambda last: last.achieved_flops),
    ByLabel(FLOPS_UTILIZATION_RATIO, "precision", lambda last: last.flops_utilization),
)
ACTIVITY_ROWS = Rows[ActivityWindow](
    Value(DRAM_BANDWIDTH_UTILIZATION_RATIO, lambda window: window.dram),
    Value(GPU_ACTIVE_RATIO, lambda window: window.graphics),
    Value(SM_ACTIVE_RATIO, lambda window: window.sm),
    Value(SM_OCCUPANCY_RATIO, lambda window: window.occupancy),
    Value(PIPE_ACTIVE_RATIO, lambda window: window.tensor, pipe="tensor"),
    Value(PIPE_ACTIVE_RATIO, lambda window: window.fp64, pipe="fp64"),
    Value(PIPE_ACTIVE_RATIO, lambda window: window.fp32, pipe="fp32"),
    Value(PIPE_ACTIVE_RATIO, lambda window: window.fp16, pipe="fp16"),
    Value(PIPE_ACTIVE_RATIO, lambda window: window.integer, pipe="int"),
    Value(PIPE_ACTIVE_RATIO, lambda window: window.hmma_tensor, pipe="hmma"),
    Value(PIPE_ACTIVE_RATIO, lambda window: window.imma_tensor, pipe="imma"),
    Value(PIPE_ACTIVE_RATIO, lambda window: window.dmma_tensor, pipe="dmma"),
    Value(PIPE_ACTIVE_RATIO, lambda window: window.dfma_tensor, pipe="dfma"),
)


def last_activity(device: DeviceState) -> ActivityWindow | None:
    """The activity of the last window, if there is more than nvidia-smi shows."""
    last = device.last
    return None if last is None or last.activity.source == COARSE_SOURCE else last.activity


def calibration_samples(state: State) -> Iterator[Sample]:
    """Error of the FLOP counters, as `flopwatch calibrate` last measured it."""
    for device in state.devices:
        errors = state.calibration.get(device.identity.uuid, {})
        labels = device_labels(device.identity)
        yield from by_label(ESTIMATOR_ERROR_RATIO, labels, "precision", errors)


CALIBRATION = Samples(
    calibration_samples,
    key=lambda state: (state.calibration, [device.identity for device in state.devices]),
)
