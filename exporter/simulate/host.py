"""A simulated host: its GPUs, their probes, the engine that they serve, and its exposition."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from exporter.inference.snapshot import GpuRef, ModelSnapshot, WorkloadSnapshot, WorkloadsSnapshot
from exporter.metrics.exporter import own_samples
from exporter.metrics.family import Sample
from exporter.metrics.host import device_samples
from exporter.metrics.models import workload_samples
from exporter.metrics.render import Exposition
from exporter.metrics.rows import Part, Samples
from exporter.readings import DeviceIdentity
from exporter.simulate.gpu import Conditions, SimulatedGpu, healthy
from exporter.simulate.probes import SimulatedProbes
from exporter.simulate.products import Product
from exporter.simulate.scenarios import Fault, Scenario
from exporter.state import Parts, ReloadStatus, SampledHost, build_state


# A host that was not looked at for long catches up in this many steps, however long they are.
_CATCH_UP_TICKS = 300
_SERIES_LIMIT = 20_000
# A token costs 2 FLOP a parameter of the served model; the rest of what the tensor pipes do is wasted.
_FLOP_PER_PARAMETER = 2
_USEFUL_SHARE = 0.88


@dataclass(frozen=True, slots=True)
class Timing:
    """When the fleet began (Unix seconds), how long a tick is, how fast the scenario's clock runs."""

    began: float
    tick_seconds: float = 1.0
    pace: float = 1.0


class SimulatedHost:
    """Lives as far as it is asked to. Thread-safe."""

    def __init__(
        self,
        name: str,
        position: int,
        scenario: Scenario,
        *,
        gpus: int,
        seed: int,
        timing: Timing,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.cluster = f"sim-{scenario.name}"
        self._scenario = scenario
        self._position = position
        self._timing = timing
        self._clock = clock
        self._lock = threading.Lock()
        self._now = timing.began
        product = scenario.products[position % len(scenario.products)]
        self._product = product
        self._flop_per_token = _FLOP_PER_PARAMETER * product.model_parameters
        self._gpus = [
            SimulatedGpu(product, self._identity(product, index), f"{seed}/{name}/{index}")
            for index in range(gpus)
        ]
        self._probes = [SimulatedProbes(gpu) for gpu in self._gpus]
        self._tokens = {"prefill": 0.0, "decode": 0.0}
        self._requests = 0.0
        self._all_samples = Samples(self._live_samples)
        self.exposition = Exposition(
            self._live_parts, series_limit=lambda: _SERIES_LIMIT, state=self._live_state
        )

    def advance(self, now: float) -> None:
        """Live on to `now` (Unix seconds); time does not go back."""
        with self._lock:
            self._advance(now)

    def samples(self) -> Iterator[Sample]:
        """Everything that this host exports, as of the last advance."""
        yield from own_samples(ReloadStatus(True, self._timing.began))
        devices = tuple(gpu.state(self._now) for gpu in self._gpus)
        yield from device_samples(build_state(Parts(host=SampledHost(devices)), self._now))
        for probes in self._probes:
            yield from probes.samples()
        yield from workload_samples(self._workloads())

    def _live_samples(self, _now: float) -> list[Sample]:
        with self._lock:
            return list(self.samples())

    def _live_parts(self, now: float) -> tuple[Part]:
        return (self._all_samples.of(now),)

    def _live_state(self) -> float:
        self.advance(self._clock())
        return self._now

    def _advance(self, now: float) -> None:
        tick = max(self._timing.tick_seconds, (now - self._now) / _CATCH_UP_TICKS)
        while self._now + tick <= now:
            start, self._now = self._now, self._now + tick
            self._tick(start, self._now)

    def _tick(self, start: float, end: float) -> None:
        elapsed = (end - self._timing.began) * self._timing.pace
        load = self._scenario.load(elapsed, self._position)
        self._requests = load.requests
        for index, (gpu, probes) in enumerate(zip(self._gpus, self._probes, strict=True)):
            fault = healthy(self._fault(index, elapsed))
            gpu.tick(start, end, Conditions(load, fault, self._timing.pace))
            probes.advance(end, elapsed, fault)
        self._serve(end - start, load.prefill_share)

    def _fault(self, gpu: int, elapsed: float) -> Fault | None:
        for fault in self._scenario.faults:
            if (
                fault.host == self._position
                and fault.gpu in {None, gpu}
                and elapsed >= fault.begins
            ):
                return fault
        return None

    def _serve(self, seconds: float, prefill_share: float) -> None:
        """Turn what the tensor pipes did in the last tick into tokens."""
        delivered = sum(gpu.delivered_flops for gpu in self._gpus)
        tokens = _USEFUL_SHARE * delivered * seconds / self._flop_per_token
        self._tokens["prefill"] += prefill_share * tokens
        self._tokens["decode"] += (1 - prefill_share) * tokens

    def _workloads(self) -> WorkloadsSnapshot:
        precision = self._product.precision
        model = ModelSnapshot(
            model=self._product.model,
            precision=precision,
            prefill_tokens=self._tokens["prefill"],
            decode_tokens=self._tokens["decode"],
            prefill_flop=self._tokens["prefill"] * self._flop_per_token,
            decode_flop=self._tokens["decode"] * self._flop_per_token,
            dram_bytes=0.9
            * sum(sum(gpu.accounts.counters().dram_bytes.values()) for gpu in self._gpus),
            running_requests=self._requests,
            waiting_requests=0.0,
            parameters=self._product.model_parameters,
            active_parameters=self._product.model_parameters,
        )
        gpus = tuple(GpuRef(gpu.identity.index, gpu.identity.uuid) for gpu in self._gpus)
        workload = WorkloadSnapshot(
            name="chat",
            engine="simulated",
            up=True,
            gpus=gpus,
            models=(model,),
            last_success_timestamp_seconds=self._now,
        )
        return WorkloadsSnapshot((workload,))

    def _identity(self, product: Product, index: int) -> DeviceIdentity:
        return DeviceIdentity(
            index=str(index),
            uuid=f"GPU-SIMULATED-{self.name}-{index}",
            name=f"{product.name} (simulated)",
            architecture=product.architecture,
            compute_capability=product.compute_capability,
            pci_bus_id=f"00000000:{0x10 + index:02X}:00.0",
            driver_version="simulated",
            serial=None,
            sm_count=product.sm_count,
            sm_clock_max_hertz=product.sm_clock_max_hertz,
            memory_size_bytes=product.memory_bytes,
        )
