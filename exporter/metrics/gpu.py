"""What the GPU is, and where its FLOPS go: the heart of the contract."""

from exporter.metrics.family import Family, MetricType


GAUGE, COUNTER, HISTOGRAM = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM

GPU_INFO = Family(
    name="flopwatch_gpu_info",
    type=GAUGE,
    unit="",
    labels=(
        "name",
        "architecture",
        "compute_capability",
        "pci_bus_id",
        "driver_version",
        "serial",
        "sm_count",
    ),
    help="Identity of the device, always 1. From NVML, or from the operating system for a host processor.",
    interpretation="Join it to name a device in a query: `* on (instance, gpu) group_left (name) flopwatch_gpu_info`.",
)
PEAK_FLOPS = Family(
    name="flopwatch_peak_flops",
    type=GAUGE,
    unit="FLOP/s",
    labels=("precision",),
    help=(
        "Dense peak at the data-sheet boost clock, from the built-in table of GPU models; derived from compute "
        "capability, SM count and maximum clock for models that the table does not know (see flopwatch_peak_info)."
    ),
    interpretation="The 100 % of the data sheet. A GPU that runs above the data sheet's tensor clock can exceed it.",
)
PEAK_INFO = Family(
    name="flopwatch_peak_info",
    type=GAUGE,
    unit="",
    labels=("origin", "model"),
    help="Where the peaks come from, always 1: origin `datasheet` (a model of the built-in table), `derived` (from its silicon) or `config`.",
    interpretation="Trust ratios to a `derived` peak within about 10 %; data-sheet peaks are the vendor's figures.",
)
PEAK_DRAM_BANDWIDTH_BYTES_PER_SECOND = Family(
    name="flopwatch_peak_dram_bandwidth_bytes_per_second",
    type=GAUGE,
    unit="bytes/s",
    help="Theoretical device-memory bandwidth: data sheet, else 2 x maximum memory clock x bus width.",
    interpretation="The roof of memory-bound work. About 92 % of it can be reached by a copy.",
)
PEAK_NVLINK_BANDWIDTH_BYTES_PER_SECOND = Family(
    name="flopwatch_peak_nvlink_bandwidth_bytes_per_second",
    type=GAUGE,
    unit="bytes/s",
    help="Theoretical NVLink bandwidth per direction over all links, from the table of GPU models.",
    interpretation="The roof of tensor-parallel traffic between GPUs.",
)
PEAK_PCIE_BANDWIDTH_BYTES_PER_SECOND = Family(
    name="flopwatch_peak_pcie_bandwidth_bytes_per_second",
    type=GAUGE,
    unit="bytes/s",
    help="Theoretical PCIe bandwidth per direction at the link's present generation and width.",
    interpretation="It falls when a link trains down: an idle link may, a busy one must not.",
)
PEAK_C2C_BANDWIDTH_BYTES_PER_SECOND = Family(
    name="flopwatch_peak_c2c_bandwidth_bytes_per_second",
    type=GAUGE,
    unit="bytes/s",
    help="Bandwidth per direction of the active C2C links to the Grace processor (NVML, sum over the links). Grace Hopper and Grace Blackwell only.",
    interpretation="The roof of traffic to the processor's memory; it falls with every link that is down.",
)
HEADLINE_PRECISION_INFO = Family(
    name="flopwatch_headline_precision_info",
    type=GAUGE,
    unit="",
    labels=("precision", "origin"),
    help="Precision at which the tensor pipe's work is valued, always 1. Origin: config, engine or default.",
    interpretation="Tensor time is worth twice as much in fp8 as in bf16: check that this is what your models run in.",
)
HEADLINE_PEAK_FLOPS = Family(
    name="flopwatch_headline_peak_flops",
    type=GAUGE,
    unit="FLOP/s",
    help="flopwatch_peak_flops at the precision of flopwatch_headline_precision_info.",
    interpretation="The 100 % that the tensor pipe's work is held against.",
)

