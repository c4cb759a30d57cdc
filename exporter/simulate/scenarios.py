"""The scenarios: GPU products, loads over time, faults, and the alerts that these must raise."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from exporter.accounting.device import COARSE_SOURCE


_MEGA = 1e6
_GIBI = 2**30
_MINUTE = 60.0
_HOUR = 3600.0


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


@dataclass(frozen=True, slots=True)
class Load:
    """The load on a GPU: shares of its time and units at full clock, each 0..1.

    `graphics` is the graphics engine, `dram` memory bandwidth, `fp32` the plain pipe. `prefill_share`
    is the share of tensor work that is prefill; `requests` are in flight.
    """

    graphics: float = 0.0
    sm: float = 0.0
    tensor: float = 0.0
    dram: float = 0.0
    fp32: float = 0.0
    nvlink: float = 0.0
    prefill_share: float = 0.0
    requests: float = 0.0


IDLE = Load()


def decode(traffic: float) -> Load:
    """Decode: SMs are busy reading weights, however few the requests.

    Tensor pipe activity follows the batch size, memory traffic hardly does: each step reads all
    weights, whether for one request or for sixty-four.
    """
    if traffic <= 0:
        return IDLE
    return Load(
        graphics=0.97,
        sm=0.90,
        tensor=0.01 + 0.11 * traffic,
        dram=0.62 + 0.12 * traffic,
        fp32=0.06,
        nvlink=0.05 + 0.05 * traffic,
        prefill_share=0.25,
        requests=64 * traffic,
    )


def prefill(traffic: float) -> Load:
    """Prefill: the tensor pipe limits throughput, and is idle without prompts."""
    if traffic <= 0:
        return IDLE
    return Load(
        graphics=0.98 * traffic,
        sm=0.92 * traffic,
        tensor=0.57 * traffic,
        dram=0.36 * traffic,
        fp32=0.09 * traffic,
        nvlink=0.22 * traffic,
        prefill_share=0.92,
        requests=24 * traffic,
    )


def mixed(traffic: float) -> Load:
    """Prefill and decode in the same batches (chunked prefill)."""
    if traffic <= 0:
        return IDLE
    return Load(
        graphics=0.96,
        sm=0.90,
        tensor=0.03 + 0.28 * traffic,
        dram=0.55 + 0.1 * traffic,
        fp32=0.07,
        nvlink=0.15 * traffic,
        prefill_share=0.6,
        requests=48 * traffic,
    )


# Arguments: seconds since the start of the scenario, and the host's position in the fleet.
LoadAt = Callable[[float, int], Load]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of one GPU (all GPUs of the host if `gpu` is None) from `begins` seconds on.

    `speed` and `memory_speed` are the remaining shares of tensor pipe and device memory speed;
    `heat_celsius` is added to the temperature and `memory_celsius` to the memory temperature;
    `power_limit` is the remaining share of the limit; `xid` occurs every `xid_period` seconds, or
    once; `neighbour` is the share of the GPU that another tenant takes. For the host: `driver_gone`
    leaves the GPUs visible on the PCI bus only, `clock_skew` is added to its clock, `hangs` makes
    the engine hang in a collective, `engine_down` kills it with its memory held, `engine_period`
    makes it crash at that interval, `cache_hits` is the remaining prefix cache hit ratio for prompt
    tokens, and `waste` multiplies the FLOPs that its tokens take.
    """

    gpu: int | None
    begins: float
    host: int = 0
    speed: float = 1.0
    memory_speed: float = 1.0
    heat_celsius: float = 0.0
    power_limit: float = 1.0
    lost: bool = False
    xid: int | None = None
    xid_period: float | None = None
    recovery_action: int | None = None
    nvlinks_down: int = 0
    wrong_results: bool = False
    neighbour: float = 0.0
    memory_celsius: float = 0.0
    driver_gone: bool = False
    clock_skew: float = 0.0
    hangs: bool = False
    engine_down: bool = False
    engine_period: float | None = None
    cache_hits: float | None = None
    waste: float = 1.0


