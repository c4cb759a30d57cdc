"""The State: what it contains for a device in every condition, and when it is built."""

from dataclasses import replace

import pytest

from exporter.accounting.peaks import Peaks
from exporter.device_state import UNKNOWN, DeviceState, SampledHost, SourceHealth
from exporter.readings import DeviceIdentity, FastReading, SlowReading
from exporter.state import LiveState, Parts, build_state
from probes.records import ProbeResults, ProbesSnapshot


# 2 TB/s, of which the copy probe reached 1.8.
PEAKS = Peaks(origin="datasheet", model="GPU", dram_bytes_per_second=2e12)


def gpu(index: str = "0", *, mig: str | None = None, at: float = 100.0) -> DeviceState:
    """A GPU (or instance) whose readings may be shown for 4 s."""
    uuid = f"GPU-{index}" if mig is None else f"MIG-{index}-{mig}"
    return DeviceState(
        identity=DeviceIdentity(index=index, uuid=uuid, name="GPU", mig=mig),
        at_seconds=at,
        up=True,
        max_age_seconds=4.0,
        peaks=PEAKS,
        precision="bf16",
        fast=FastReading(at, power_watts=300.0),
        slow=SlowReading(at),
        sources={"nvml": SourceHealth(True, 1.0, {}, ("power",))},
        ticks_missed=2,
    )


def results(uuid: str = "GPU-0") -> ProbeResults:
    """Every result that a probe can have."""
    return ProbeResults(
        device="0",
        uuid=uuid,
        flops={"bf16": 8e14},
        efficiency_ratio={"bf16": 0.84},
        sm_clock_hertz=1.7e9,
        bandwidth_bytes_per_second={("device", ""): 1.8e12},
        launch_latency_seconds=4e-6,
        baseline_ratio={"gemm_bf16": 0.99},
        tenant_busy_ratio=(0.3, 0.5),
        mismatches={"gemm_bf16": 1},
        runs={("gemm_bf16", "ok"): 3},
        skips={"budget": 2},
        gpu_seconds=0.5,
        last_success_seconds={"gemm_bf16": 1.7e9},
        worker_restarts=1,
        worker_memory_bytes=None,
        worker_pid=None,
    )


def parts(*devices: DeviceState, hung: frozenset[tuple[str, str]] = frozenset()) -> Parts:
    """These devices, with probe results of GPU 0."""
    return Parts(
        host=SampledHost(devices, hung),
        probes=ProbesSnapshot(running=True, paused=False, devices=(results(),)),
    )


LOST = DeviceState(gpu().identity, 101.0, up=False, max_age_seconds=4.0)
NOT_FRESH = {
    "lost": (parts(LOST), 101.0),
    "hung": (parts(gpu(), hung=frozenset({("0", "GPU-0")})), 101.0),
    "stale": (parts(gpu()), 104.1),
}


def test_a_fresh_device_has_its_readings_and_its_probe_values() -> None:
    """Four seconds after the tick they may still be shown."""
    state = build_state(parts(gpu()), 104.0)
    device = state.fresh("0")

    assert device == gpu()
    assert state.probes.devices == (results(),)
    assert state.reachable_bandwidth == {"GPU-0": pytest.approx(0.9)}


@pytest.mark.parametrize("why", NOT_FRESH)
def test_a_device_that_is_not_fresh_has_neither(why: str) -> None:
    """Lost, hung or stale: identity and health remain, and the probes' counters."""
    state = build_state(*NOT_FRESH[why])
    device = state.find("GPU-0")

    assert device is not None
    assert (device.up, device.absent) == (False, why)
    assert (device.fast, device.slow, device.last, device.peaks, device.precision) == (None,) * 5
    assert device.identity == gpu().identity
    assert not any(health.up or health.missing_fields for health in device.sources.values())
    assert state.fresh("GPU-0") is None
    (probed,) = state.probes.devices
    assert (probed.flops, probed.efficiency_ratio, probed.baseline_ratio) == ({}, {}, {})
    assert (probed.bandwidth_bytes_per_second, probed.launch_latency_seconds) == ({}, None)
    assert (probed.sm_clock_hertz, probed.tenant_busy_ratio) == (None, None)
    assert (probed.mismatches, probed.runs) == (results().mismatches, results().runs)
    assert probed.last_success_seconds == {"gemm_bf16": 1.7e9}  # so its age is known
    assert state.reachable_bandwidth == {}


def test_probe_values_of_a_device_that_is_gone_are_not_shown() -> None:
    """It was replaced: it is no longer sampled."""
    (probed,) = build_state(parts(gpu("1")), 101.0).probes.devices

    assert probed.flops == {}
    assert probed.gpu_seconds == 0.5


def test_a_device_that_has_not_answered_yet_is_waited_for() -> None:
    """No UUID, no source: nothing has failed so far, and it cannot be looked up."""
    nameless = DeviceState(
        DeviceIdentity(index="0", uuid=UNKNOWN, name=UNKNOWN), 100.0, up=False, max_age_seconds=0.0
    )
    state = build_state(parts(nameless), 100.0)

    assert state.devices[0].absent == "waiting"
    assert state.find("0") is None


def test_devices_are_found_by_index_uuid_and_instance() -> None:
    """An index means the whole GPU, unless the GPU instance is given."""
    cut = replace(gpu("1"), instances=(gpu("1", mig="3"), gpu("1", mig="5")))
    state = build_state(parts(gpu("0"), cut), 101.0)

    assert [device.identity.uuid for device in state.devices] == [
        "GPU-0",
        "GPU-1",
        "MIG-1-3",
        "MIG-1-5",
    ]
    for key, mig, uuid in (
        (1, None, "GPU-1"),
        ("1", "5", "MIG-1-5"),
        ("GPU-1", "3", "MIG-1-3"),
        ("MIG-1-3", None, "MIG-1-3"),
        ("MIG-1-3", "3", "MIG-1-3"),
    ):
        found = state.find(key, mig)
        assert found is not None
        assert found.identity.uuid == uuid
    assert state.find("1", "9") is None
    assert state.find(7) is None


def test_an_instance_is_hung_when_its_gpu_is() -> None:
    """The samplers name both."""
    cut = replace(gpu("1"), instances=(gpu("1", mig="3"),))
    hung = frozenset({("1", "GPU-1"), ("1", "MIG-1-3")})
    state = build_state(parts(cut, hung=hung), 101.0)

    assert [device.absent for device in state.devices] == ["hung", "hung"]


class TestLive:
    def test_the_state_is_built_once_a_change(self) -> None:
        """The same object until something is published."""
        live, world = self.live()
        first = live.now()
        world["now"] = 100.5

        assert live.now() is first
        assert live.latest is first
        world["mark"] = 2
        assert live.now() is not first
        assert live.now() is live.latest

    def test_readings_become_stale_without_a_change(self) -> None:
        """Just after 104 s, four after the tick; parts outside the sampling refresh every second."""
        live, world = self.live()
        for now in (100.0, 101.0, 102.0, 103.5, 104.0):
            world["now"] = now
            assert live.now().devices[0].up
        world["now"] = 104.001

        assert live.now().devices[0].absent == "stale"

    def live(self) -> tuple[LiveState, dict[str, float]]:
        world = {"now": 100.0, "mark": 1.0}
        live = LiveState(
            lambda _now: parts(gpu()), lambda _now: world["mark"], clock=lambda: world["now"]
        )
        return live, world
