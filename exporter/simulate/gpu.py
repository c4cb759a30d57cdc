"""One simulated GPU and its micro-probes: readings follow simple physics, the accounting is the daemon's."""

import math
import random
from dataclasses import replace

from exporter.accounting.device import (
    COARSE_SOURCE,
    TICK_DURATION_BOUNDS,
    DeviceAccounts,
    Histogram,
    LastWindow,
)
from exporter.accounting.peaks import find_peaks, pcie_bytes_per_second
from exporter.accounting.time_split import EVENT_REASONS
from exporter.device_state import DeviceState, SourceHealth, XidCounts
from exporter.readings import (
    ActivityWindow,
    ClockSample,
    DeviceIdentity,
    FastReading,
    ProcessUse,
    SlowReading,
)
from exporter.simulate.scenarios import IDLE, NO_FAULT, Fault, Load, Product
from probes.protocol import Outcome
from probes.records import ProbeResults


# Dynamic power at full clock and load, as a share of the limit, by unit.
_SM_POWER, _TENSOR_POWER, _DRAM_POWER = 0.22, 0.95, 0.28
# Dynamic power grows with the clock and with the square of the voltage required at that clock.
_POWER_EXPONENT = 2.2
_INLET_CELSIUS = 32.0
_CELSIUS_AT_LIMIT = 42.0
_THROTTLE_CELSIUS = 87.0
_THROTTLE_PER_CELSIUS = 0.025
_LOWEST_CLOCK = 0.25
_WARMING_SECONDS = 40.0
_IDLE_BELOW = 0.02
_MAX_AGE_SECONDS = 60.0
# What healthy hardware achieves: shares of FLOP per clock, of memory bandwidth, of the PCIe link.
_EFFICIENCY = {
    "fp64": 0.86,
    "fp32": 0.89,
    "tf32": 0.76,
    "fp16": 0.79,
    "bf16": 0.78,
    "fp8": 0.71,
    "int8": 0.72,
}
_MEMORY_SHARE = 0.91
_LINK_SHARE = 0.82
_LAUNCH_SECONDS = 4.2e-6
_SECONDS_A_RUN = 0.0014
_CONTENDED_FROM = 0.1
_WORKER_BYTES = 400 * 2**20
_PROBE_INTERVAL_SECONDS = 60.0