NO_FAULT = Fault(gpu=None, begins=0.0)


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine simulated pass by pass, with mean lengths in tokens.

    `clients` always have a request in flight; `batch` requests run at once. `hits` is the share of
    each prompt found in the prefix cache.
    """

    batch: int
    clients: int
    prompt: int
    answer: int
    hits: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fleet's load, products (in turn by host), faults, and the alerts that these must raise.

    `alerts` fire on the GPUs with a fault, `host_alerts` on their host. With `serving`, an engine
    is simulated pass by pass and `load` is not used.
    """

    name: str
    summary: str
    load: LoadAt
    products: tuple[Product, ...] = (H100,)
    faults: tuple[Fault, ...] = ()
    alerts: frozenset[str] = frozenset()
    host_alerts: frozenset[str] = frozenset()
    serving: Serving | None = None


def _steady(kind: Callable[[float], Load], traffic: float) -> LoadAt:
    """Steady traffic that varies by 8 % every ten minutes, out of phase between hosts."""

    def load(seconds: float, host: int) -> Load:
        return kind(traffic * (1 + 0.08 * math.sin(2 * math.pi * seconds / (10 * _MINUTE) + host)))

    return load


def _ebb(seconds: float, _host: int) -> Load:
    """Full traffic that falls to a twentieth and recovers within 2.5 hours."""
    return decode(0.525 + 0.475 * math.cos(2 * math.pi * seconds / (2.5 * _HOUR)))


def _by_host(seconds: float, host: int) -> Load:
    """A different kind of load for each product."""
    kinds = (_steady(mixed, 0.9), _steady(decode, 0.7), _steady(prefill, 0.6))
    return kinds[host % len(kinds)](seconds, host)


def _idle(_seconds: float, _host: int) -> Load:
    return IDLE


_BEGIN = 5 * _MINUTE