FLOP_TOTAL = Family(
    name="flopwatch_flop_total",
    type=COUNTER,
    unit="FLOP",
    labels=("pipe", "precision", "source"),
    help=(
        "Operations done, by pipe: pipe activity x SM count x SM cycles x dense FLOP per cycle and SM. The tensor "
        "pipe is valued at the headline precision; the plain pipes take every instruction for a fused "
        "multiply-add and are an upper bound. Integer operations for int8 and int4. A GPU in MIG mode that does not "
        "answer for itself is put together from its instances, by their share of its SMs."
    ),
    interpretation="`rate()` is achieved FLOP/s over any window.",
)
GPU_SECONDS_TOTAL = Family(
    name="flopwatch_gpu_seconds_total",
    type=COUNTER,
    unit="seconds",
    labels=("state",),
    help=(
        "Wall-clock seconds split by where the peak went; the states sum to observed time. tensor: delivered by the "
        "tensor pipe. memory, stall: SMs busy without it, waiting for memory or for something else. underfill: "
        "kernels resident, SMs empty. idle. clock_power, clock_thermal, clock_other: lost to a lowered clock. "
        "unresolved: could not be told apart from the counters that this device has, or that all instances of a GPU "
        "in MIG mode have. SMs that no instance has are idle."
    ),
    interpretation="The answer to `where did the FLOPS go?`: stack the rates, they fill 0..1.",
)
DRAM_BYTES_TOTAL = Family(
    name="flopwatch_dram_bytes_total",
    type=COUNTER,
    unit="bytes",
    labels=("source",),
    help="Bytes moved to and from device memory: DRAM bandwidth utilization x theoretical bandwidth x time.",
    interpretation="Divide flopwatch_flop_total by it for the arithmetic intensity of what runs.",
)
PCIE_RECEIVE_BYTES_TOTAL = Family(
    name="flopwatch_pcie_receive_bytes_total",
    type=COUNTER,
    unit="bytes",
    help="PCIe traffic into the GPU, as the GPU counts it (GPM, else NVML field values).",
    interpretation="Weights and prompts coming in; high and steady means offloading.",
)
PCIE_TRANSMIT_BYTES_TOTAL = Family(
    name="flopwatch_pcie_transmit_bytes_total",
    type=COUNTER,
    unit="bytes",
    help="PCIe traffic out of the GPU, as the GPU counts it (GPM, else NVML field values).",
    interpretation="High and steady means offloading of KV cache or activations.",
)
NVLINK_RECEIVE_BYTES_TOTAL = Family(
    name="flopwatch_nvlink_receive_bytes_total",
    type=COUNTER,
    unit="bytes",
    help="NVLink traffic into the GPU over all links (GPM, else NVML field values).",
    interpretation="Tensor-parallel traffic; compare with flopwatch_peak_nvlink_bandwidth_bytes_per_second.",
)
NVLINK_TRANSMIT_BYTES_TOTAL = Family(
    name="flopwatch_nvlink_transmit_bytes_total",
    type=COUNTER,
    unit="bytes",
    help="NVLink traffic out of the GPU over all links (GPM, else NVML field values).",
    interpretation="Tensor-parallel traffic; compare with flopwatch_peak_nvlink_bandwidth_bytes_per_second.",
)
C2C_RECEIVE_BYTES_TOTAL = Family(
    name="flopwatch_c2c_receive_bytes_total",
    type=COUNTER,
    unit="bytes",
    help="C2C traffic from the Grace processor into the GPU over all links, protocol included (GPM). Absent without C2C.",
    interpretation="Weights, KV cache and host memory that the GPU reads in the processor's memory.",
)
C2C_TRANSMIT_BYTES_TOTAL = Family(
    name="flopwatch_c2c_transmit_bytes_total",
    type=COUNTER,
    unit="bytes",
    help="C2C traffic out of the GPU to the Grace processor over all links, protocol included (GPM). Absent without C2C.",
    interpretation="High and steady means offloading of KV cache or activations.",
)
ENERGY_JOULES_TOTAL = Family(
    name="flopwatch_energy_joules_total",
    type=COUNTER,
    unit="joules",
    help="Energy since the driver was loaded, the device's own counter (NVML).",
    interpretation="`rate()` is power without aliasing; over flopwatch_flop_total it is joules per FLOP.",
)
ACHIEVED_FLOPS = Family(
    name="flopwatch_achieved_flops",
    type=GAUGE,
    unit="FLOP/s",
    labels=("precision",),
    help="Achieved FLOP/s of the tensor pipe in the last tick.",
    interpretation="What the GPU delivers now. For longer windows use `rate(flopwatch_flop_total)`.",
)
FLOPS_UTILIZATION_RATIO = Family(
    name="flopwatch_flops_utilization_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("precision",),
    help="flopwatch_achieved_flops over flopwatch_peak_flops in the last tick; exceeds 1 above the data-sheet clock.",
    interpretation="5 % is usual for decode at small batch, 30-60 % for prefill and large batches.",
)
DRAM_BANDWIDTH_UTILIZATION_RATIO = Family(
    name="flopwatch_dram_bandwidth_utilization_ratio",
    type=GAUGE,
    unit="ratio",
    help="Share of the theoretical device-memory bandwidth used in the last tick (GPM or DCGM).",
    interpretation="Near 0.9 the GPU is memory-bound: more FLOPS need a larger batch or smaller weights and KV cache.",
)
PIPE_ACTIVE_RATIO = Family(
    name="flopwatch_pipe_active_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("pipe",),
    help="Share of SM cycles in which the pipe was active, last tick. tensor is the union of hmma, imma, dmma, dfma.",
    interpretation="Which silicon the work runs on: hmma for fp16, bf16, tf32 and fp8, imma for int8.",
)
GPU_ACTIVE_RATIO = Family(
    name="flopwatch_gpu_active_ratio",
    type=GAUGE,
    unit="ratio",
    help="Share of time in which any kernel was resident, last tick (GPM graphics activity).",
    interpretation="What nvidia-smi calls utilization. 1 says only that something ran.",
)
SM_ACTIVE_RATIO = Family(
    name="flopwatch_sm_active_ratio",
    type=GAUGE,
    unit="ratio",
    help="Share of SM cycles in which the SM had at least one warp, mean over the SMs, last tick.",
    interpretation="Far below flopwatch_gpu_active_ratio: grids too small for the GPU.",
)
SM_OCCUPANCY_RATIO = Family(
    name="flopwatch_sm_occupancy_ratio",
    type=GAUGE,
    unit="ratio",
    help="Resident warps over the maximum, mean over the SMs, last tick.",
    interpretation="Low occupancy is normal for tensor-core kernels, a hint for others.",
)
ESTIMATOR_ERROR_RATIO = Family(
    name="flopwatch_estimator_error_ratio",
    type=GAUGE,
    unit="ratio",
    labels=("precision",),
    help="Signed error of flopwatch_flop_total against GEMMs of known FLOPs, from the last `flopwatch calibrate`.",
    interpretation="How far to trust the FLOP counters on this device. Absent if never calibrated.",
)
TICK_FLOPS_UTILIZATION_RATIO = Family(
    name="flopwatch_tick_flops_utilization_ratio",
    type=HISTOGRAM,
    unit="ratio",
    labels=("precision",),
    help="FLOPS utilization at the headline precision, one observation a tick.",
    interpretation="Dips between two scrapes, which an average hides.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)

FAMILIES = (
    GPU_INFO,
    PEAK_FLOPS,
    PEAK_INFO,
    PEAK_DRAM_BANDWIDTH_BYTES_PER_SECOND,
    PEAK_NVLINK_BANDWIDTH_BYTES_PER_SECOND,
    PEAK_PCIE_BANDWIDTH_BYTES_PER_SECOND,
    PEAK_C2C_BANDWIDTH_BYTES_PER_SECOND,
    HEADLINE_PRECISION_INFO,
    HEADLINE_PEAK_FLOPS,
    FLOP_TOTAL,
    GPU_SECONDS_TOTAL,
    DRAM_BYTES_TOTAL,
    PCIE_RECEIVE_BYTES_TOTAL,
    PCIE_TRANSMIT_BYTES_TOTAL,
    NVLINK_RECEIVE_BYTES_TOTAL,
    NVLINK_TRANSMIT_BYTES_TOTAL,
    C2C_RECEIVE_BYTES_TOTAL,
    C2C_TRANSMIT_BYTES_TOTAL,
    ENERGY_JOULES_TOTAL,
    ACHIEVED_FLOPS,
    FLOPS_UTILIZATION_RATIO,
    DRAM_BANDWIDTH_UTILIZATION_RATIO,
    PIPE_ACTIVE_RATIO,
    GPU_ACTIVE_RATIO,
    SM_ACTIVE_RATIO,
    SM_OCCUPANCY_RATIO,
    ESTIMATOR_ERROR_RATIO,
    TICK_FLOPS_UTILIZATION_RATIO,
)