class SimulatedGpu:
    """A GPU that takes a load and returns a snapshot. Not thread-safe."""

    def __init__(self, product: Product, identity: DeviceIdentity, seed: str) -> None:
        self.product = product
        self.identity = identity
        plain = DeviceIdentity(index=identity.index, uuid=identity.uuid, name=product.name)
        self.peaks = find_peaks(plain)
        self.accounts = DeviceAccounts(identity, self.peaks)
        self.random = random.Random(seed)
        # The silicon lottery: units of one product differ by one or two percent.
        self.quality = 1 + self.random.gauss(0, 0.008)
        self.place_celsius = self.random.uniform(-3, 3)
        self.clock_hertz = product.sm_clock_idle_hertz
        self.temperature_celsius = _INLET_CELSIUS + self.place_celsius
        self._energy_joules = self.random.uniform(1e7, 1e9)
        self._last: LastWindow | None = None
        self._fast: FastReading | None = None
        self._fault = NO_FAULT
        self._xids: dict[int, int] = {}
        self._xid_at: dict[int, float] = {}
        self._xid_begun: float | None = None
        self._ticks = Histogram(TICK_DURATION_BOUNDS)
        self._succeeded: float | None = None
        self._watts = product.idle_watts
        # The true activity of the GPU, whether or not a source counts it: FLOP/s of the tensor pipe
        # in the last tick, and all bytes moved in device memory.
        self.delivered_flops = 0.0
        self.dram_bytes = 0.0

    @property
    def throttled(self) -> bool:
        """Whether heat currently limits the clock."""
        return self.temperature_celsius > _THROTTLE_CELSIUS

    def tick(self, start: float, end: float, load: Load, fault: Fault, *, pace: float) -> None:
        """Simulate the time from `start` to `end` (Unix seconds).

        `pace` is the speed of the scenario's clock.
        """
        if fault.engine_down:
            load = IDLE
        elif fault.hangs:  # the collective's kernel spins
            load = replace(load, graphics=1.0, sm=0.15, tensor=0.0, dram=0.0, fp32=0.0, nvlink=0.0)
        elif fault.waste != 1.0:
            load = replace(load, tensor=load.tensor * fault.waste)
        self._fault = fault
        self._report_xid(end, fault, pace)
        if fault.lost:
            self.accounts.forget_open_spans()
            self.delivered_flops = 0.0
            return
        reasons = self._regulate(end - start, load, fault, pace)
        self._energy_joules += self._watts * (end - start)
        window = self._window(start, end, load, fault)
        self._work(window)
        self._fast = self._fast_reading(end, load, fault, reasons)
        for at in (start, end):
            self.accounts.observe_clock(ClockSample(at, self.clock_hertz, reasons))
        self._last = self.accounts.observe(
            self._fast,
            None if self.product.source == COARSE_SOURCE else window,
            precision=self.product.precision,
            max_window_seconds=math.inf,
        )
        self._ticks.observe(self.random.lognormvariate(-5.3, 0.35))
        self._succeeded = end

    def state(self, at: float) -> DeviceState:
        """What the daemon would publish now."""
        up = not self._fault.lost and self._fast is not None
        health = SourceHealth(up=up, last_success_unix_seconds=self._succeeded)
        return DeviceState(
            identity=self.identity,
            at_seconds=at,
            up=up,
            max_age_seconds=_MAX_AGE_SECONDS,
            peaks=self.peaks if up else None,
            precision=self.product.precision,
            precision_origin="engine",
            fast=self._fast if up else None,
            slow=self._slow_reading(at) if up else None,
            last=self._last if up else None,
            counters=self.accounts.counters(),
            sources={"nvml": health, self.product.source: health},
            xids=XidCounts(dict(self._xids), dict(self._xid_at)),
            tick_duration=self._ticks.value(),
        )

    def _regulate(self, seconds: float, load: Load, fault: Fault, pace: float) -> int:
        """Set clock, power and temperature; returns the clock event reasons."""
        product = self.product
        if load.graphics < _IDLE_BELOW:
            self.clock_hertz = product.sm_clock_idle_hertz
            self._watts = product.idle_watts * self._jitter(0.02)
            self._warm(seconds * pace, fault)
            return EVENT_REASONS["gpu_idle"]
        limit = product.power_limit_watts * fault.power_limit
        dynamic = product.power_limit_watts * (
            _SM_POWER * load.sm + _TENSOR_POWER * load.tensor + _DRAM_POWER * load.dram
        )
        by_power = ((limit - product.idle_watts) / dynamic) ** (1 / _POWER_EXPONENT)
        over = self.temperature_celsius - _THROTTLE_CELSIUS
        by_heat = 1.0 - _THROTTLE_PER_CELSIUS * over if over > 0 else 1.0
        share = max(_LOWEST_CLOCK, min(1.0, by_power, by_heat))
        reasons = 0
        if by_power < 1.0:
            reasons |= EVENT_REASONS["sw_power_cap"] if by_power <= by_heat else 0
        if by_heat < 1.0 and by_heat < by_power:
            reasons |= EVENT_REASONS["sw_thermal_slowdown"]
        self.clock_hertz = product.sm_clock_max_hertz * share
        self._watts = (product.idle_watts + dynamic * share**_POWER_EXPONENT) * self._jitter(0.01)
        self._warm(seconds * pace, fault)
        return reasons

    def _warm(self, seconds: float, fault: Fault) -> None:
        goal = (
            _INLET_CELSIUS
            + self.place_celsius
            + _CELSIUS_AT_LIMIT * self._watts / self.product.power_limit_watts
            + fault.heat_celsius
        )
        step = 1 - math.exp(-seconds / _WARMING_SECONDS)
        self.temperature_celsius += (goal - self.temperature_celsius) * step

    def _window(self, start: float, end: float, load: Load, fault: Fault) -> ActivityWindow:
        seconds = end - start
        # A neighbour in another time slice takes a share of all units, and keeps the SMs busy.
        own = 1 - fault.neighbour
        tensor = min(1.0, load.tensor * own * fault.speed * self._jitter(0.06))
        dram = min(
            0.95, load.dram * own * min(fault.memory_speed, fault.speed) * self._jitter(0.03)
        )
        graphics = min(1.0, max(load.graphics, fault.neighbour) * self._jitter(0.005))
        sm = min(graphics, max(load.sm, 0.9 * fault.neighbour) * self._jitter(0.01))
        nvlink = (self.peaks.nvlink_bytes_per_second or 0.0) * load.nvlink * own * seconds
        pcie = 25e6 * load.requests * seconds
        return ActivityWindow(
            source=self.product.source,
            start_seconds=start,
            end_seconds=end,
            graphics=graphics,
            sm=sm,
            occupancy=0.3 * sm,
            integer=0.5 * load.fp32,
            tensor=tensor,
            hmma_tensor=tensor,
            imma_tensor=0.0,
            dmma_tensor=0.0,
            dfma_tensor=0.0,
            dram=dram,
            fp64=0.0,
            fp32=load.fp32 * own * self._jitter(0.05),
            fp16=0.2 * load.fp32 * own,
            pcie_receive_bytes=pcie,
            pcie_transmit_bytes=0.4 * pcie,
            nvlink_receive_bytes=nvlink if self.product.nvlinks else None,
            nvlink_transmit_bytes=nvlink if self.product.nvlinks else None,
        )

    def _work(self, window: ActivityWindow) -> None:
        product, peaks = self.product, self.peaks
        rate = peaks.tensor_rate[product.precision]
        self.delivered_flops = (
            (window.hmma_tensor or 0.0) * product.sm_count * self.clock_hertz * rate
        )
        bandwidth = peaks.dram_bytes_per_second or 0.0
        self.dram_bytes += (
            (window.dram or 0.0) * bandwidth * (window.end_seconds - window.start_seconds)
        )

    def _fast_reading(self, at: float, load: Load, fault: Fault, reasons: int) -> FastReading:
        product = self.product
        used = product.memory_bytes * (0.9 if load.requests or fault.engine_down else 0.01)
        reserved = 0.007 * product.memory_bytes
        return FastReading(
            at_seconds=at,
            sm_clock_hertz=self.clock_hertz,
            memory_clock_hertz=product.memory_clock_hertz,
            event_reasons=reasons,
            power_watts=self._watts,
            energy_joules=self._energy_joules,
            temperature_celsius=round(self.temperature_celsius),
            memory_temperature_celsius=round(self.temperature_celsius + 6 + fault.memory_celsius),
            gpu_utilization=min(1.0, load.graphics),
            memory_utilization=load.dram,
            memory_size_bytes=product.memory_bytes,
            memory_used_bytes=used,
            memory_free_bytes=product.memory_bytes - used - reserved,
            memory_reserved_bytes=reserved,
            performance_state=0 if load.graphics >= _IDLE_BELOW else 8,
            recovery_action=fault.recovery_action or 0,
        )

    def _slow_reading(self, at: float) -> SlowReading:
        product, fault = self.product, self._fault
        pids = [4242] + ([4343] if fault.neighbour else [])
        return SlowReading(
            at_seconds=at,
            power_limit_watts=product.power_limit_watts * fault.power_limit,
            engine_utilization={"encoder": 0.0, "decoder": 0.0},
            ecc_errors={"corrected": 3.0, "uncorrected": 0.0},
            remapped_rows={"corrected": 0.0, "uncorrected": 0.0},
            row_remap_pending=False,
            row_remap_failed=False,
            pcie_link_generation=product.pcie_generation,
            pcie_link_generation_max=product.pcie_generation,
            pcie_link_width=16,
            pcie_link_width_max=16,
            pcie_replays=0.0,
            nvlink_up={str(link): link >= fault.nvlinks_down for link in range(product.nvlinks)},
            nvlink_errors={"replay": 0.0, "recovery": 0.0, "crc": 0.0} if product.nvlinks else {},
            compute_mode="default",
            mig_enabled=False,
            processes=tuple(ProcessUse(pid, None) for pid in pids),
        )

    def _report_xid(self, at: float, fault: Fault, pace: float) -> None:
        if fault.xid is None:
            return
        if self._xid_begun is None:
            self._xid_begun = at
        events = 1
        if fault.xid_period is not None:
            events += int((at - self._xid_begun) * pace / fault.xid_period)
        if events > self._xids.get(fault.xid, 0):
            self._xids[fault.xid] = events
            self._xid_at[fault.xid] = at

    def _jitter(self, share: float) -> float:
        return 1 + self.random.uniform(-share, share)


