"""A State of one GPU and what its engine serves, at any instant of a steady load."""

from dataclasses import replace
from typing import Any

from exporter.accounting.device import Counters
from exporter.advice.observe import Observation, observation_of
from exporter.device_state import DeviceState
from exporter.inference.service import Served
from exporter.inference.snapshot import GpuRef, ModelSnapshot
from exporter.readings import DeviceIdentity, FastReading, SlowReading
from exporter.state import State
from probes.records import ProbeResults, ProbesSnapshot
from tests.advice.windows import GPU, MODEL


# Each second: 0.5 s tensor, 0.2 s memory, 0.1 s idle, and a tenth of the clock lost to each of power
# and heat. So the clock is at 0.8, and kernels run in 0.7 / 0.8 of the time.
STATES = {"tensor": 0.5, "memory": 0.2, "idle": 0.1, "clock_power": 0.1, "clock_thermal": 0.1}


def state_at(seconds: float, **fast: Any) -> State:
    """The State after this many seconds of the load."""
    identity = DeviceIdentity(index="0", uuid="GPU-0", name=GPU.name)
    device = DeviceState(
        identity=identity,
        at_seconds=seconds,
        up=True,
        max_age_seconds=60.0,
        peaks=replace(GPU.peaks, board_watts=700.0),
        fast=FastReading(
            at_seconds=seconds, power_watts=400.0, memory_size_bytes=1_000_000_000, **fast
        ),
        slow=SlowReading(at_seconds=seconds, power_limit_watts=400.0),
        counters=Counters(
            state_seconds={name: share * seconds for name, share in STATES.items()},
            dram_bytes={"gpm": 0.6e9 * seconds},
        ),
    )
    probes = ProbeResults(
        device="0",
        uuid="GPU-0",
        flops={"bf16": 0.8e12},
        efficiency_ratio={},
        sm_clock_hertz=None,
        bandwidth_bytes_per_second={("device", ""): 0.9e9},
        launch_latency_seconds=None,
        baseline_ratio={},
        tenant_busy_ratio=None,
        mismatches={},
        runs={},
        skips={},
        gpu_seconds=0.0,
        last_success_seconds={},
        worker_restarts=0,
        worker_memory_bytes=None,
        worker_pid=None,
    )
    return State(
        at_seconds=seconds, devices=(device,), probes=ProbesSnapshot(True, False, (probes,))
    )


def served_at(seconds: float, **facts: Any) -> Served:
    """What the engine has served after this many seconds: 40 passes a second of ten requests each."""
    shown = ModelSnapshot(
        model="tiny",
        precision="bf16",
        prefill_tokens=200.0 * seconds,
        cached_tokens=100.0 * seconds,
        decode_tokens=402.0 * seconds,
        prefill_flop=1e9 * seconds,
        decode_flop=2e9 * seconds,
        running_requests=10.0,
        waiting_requests=6.0,
        cache_usage_ratio=0.1,
        decode_context_tokens=250.0,
    )
    served = Served(
        workload="chat",
        engine="vllm",
        shown=shown,
        gpus=(GpuRef("0", "GPU-0"),),
        gpu_count=1,
        tensor_parallel=1,
        description=MODEL,
        passes=40.0 * seconds,
        prompts=2.0 * seconds,
    )
    return replace(served, **facts)


def observed(seconds: float) -> Observation:
    """An observation after this many seconds."""
    return observation_of(state_at(seconds), [served_at(seconds)])
