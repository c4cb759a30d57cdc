"""What the micro-probes of a simulated GPU would report."""

from collections.abc import Iterator

from exporter.accounting.peaks import pcie_bytes_per_second
from exporter.metrics import probes
from exporter.metrics.family import Family, Sample
from exporter.metrics.probes import summary_samples
from exporter.metrics.samples import Labels, device_labels
from exporter.simulate.gpu import SimulatedGpu
from exporter.simulate.scenarios import Fault


# What healthy hardware reaches: shares of FLOP per clock, of memory bandwidth, of the PCIe link.
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
    """Probes one GPU every interval of the scenario's clock. Not thread-safe."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu
        self._labels = device_labels(gpu.identity)
        self._next = 0.0
        self._runs: dict[tuple[str, str], int] = {}
        self._mismatches: dict[str, int] = {}
        self._measured: dict[str, float] = {}
        self._succeeded: dict[str, float] = {}
        self._gpu_seconds = 0.0
        self._tenant = 0.0
        self._clock_hertz: float | None = None

    def advance(self, at: float, scenario_seconds: float, fault: Fault) -> None:
        """Run the kernels if the interval has passed. `at` is Unix time."""
        if fault.lost or scenario_seconds < self._next:
            return
        self._next = scenario_seconds + INTERVAL_SECONDS
        self._tenant = fault.neighbour
        self._clock_hertz = max(self._gpu.clock_hertz, 0.95 * self._gpu.product.sm_clock_max_hertz)
        if self._gpu.throttled:
            self._clock_hertz = self._gpu.clock_hertz
        for kernel, healthy in self._kernels().items():
            self._gpu_seconds += _SECONDS_A_RUN
            self._run(at, kernel, healthy, fault)

    def samples(self) -> Iterator[Sample]:
        """All probe families of the GPU."""
        for kernel, share in self._measured.items():
            yield from self._measurement(kernel, share)
            labels = (*self._labels, ("kernel", kernel))
            yield Sample(probes.PROBE_BASELINE_RATIO, labels, share)
        for bound, factor in (("low", 0.6), ("high", 1.0)):
            labels = (*self._labels, ("bound", bound))
            yield Sample(probes.PROBE_TENANT_BUSY_RATIO, labels, factor * self._tenant)
        for (kernel, outcome), count in self._runs.items():
            labels = (*self._labels, ("kernel", kernel), ("outcome", outcome))
            yield Sample(probes.PROBE_RUNS_TOTAL, labels, float(count))
        for kernel, at in self._succeeded.items():
            labels = (*self._labels, ("kernel", kernel))
            yield Sample(probes.PROBE_LAST_SUCCESS_TIMESTAMP_SECONDS, labels, at)
        # A launch has no result to compare.
        checked = {kernel: 0 for kernel in self._succeeded if kernel != "launch"} | self._mismatches
        for kernel, mismatches in checked.items():
            labels = (*self._labels, ("kernel", kernel))
            yield Sample(probes.PROBE_MISMATCHES_TOTAL, labels, float(mismatches))
        yield from summary_samples(self._labels, self._measured, checked, self._succeeded)
        yield Sample(probes.PROBE_GPU_SECONDS_TOTAL, self._labels, self._gpu_seconds)
        yield Sample(probes.PROBE_WORKER_MEMORY_BYTES, self._labels, _WORKER_BYTES)
        if self._clock_hertz is not None:
            yield Sample(probes.PROBE_SM_CLOCK_HERTZ, self._labels, self._clock_hertz)

    def _kernels(self) -> dict[str, str]:
        gemms = {f"gemm_{precision}": "gemm" for precision in self._gpu.product.probe_precisions}
        return gemms | {
            "copy_device": "memory",
            "copy_host_to_device": "link",
            "copy_device_to_host": "link",
            "launch": "launch",
        }

    def _run(self, at: float, kernel: str, kind: str, fault: Fault) -> None:
        outcome = "ok"
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

    def _measurement(self, kernel: str, share: float) -> Iterator[Sample]:
        gpu, peaks = self._gpu, self._gpu.peaks
        if kernel.startswith("gemm_"):
            precision = kernel.removeprefix("gemm_")
            labels: Labels = (*self._labels, ("precision", precision))
            efficiency = _EFFICIENCY[precision] * gpu.quality * share
            yield Sample(probes.PROBE_EFFICIENCY_RATIO, labels, efficiency)
            rate = peaks.tensor_rate.get(precision) or peaks.plain_rate.get(precision)
            if rate and peaks.sm_count and self._clock_hertz:
                flops = efficiency * rate * peaks.sm_count * self._clock_hertz
                yield Sample(probes.PROBE_FLOPS, labels, flops)
            return
        if kernel == "launch":
            seconds = _LAUNCH_SECONDS / share
            yield Sample(probes.PROBE_LAUNCH_LATENCY_SECONDS, self._labels, seconds)
            return
        full = peaks.dram_bytes_per_second
        reachable = _MEMORY_SHARE * gpu.quality
        if kernel != "copy_device":
            full = pcie_bytes_per_second(gpu.product.pcie_generation, 16)
            reachable = _LINK_SHARE
        if full is not None:
            path = kernel.removeprefix("copy_")
            yield self._bandwidth(
                probes.PROBE_BANDWIDTH_BYTES_PER_SECOND, path, full * reachable * share
            )

    def _bandwidth(self, family: Family, path: str, value: float) -> Sample:
        return Sample(family, (*self._labels, ("path", path), ("peer", "")), value)