class SimulatedProbes:
    """Probes one GPU once per interval of the scenario's clock. Not thread-safe."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu
        self._next = 0.0
        self._runs: dict[tuple[str, Outcome], int] = {}
        self._mismatches: dict[str, int] = {}
        self._measured: dict[str, float] = {}
        self._succeeded: dict[str, float] = {}
        self._gpu_seconds = 0.0
        self._tenant = 0.0
        self._clock_hertz: float | None = None

    def advance(self, at: float, scenario_seconds: float, fault: Fault) -> None:
        """Run the kernels if the interval has passed. `at` is Unix time."""
        if fault.lost or fault.driver_gone or scenario_seconds < self._next:
            return
        self._next = scenario_seconds + _PROBE_INTERVAL_SECONDS
        self._tenant = fault.neighbour
        self._clock_hertz = max(self._gpu.clock_hertz, 0.95 * self._gpu.product.sm_clock_max_hertz)
        if self._gpu.throttled:
            self._clock_hertz = self._gpu.clock_hertz
        for kernel, healthy in self._kernels().items():
            self._gpu_seconds += _SECONDS_A_RUN
            self._run(at, kernel, healthy, fault)

    def results(self) -> ProbeResults:
        """What the probe service would publish about the GPU."""
        flops: dict[str, float] = {}
        efficiency: dict[str, float] = {}
        bandwidth: dict[tuple[str, str], float] = {}
        launch: float | None = None
        for kernel, share in self._measured.items():
            if kernel.startswith("gemm_"):
                self._gemm(kernel.removeprefix("gemm_"), share, flops, efficiency)
            elif kernel == "launch":
                launch = _LAUNCH_SECONDS / share
            else:
                reached = self._reached(kernel, share)
                if reached is not None:
                    bandwidth[kernel.removeprefix("copy_"), ""] = reached
        # A launch has no result to compare.
        checked = {kernel: 0 for kernel in self._succeeded if kernel != "launch"}
        identity = self._gpu.identity
        return ProbeResults(
            device=identity.index,
            uuid=identity.uuid,
            flops=flops,
            efficiency_ratio=efficiency,
            sm_clock_hertz=self._clock_hertz,
            bandwidth_bytes_per_second=bandwidth,
            launch_latency_seconds=launch,
            baseline_ratio=dict(self._measured),
            tenant_busy_ratio=(0.6 * self._tenant, self._tenant),
            mismatches=checked | self._mismatches,
            runs=dict(self._runs),
            skips={},
            gpu_seconds=self._gpu_seconds,
            last_success_seconds=dict(self._succeeded),
            worker_restarts=0,
            worker_memory_bytes=_WORKER_BYTES,
            worker_pid=None,
        )

    def _kernels(self) -> dict[str, str]:
        gemms = {f"gemm_{precision}": "gemm" for precision in self._gpu.product.probe_precisions}
        return gemms | {
            "copy_device": "memory",
            "copy_host_to_device": "link",
            "copy_device_to_host": "link",
            "launch": "launch",
        }

    def _run(self, at: float, kernel: str, kind: str, fault: Fault) -> None:
        outcome: Outcome = "ok"
        if fault.neighbour > _CONTENDED_FROM:
            outcome = "contended"
        elif self._gpu.throttled:
            outcome = "throttled"
        elif fault.wrong_results and kind == "gemm":
            outcome = "mismatch"
            self._mismatches[kernel] = self._mismatches.get(kernel, 0) + 1
        self._runs[kernel, outcome] = self._runs.get((kernel, outcome), 0) + 1
        if outcome != "ok":
            return
        speed = {"gemm": fault.speed, "memory": fault.memory_speed}.get(kind, 1.0)
        self._measured[kernel] = speed * (1 + self._gpu.random.gauss(0, 0.004))
        self._succeeded[kernel] = at

    def _gemm(
        self, precision: str, share: float, flops: dict[str, float], efficiency: dict[str, float]
    ) -> None:
        gpu, peaks = self._gpu, self._gpu.peaks
        efficiency[precision] = _EFFICIENCY[precision] * gpu.quality * share
        rate = peaks.tensor_rate.get(precision) or peaks.plain_rate.get(precision)
        if rate and peaks.sm_count and self._clock_hertz:
            flops[precision] = efficiency[precision] * rate * peaks.sm_count * self._clock_hertz

    def _reached(self, kernel: str, share: float) -> float | None:
        full = self._gpu.peaks.dram_bytes_per_second
        reachable = _MEMORY_SHARE * self._gpu.quality
        if kernel != "copy_device":
            full = pcie_bytes_per_second(self._gpu.product.pcie_generation, 16)
            reachable = _LINK_SHARE
        return None if full is None else full * reachable * share
