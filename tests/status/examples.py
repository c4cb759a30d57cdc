"""Hosts for the tests of the status page: devices with a load, ticked through an hour at once."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from exporter.accounting.device import Counters, LastWindow
from exporter.accounting.flop import PipeWork
from exporter.accounting.peaks import Peaks, find_peaks
from exporter.accounting.time_split import EVENT_REASONS, ClockWindow
from exporter.attribution.snapshot import Allocation, DeviceKey, HoldersSnapshot, JobUse
from exporter.device_state import DeviceState, SampledHost, SourceHealth, XidCounts
from exporter.inference.snapshot import GpuRef, ModelSnapshot, WorkloadSnapshot, WorkloadsSnapshot
from exporter.readings import ActivityWindow, DeviceIdentity, FastReading, SlowReading
from exporter.state import Parts, ReloadStatus, State, build_state
from exporter.status.build import StatusSources
from exporter.status.service import StatusService
from exporter.web.http import Request
from probes.records import ProbeResults, ProbesSnapshot


GIB = 2**30
START_UNIX = 1_790_000_000.0
MAX_HERTZ = 1980e6


@dataclass(frozen=True)
class Load:
    """Shares of time by state, and the device's readings meanwhile."""

    states: Mapping[str, float]
    flops: float | None = 0.0
    dram: float | None = 0.0
    hertz: float = MAX_HERTZ
    watts: float = 120.0
    celsius: float = 38.0
    reasons: int = 0
    counted: Mapping[str, float] = field(default_factory=dict)
    """FLOP/s by precision that a processor counts itself."""


DECODE = Load(
    {"tensor": 0.12, "memory": 0.62, "stall": 0.11, "underfill": 0.08, "idle": 0.07},
    flops=118e12,
    dram=0.91,
    watts=455,
    celsius=54,
)
PREFILL = Load(
    {"tensor": 0.46, "memory": 0.14, "stall": 0.1, "clock_power": 0.28, "idle": 0.02},
    flops=455e12,
    dram=0.34,
    hertz=1200e6,
    watts=697,
    celsius=71,
    reasons=EVENT_REASONS["sw_power_cap"],
)
HOT = Load(
    {"tensor": 0.2, "memory": 0.3, "clock_thermal": 0.42, "idle": 0.08},
    flops=197e12,
    dram=0.5,
    hertz=1005e6,
    watts=410,
    celsius=89,
    reasons=EVENT_REASONS["hw_thermal_slowdown"],
)
IDLE = Load({"idle": 1.0}, hertz=345e6, watts=72, celsius=31, reasons=EVENT_REASONS["gpu_idle"])
COARSE = Load({"idle": 0.4, "unresolved": 0.6}, flops=None, dram=None)


@dataclass
class Machine:
    """A host whose devices tick only when the test says so."""

    devices: dict[str, DeviceState] = field(default_factory=dict)
    hung: frozenset[tuple[str, str]] = frozenset()
    pending: bool = False
    driver_error: str | None = None
    now: float = 1_000_000.0
    configuration: Mapping[str, Any] = field(default_factory=dict)
    probes: ProbesSnapshot | None = None
    workloads: WorkloadsSnapshot | None = None
    holders: HoldersSnapshot | None = None
    name: str = "node-17"
    telemetry_path: str = "/metrics"
    reload_ok: bool = True

    def __post_init__(self) -> None:
        self.service = StatusService(
            StatusSources(
                state=self.state,
                configuration=lambda: self.configuration,
                interval_seconds=lambda: 1.0,
                host_name=self.name,
                telemetry_path=self.telemetry_path,
                wall_clock=self.unix,
            ),
            clock=lambda: self.now,
        )

    def unix(self) -> float:
        return START_UNIX + self.now - 1_000_000.0

    def state(self) -> State:
        nothing = Parts()
        parts = Parts(
            host=SampledHost(
                tuple(self.devices.values()),
                self.hung,
                pending=self.pending,
                driver_error=self.driver_error,
            ),
            probes=self.probes or nothing.probes,
            workloads=self.workloads or nothing.workloads,
            holders=self.holders or nothing.holders,
            reload=ReloadStatus(self.reload_ok, START_UNIX),
        )
        return build_state(parts, self.now)

    def add(self, snapshot: DeviceState) -> None:
        key = snapshot.identity.index + (snapshot.identity.mig or "")
        self.devices[key] = replace(snapshot, at_seconds=self.now)
        self.service.observe(self.devices[key])

    def run(
        self,
        seconds: float,
        loads: Mapping[str, Load] | Callable[[str, float], Load],
        *,
        step: float = 5.0,
    ) -> None:
        """Tick all devices that are up every `step` seconds, each under its load."""
        end = self.now + seconds
        while self.now < end - 1e-6:
            self.now += step
            for index, device in self.devices.items():
                if device.up:
                    load = loads(index, self.now) if callable(loads) else loads[index]
                    self.devices[index] = ticked(device, load, self.now, step, self.unix())
                    self.service.observe(self.devices[index])

    def change(self, index: str, **fields: Any) -> None:
        """Replace fields of a device's snapshot, as a tick of this moment."""
        self.devices[index] = replace(self.devices[index], **fields)
        self.service.observe(self.devices[index])

    def lose(self, index: str, reason: str = "gpu_is_lost") -> None:
        """The device answers with an error from now on."""
        device = self.devices[index]
        nvml = device.sources["nvml"]
        self.devices[index] = DeviceState(
            identity=device.identity,
            at_seconds=self.now,
            up=False,
            max_age_seconds=4.0,
            sources={"nvml": replace(nvml, up=False, errors={**nvml.errors, reason: 1})},
            xids=device.xids,
        )
        self.service.observe(self.devices[index])

    def page(self, query: str = "") -> str:
        self.now += 1.0  # past the cache
        answer = self.service.page(Request("GET", "/", query, {}, "127.0.0.1"))
        return answer.body.decode()


