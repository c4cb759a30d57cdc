"""What a simulated GPU does: gauges and counters follow the schedule of loads exactly."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_nvml import H100, EventReason, FakeNvml, Load
from tests.fake_nvml.client import Client
from tests.fake_nvml.known import (
    ENERGY_MJ,
    NOT_FOUND,
    PCIE_TX_BYTES,
    POWER_VIOLATION_NS,
    STANDSTILL,
    run_known_work,
)
from tests.fake_nvml.layout import MAX_SEGMENTS


def test_gauges_follow_the_load(fake: FakeNvml, client: Client) -> None:
    """Each call answers the load of its moment."""
    fake.gpu(1).set_load(replace(Load.decode(), memory_used_bytes=3 << 30, performance_state=2))
    assert client.ask("pynvml.nvmlDeviceGetPowerUsage(device(1))") == 455_000
    assert client.ask("pynvml.nvmlDeviceGetClockInfo(device(1), 1)") == 1980
    assert client.ask("pynvml.nvmlDeviceGetTemperatureV(device(1), 0)") == 54
    assert client.ask("pynvml.nvmlDeviceGetPerformanceState(device(1))") == 2
    assert client.ask("pynvml.nvmlDeviceGetUtilizationRates(device(1)).gpu") == 97
    memory = "pynvml.nvmlDeviceGetMemoryInfo(device(1), version=pynvml.nvmlMemory_v2)"
    assert client.ask(f"(lambda m: [m.used, m.total - m.free - m.reserved])({memory})") == [
        3 << 30,
        3 << 30,
    ]
    assert client.ask("pynvml.nvmlDeviceGetPowerUsage(device(0))") == 70_000
    reasons = "pynvml.nvmlDeviceGetCurrentClocksEventReasons(device(0))"
    assert client.ask(reasons) == EventReason.GPU_IDLE


def test_energy_and_event_reasons_are_integrals_of_the_load(fake: FakeNvml, client: Client) -> None:
    """The driver's own counters count joules and nanoseconds of the same schedule."""
    fake.gpu(0).set_load(STANDSTILL)
    ids = [ENERGY_MJ, POWER_VIOLATION_NS, PCIE_TX_BYTES]
    before = client.ask(f"fields(device(0), {ids})")
    energy_before = client.ask("pynvml.nvmlDeviceGetTotalEnergyConsumption(device(0))")
    run_known_work(fake)
    after = client.ask(f"fields(device(0), {ids})")
    advance = [late[2] - early[2] for early, late in zip(before, after, strict=True)]
    assert advance == [
        pytest.approx(120_000, abs=1),
        pytest.approx(1e8, abs=2),
        pytest.approx(2e8, abs=2),
    ]
    energy = client.ask("pynvml.nvmlDeviceGetTotalEnergyConsumption(device(0))")
    assert energy - energy_before == pytest.approx(120_000, abs=1)


def test_the_truth_is_worked_out_by_the_same_schedule(fake: FakeNvml) -> None:
    """The test's side of the integrals, on the numbers of `run_known_work`."""
    gpu = fake.gpu(0)
    begin_ns = gpu.set_load(STANDSTILL)
    run_known_work(fake)
    truth = gpu.truth(begin_ns, time.monotonic_ns())
    assert truth.sm_cycles_elapsed == pytest.approx(4e8)
    assert truth.hmma_tensor_cycles == pytest.approx(2e8)
    assert truth.gpm_percent("hmma_tensor") == pytest.approx(50)
    assert truth.energy_joules == pytest.approx(120)
    assert truth.pcie_tx_bytes == pytest.approx(2e8)
    assert truth.event_reason_seconds[EventReason.SW_POWER_CAP] == pytest.approx(0.1)


def test_a_load_does_not_change_past_samples(fake: FakeNvml) -> None:
    """Values that the daemon has read must stay valid."""
    with pytest.raises(ValueError, match="past"):
        fake.gpu(0).set_load(Load.decode(), time.monotonic_ns() - 1)


def test_a_new_load_drops_what_was_scheduled_after_it(fake: FakeNvml, client: Client) -> None:
    """The last instruction wins."""
    far_ns = time.monotonic_ns() + 10**12
    fake.gpu(0).set_load(Load.prefill(), far_ns)
    fake.gpu(0).set_load(Load.decode())
    assert fake.gpu(0).truth(far_ns, far_ns + 10**9).energy_joules == pytest.approx(455)
    assert client.ask("pynvml.nvmlDeviceGetPowerUsage(device(0))") == 455_000


def test_a_schedule_may_be_longer_than_the_shared_array(fake: FakeNvml, client: Client) -> None:
    """Old segments leave the shared array; no joule is lost on the way."""
    gpu = fake.gpu(0)
    begin_ns = gpu.set_load(STANDSTILL)
    before = client.ask("pynvml.nvmlDeviceGetTotalEnergyConsumption(device(0))")
    for number in range(MAX_SEGMENTS + 500):
        gpu.set_load(Load(power_watts=100 + number % 7))
    gpu.set_load(STANDSTILL)
    after = client.ask("pynvml.nvmlDeviceGetTotalEnergyConsumption(device(0))")
    truth = gpu.truth(begin_ns, time.monotonic_ns())
    assert truth.energy_joules > 0
    assert after - before == pytest.approx(truth.energy_joules * 1000, abs=1)


def test_counters_never_fall_while_the_load_changes(fake: FakeNvml, client: Client) -> None:
    """A reader never meets a half-written load."""
    client.begin(
        "falls(lambda h=device(0): pynvml.nvmlDeviceGetTotalEnergyConsumption(h), seconds=1.0)"
    )
    end_ns = time.monotonic_ns() + 800_000_000
    while time.monotonic_ns() < end_ns:
        fake.gpu(0).set_load(Load(power_watts=700))
        fake.gpu(0).set_load(Load(power_watts=0))
    assert client.result() == 0
    assert fake.calls("nvmlDeviceGetTotalEnergyConsumption") > 100


def test_power_can_be_a_mean_over_time(tmp_path: Path) -> None:
    """As most boards average since Ampere; over 1000 s, a load that has just begun hardly shows."""
    with (
        FakeNvml([replace(H100, power_average_ns=10**12)], tmp_path) as fake,
        Client(fake) as client,
    ):
        client.ask("pynvml.nvmlInit()")
        fake.gpu(0).set_load(Load(power_watts=700))
        average, instant = client.ask("fields(device(0), [185, 186])")
        assert instant[2] == 700_000
        assert average[2] < 70_000


def test_pcie_throughput_blocks_for_its_20_milliseconds(fake: FakeNvml, client: Client) -> None:
    """The call measures, as the real one does: it takes time."""
    fake.gpu(0).set_load(Load(pcie_tx_bytes_per_second=5e6))
    took, kilobytes = client.ask(
        "(lambda t, v: (time.monotonic() - t, v))"
        "(time.monotonic(), pynvml.nvmlDeviceGetPcieThroughput(device(0), 0))"
    )
    assert took >= 0.020
    assert kilobytes == 5000


def test_the_driver_keeps_the_samples_of_the_last_seconds(fake: FakeNvml, client: Client) -> None:
    """Ten a second, and only those newer than the last one seen."""
    time.sleep(0.25)
    samples = "pynvml.nvmlDeviceGetSamples(device(0), 5, {})[1]"
    times = client.ask(f"[s.timeStamp for s in {samples.format(0)}]")
    assert [late - early for early, late in itertools.pairwise(times)] == [100_000] * 119
    assert client.code(samples.format(times[-1] + 10**9)) == NOT_FOUND
