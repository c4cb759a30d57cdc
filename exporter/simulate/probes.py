"""The results of the micro-probes on a simulated GPU."""

from exporter.accounting.peaks import pcie_bytes_per_second
from exporter.simulate.gpu import SimulatedGpu
from exporter.simulate.scenarios import Fault
from probes.protocol import Outcome
from probes.records import ProbeResults


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
INTERVAL_SECONDS = 60.0


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
        self._next = scenario_seconds + INTERVAL_SECONDS
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
