"""The products that can be simulated, with their data-sheet values."""

from dataclasses import dataclass, replace

from exporter.accounting.device import COARSE_SOURCE


_MEGA = 1e6
_GIBI = 2**30


@dataclass(frozen=True, slots=True)
class Product:
    """One GPU product. `model` is what its hosts serve.

    `source` is the one that reports activity per pipe; with COARSE_SOURCE there is none.
    """

    name: str
    architecture: str
    compute_capability: tuple[int, int]
    sm_count: int
    sm_clock_max_hertz: float
    sm_clock_idle_hertz: float
    memory_clock_hertz: float
    memory_bytes: int
    power_limit_watts: float
    idle_watts: float
    nvlinks: int
    pcie_generation: int
    source: str
    precision: str
    probe_precisions: tuple[str, ...]
    model: str
    model_parameters: float


H100 = Product(
    name="NVIDIA H100 80GB HBM3",
    architecture="Hopper",
    compute_capability=(9, 0),
    sm_count=132,
    sm_clock_max_hertz=1980 * _MEGA,
    sm_clock_idle_hertz=345 * _MEGA,
    memory_clock_hertz=2619 * _MEGA,
    memory_bytes=80 * _GIBI,
    power_limit_watts=700,
    idle_watts=70,
    nvlinks=18,
    pcie_generation=5,
    source="gpm",
    precision="fp8",
    probe_precisions=("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"),
    model="llama-3.1-70b-instruct",
    model_parameters=70e9,
)
A100 = Product(
    name="NVIDIA A100-SXM4-80GB",
    architecture="Ampere",
    compute_capability=(8, 0),
    sm_count=108,
    sm_clock_max_hertz=1410 * _MEGA,
    sm_clock_idle_hertz=210 * _MEGA,
    memory_clock_hertz=1593 * _MEGA,
    memory_bytes=80 * _GIBI,
    power_limit_watts=400,
    idle_watts=50,
    nvlinks=12,
    pcie_generation=4,
    source="dcgm",
    precision="bf16",
    probe_precisions=("fp64", "fp32", "tf32", "fp16", "bf16", "int8"),
    model="qwen2.5-32b-instruct",
    model_parameters=32e9,
)
L4 = Product(
    name="NVIDIA L4",
    architecture="Ada Lovelace",
    compute_capability=(8, 9),
    sm_count=58,
    sm_clock_max_hertz=2040 * _MEGA,
    sm_clock_idle_hertz=210 * _MEGA,
    memory_clock_hertz=6251 * _MEGA,
    memory_bytes=24 * _GIBI,
    power_limit_watts=72,
    idle_watts=12,
    nvlinks=0,
    pcie_generation=4,
    source="dcgm",
    precision="bf16",
    probe_precisions=("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"),
    model="llama-3.1-8b-instruct",
    model_parameters=8e9,
)

# Without a dcgm-exporter these have no activity counters: NVML reports only their utilization.
A100_COARSE = replace(A100, source=COARSE_SOURCE)
L4_COARSE = replace(L4, source=COARSE_SOURCE)