def gpu(index: int, *, name: str = "NVIDIA H100 80GB HBM3", mig: str | None = None) -> DeviceState:
    identity = DeviceIdentity(
        index=str(index),
        uuid=f"{'GPU' if mig is None else f'MIG-{mig}'}-{index:08x}-6af4-11ee-b962-0242ac120002",
        name=name,
        architecture="hopper",
        compute_capability=(9, 0),
        pci_bus_id=f"00000000:{index + 16:02X}:00.0",
        driver_version="595.71.05",
        sm_count=132,
        sm_clock_max_hertz=MAX_HERTZ,
        memory_size_bytes=80 * GIB,
        mig=mig,
    )
    return DeviceState(
        identity=identity,
        at_seconds=0.0,
        up=True,
        max_age_seconds=4.0,
        peaks=find_peaks(identity),
        precision="bf16",
        sources={"nvml": SourceHealth(True), "gpm_cycles": SourceHealth(True)},
    )


def cpu(name: str = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz") -> DeviceState:
    identity = DeviceIdentity(
        index="cpu0", uuid="CPU-0", name=name, sm_count=2, sm_clock_max_hertz=2.7e9
    )
    return DeviceState(
        identity=identity,
        at_seconds=0.0,
        up=True,
        max_age_seconds=4.0,
        peaks=Peaks(origin="derived", model=name, flops={"fp32": 345.6e9, "fp64": 172.8e9}),
        precision="fp32",
        sources={"cpu": SourceHealth(True)},
    )


def ticked(device: DeviceState, load: Load, now: float, step: float, unix: float) -> DeviceState:
    """The device after another tick of `step` seconds under a load."""
    before = device.counters
    states = dict(before.state_seconds)
    for state, share in load.states.items():
        states[state] = states.get(state, 0.0) + share * step
    source = "nvml" if load.flops is None else "gpm_cycles"
    flop = dict(before.flop)
    achieved: dict[str, float] = {}
    if load.flops is not None and device.precision:
        key = (PipeWork("tensor", device.precision), source)
        flop[key] = flop.get(key, 0.0) + load.flops * step
        achieved[device.precision] = load.flops
    for precision, flops in load.counted.items():
        own = (PipeWork(precision, precision), "perf")
        flop[own] = flop.get(own, 0.0) + flops * step
    reasons = {
        name: before.event_reason_seconds.get(name, 0.0) + (step if load.reasons & bit else 0.0)
        for name, bit in EVENT_REASONS.items()
    }
    slow = device.slow or SlowReading(
        now,
        power_limit_watts=700.0,
        ecc_errors={"corrected": 2.0, "uncorrected": 0.0},
        nvlink_up={str(link): True for link in range(18)},
        pcie_link_width=16,
        pcie_link_width_max=16,
        processes=(),
    )
    return replace(
        device,
        at_seconds=now,
        slow=slow if device.identity.index != "cpu0" else SlowReading(now),
        fast=FastReading(
            now,
            sm_clock_hertz=load.hertz,
            event_reasons=load.reasons,
            power_watts=load.watts,
            temperature_celsius=load.celsius,
            memory_temperature_celsius=load.celsius + 12,
            gpu_utilization=1.0 - load.states.get("idle", 0.0),
            memory_used_bytes=72.0 * GIB,
            memory_size_bytes=80.0 * GIB,
            recovery_action=0,
        ),
        last=LastWindow(
            ActivityWindow(source, now - step, now, dram=load.dram),
            ClockWindow(load.hertz),
            achieved,
        ),
        counters=Counters(flop=flop, state_seconds=states, event_reason_seconds=reasons),
        sources={
            name: replace(health, last_success_unix_seconds=unix)
            for name, health in device.sources.items()
        },
    )


def probed(index: int, *, ratio: float = 1.0, mismatches: int = 0) -> ProbeResults:
    """Twelve kernels, all at `ratio` of their baselines."""
    device = gpu(index)
    flops = {"fp64": 61e12, "tf32": 410e12, "fp16": 720e12, "bf16": 735e12, "fp8": 1390e12}
    paths = {("device", ""): 2.9e12, ("host_to_device", ""): 55e9, ("device_to_host", ""): 53e9}
    kernels = [f"gemm_{name}" for name in flops] + [f"copy_{path}" for path, _peer in paths]
    return ProbeResults(
        device=str(index),
        uuid=device.identity.uuid,
        flops={name: value * ratio for name, value in flops.items()},
        efficiency_ratio=dict.fromkeys(flops, 0.86 * ratio),
        sm_clock_hertz=1.7e9,
        bandwidth_bytes_per_second={path: value * ratio for path, value in paths.items()},
        launch_latency_seconds=4.1e-6,
        baseline_ratio=dict.fromkeys([*kernels, "launch"], ratio),
        tenant_busy_ratio=(0.1, 0.2),
        mismatches={"gemm_bf16": mismatches},
        runs={},
        skips={},
        gpu_seconds=1.2,
        last_success_seconds=dict.fromkeys([*kernels, "launch"], START_UNIX),
        worker_restarts=0,
        worker_memory_bytes=None,
        worker_pid=None,
    )


def served(
    indices: Iterable[int], model: str = "meta-llama/Llama-3.1-70B-Instruct"
) -> WorkloadsSnapshot:
    return WorkloadsSnapshot(
        (
            WorkloadSnapshot(
                name="chat",
                engine="vllm",
                up=True,
                gpus=tuple(GpuRef(str(i), gpu(i).identity.uuid) for i in indices),
                models=(
                    ModelSnapshot(
                        model, precision="fp8", flops_utilization=0.11, bandwidth_utilization=0.63
                    ),
                ),
            ),
            WorkloadSnapshot(name="embeddings", engine="tgi", up=False, reason="connection"),
        )
    )


def held(indices: Iterable[int], pod: str = "chat-7d9f8b5c4-x2x9p") -> HoldersSnapshot:
    return HoldersSnapshot(
        allocations=tuple(
            Allocation(DeviceKey(uuid=gpu(i).identity.uuid), "serving", pod, "vllm")
            for i in indices
        ),
        jobs=(JobUse(DeviceKey(index="0"), "4711"),),
    )


def busy_hour(index: str, now: float) -> Load:
    """Traffic that varies, differently on each device: the worst case for the strip's size."""
    phase = int(now / 60) * 7 + hash_of(index)
    loads = (DECODE, PREFILL, DECODE, IDLE, HOT if index == "5" else DECODE)
    load = loads[phase % len(loads)]
    shift = (phase % 11) / 100
    states = dict(load.states)
    first, *_others = states
    states[first] = max(0.0, states[first] - shift)
    states["stall"] = states.get("stall", 0.0) + min(shift, load.states[first])
    return replace(load, states=states)


def traffic(index: str, now: float) -> Load:
    """A day's traffic in an hour: prompts and tokens in waves, a little later on each device."""
    wave = math.sin(now / 400 + hash_of(index) % 7)
    busy = 0.62 + 0.3 * wave + 0.04 * math.sin(now / 37 + hash_of(index))
    prompts = max(0.0, 0.35 * math.sin(now / 170 + hash_of(index) % 3))
    power = 0.12 * prompts
    heat = 0.3 if index == "5" and now % 3600 > 2400 else 0.0
    held = power + heat
    work = max(0.0, busy - held)
    tensor = work * (0.12 + prompts)
    memory = work * (0.72 - prompts)
    states = {
        "tensor": tensor,
        "memory": memory,
        "stall": work * 0.1,
        "underfill": work * 0.06,
        "clock_power": power,
        "clock_thermal": heat,
        "idle": max(0.0, 1.0 - busy),
    }
    load = HOT if heat else PREFILL if power > 0.01 else DECODE
    return replace(load, states=states, flops=tensor * 989e12, dram=min(0.95, memory * 1.4))


def hash_of(index: str) -> int:
    return sum(map(ord, index)) * 31


def fleet(
    count: int, load: Callable[[str, float], Load] = traffic, *, seconds: float = 3600.0
) -> Machine:
    """A node after `seconds`: one lost GPU, one hot, one slow, one with XIDs, the others busy."""
    machine = Machine()
    for index in range(count):
        machine.add(gpu(index))
    machine.run(seconds, load, step=10.0)
    machine.run(
        60, lambda index, now: {"1": PREFILL, "5": HOT, "2": IDLE}.get(index, load(index, now))
    )
    ratios = {4: 0.82}
    machine.probes = ProbesSnapshot(
        True, False, tuple(probed(i, ratio=ratios.get(i, 0.99)) for i in range(count))
    )
    machine.workloads = served(range(count))
    machine.holders = held(range(count))
    if count > 3:
        machine.change(
            "3", xids=XidCounts({31: 2, 79: 1}, {31: machine.unix() - 900, 79: machine.unix() - 40})
        )
        machine.now += 3
        machine.lose("3")
    return machine