_ALL = (
    Scenario(
        "steady-decode",
        "every GPU decodes at a steady batch size: memory-bound, at a few percent of peak, healthy",
        _steady(decode, 0.8),
    ),
    Scenario(
        "prefill-heavy",
        "long prompts: the tensor pipe limits throughput, power is close to its limit; no fault",
        _steady(prefill, 0.9),
    ),
    Scenario("traffic-ebb", "traffic falls to a twentieth and recovers; no fault", _ebb),
    Scenario(
        "straggler",
        "GPU 3 of the first host computes 12 % slower than its peers from minute 5",
        _steady(mixed, 0.8),
        faults=(Fault(gpu=3, begins=_BEGIN, speed=0.88),),
        alerts=frozenset({"GPUSlowerThanPeers"}),
    ),
    Scenario(
        "thermal-throttling",
        "the cooling of GPU 5 of the first host fails at minute 5",
        _steady(prefill, 0.9),
        faults=(Fault(gpu=5, begins=_BEGIN, heat_celsius=38),),
        alerts=frozenset({"GPUClocksHeldDownByHeat", "GPUMemoryHot"}),
    ),
    Scenario(
        "power-cap",
        "the GPUs of the first host are limited to 45 % of their power from minute 5",
        _steady(prefill, 0.9),
        faults=(Fault(gpu=None, begins=_BEGIN, power_limit=0.45),),
        alerts=frozenset({"GPUClocksHeldDownByPower", "GPUPowerLimitLowered"}),
    ),
    Scenario(
        "lost-gpu",
        "GPU 6 of the first host falls off the bus at minute 5",
        _steady(decode, 0.8),
        faults=(Fault(gpu=6, begins=_BEGIN, lost=True, xid=79),),
        alerts=frozenset({"GPULost", "GPUXidCritical"}),
    ),
    Scenario(
        "xid-burst",
        "a program on GPU 2 of the first host causes an XID every 30 seconds from minute 5",
        _steady(decode, 0.8),
        faults=(Fault(gpu=2, begins=_BEGIN, xid=31, xid_period=30),),
        alerts=frozenset({"GPUXidBurst"}),
    ),
    Scenario(
        "nvlink-down",
        "two NVLinks of GPU 1 of the first host go down at minute 5",
        _steady(mixed, 0.8),
        faults=(Fault(gpu=1, begins=_BEGIN, nvlinks_down=2, xid=74),),
        alerts=frozenset({"NVLinkDown", "GPUXidCritical"}),
    ),
    Scenario(
        "silent-corruption",
        "GPU 4 of the first host computes wrong results from minute 5 and reports no error",
        _steady(mixed, 0.8),
        faults=(Fault(gpu=4, begins=_BEGIN, wrong_results=True),),
        alerts=frozenset({"GPUSilentDataCorruption"}),
    ),
    Scenario("idle-fleet", "no GPU has any work", _idle),
    Scenario(
        "mixed-fleet",
        "H100, A100 and L4 hosts, each product with a different kind of load",
        _by_host,
        products=(H100, A100, L4),
    ),
    Scenario(
        "no-activity-counters",
        "A100 and L4 hosts without dcgm-exporter: FLOPs are not counted; no fault",
        _steady(mixed, 0.8),
        products=(A100_COARSE, L4_COARSE),
    ),
    Scenario(
        "noisy-neighbour",
        "another tenant uses half of GPU 0 of the first host from minute 5: slower answers, healthy hardware",
        _steady(decode, 0.8),
        faults=(Fault(gpu=0, begins=_BEGIN, neighbour=0.5),),
    ),
    Scenario(
        "nccl-hang",
        "the engine of the first host hangs in an NCCL collective from minute 5: requests run, but no tokens are generated",
        _steady(decode, 0.8),
        faults=(Fault(gpu=None, begins=_BEGIN, hangs=True),),
        host_alerts=frozenset({"WorkloadStuck"}),
    ),
    Scenario(
        "dead-engine",
        "the engine of the first host dies at minute 5, and its processes still hold the GPU memory",
        _steady(decode, 0.8),
        faults=(Fault(gpu=None, begins=_BEGIN, engine_down=True),),
        alerts=frozenset({"GPUMemoryHeld"}),
        host_alerts=frozenset({"WorkloadDown"}),
    ),
    Scenario(
        "engine-restarts",
        "the engine of the first host crashes every five minutes from minute 5",
        _steady(decode, 0.8),
        faults=(Fault(gpu=None, begins=_BEGIN, engine_period=5 * _MINUTE),),
        host_alerts=frozenset({"WorkloadRestarting"}),
    ),
    Scenario(
        "driver-not-loaded",
        "the PCI bus of the first host has GPUs, but the driver is not loaded",
        _steady(decode, 0.8),
        faults=(Fault(gpu=None, begins=0.0, driver_gone=True),),
        host_alerts=frozenset({"GPUDriverNotLoaded"}),
    ),
    Scenario(
        "power-limit-lowered",
        "from minute 5, GPU 2 of the first host has 60 % of its peers' power limit; its load needs less",
        _steady(decode, 0.3),
        faults=(Fault(gpu=2, begins=_BEGIN, power_limit=0.6),),
        alerts=frozenset({"GPUPowerLimitLowered"}),
    ),
    Scenario(
        "hot-memory",
        "the memory of GPU 4 of the first host overheats from minute 5",
        _steady(decode, 0.8),
        faults=(Fault(gpu=4, begins=_BEGIN, memory_celsius=45),),
        alerts=frozenset({"GPUMemoryHot"}),
    ),
    Scenario(
        "clock-skew",
        "the clock of the first host is ten minutes slow",
        _steady(decode, 0.8),
        faults=(Fault(gpu=None, begins=0.0, clock_skew=-600),),
        host_alerts=frozenset({"HostClockSkew"}),
    ),
    Scenario(
        "cache-collapse",
        "the prefix cache of the first host stops hitting at minute 5: prompts are recomputed",
        _steady(mixed, 0.8),
        faults=(Fault(gpu=None, begins=_BEGIN, cache_hits=0.02),),
    ),
    Scenario(
        "rollout",
        "a new version on the first host needs half the FLOPs per token from minute 5; no fault",
        _steady(mixed, 0.8),
        faults=(Fault(gpu=None, begins=_BEGIN, waste=0.5),),
    ),
    Scenario(
        "serving-queue",
        "an engine simulated pass by pass, with more requests than its batch limit; for use with --pull",
        _idle,
        serving=Serving(batch=16, clients=40, prompt=600, answer=250),
    ),
    Scenario(
        "serving-capped",
        "like serving-queue, with long prompts and the first host limited to 45 % of its power",
        _idle,
        faults=(Fault(gpu=None, begins=0.0, power_limit=0.45),),
        serving=Serving(batch=24, clients=60, prompt=3000, answer=100),
    ),
)

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
