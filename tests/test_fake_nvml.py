"""The fake driver library, seen through the real pynvml in a process of its own."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from tests.fake_nvml import (
    A100,
    B200,
    H100,
    H100_1G_10GB,
    H100_3G_40GB,
    H100_NO_CYCLES,
    L4,
    RTX_5090,
    T4,
    EventReason,
    FakeNvml,
    GpuProfile,
    Load,
)
from tests.fake_nvml.build import function_names
from tests.fake_nvml.client import Client
from tests.fake_nvml.layout import MAX_SEGMENTS


UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
LIB_RM_VERSION_MISMATCH = 18
NO_DATA = 21
UNKNOWN = 999

# GPM metric ids and field ids of nvml.h.
GRAPHICS_UTIL, SM_UTIL, HMMA_UTIL, DRAM_UTIL, FP32_UTIL = 1, 2, 7, 10, 12
PCIE_TX_PER_SEC, NVLINK_RX_PER_SEC, NVLINK_L0_RX_PER_SEC = 20, 60, 62
SM_CYCLES_ELAPSED, HMMA_CYCLES_ACTIVE, PCIE_TX = 248, 252, 255
POWER_VIOLATION_NS, MEMORY_TEMPERATURE, ENERGY_MJ, NVLINK_DATA_TX = 74, 82, 83, 138
NVLINK_STATE, PCIE_TX_BYTES, RECOVERY_ACTION, MMA_STALL, GPU_TEMPERATURE = 165, 197, 230, 297, 308
ALL_LINKS = 0xFFFFFFFF

# A GPU at rest whose clock stands still: nothing is integrated, so samples may be taken at any moment of it.
STANDSTILL = Load(sm_clock_mhz=0, power_watts=0)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeNvml]:
    """A machine with two H100s."""
    with FakeNvml([H100, H100], tmp_path) as machine:
        yield machine


@pytest.fixture
def client(fake: FakeNvml) -> Iterator[Client]:
    """A process that has initialised NVML on that machine."""
    with Client(fake) as process:
        process.ask("pynvml.nvmlInit()")
        yield process


def wait_until(moment_ns: int) -> None:
    """Sleep up to a moment of the monotonic clock."""
    while (left_ns := moment_ns - time.monotonic_ns()) >= 0:
        time.sleep(left_ns / 1e9 + 1e-4)


def wait_for_hang(fake: FakeNvml, function: str) -> None:
    """Sleep until somebody hangs in a function."""
    while not fake.hanging(function):
        time.sleep(0.005)


def run_known_work(fake: FakeNvml) -> None:
    """On GPU 0: 0.2 s at 1 GHz with a fifth of HMMA, then 0.1 s at 2 GHz with four fifths, then a standstill.

    By hand: 0.2e9 + 0.2e9 = 4e8 cycles elapsed; HMMA 0.04e9 + 0.16e9 = 2e8, half of them. Energy
    0.2 × 300 W + 0.1 × 600 W = 120 J. PCIe 0.2 × 1 GB/s = 2e8 bytes. Power cap active for 0.1 s.
    """
    gpu = fake.gpu(0)
    first = Load(
        sm=0.5, hmma_tensor=0.2, sm_clock_mhz=1000, power_watts=300, pcie_tx_bytes_per_second=1e9
    )
    second = Load(
        sm=0.9,
        hmma_tensor=0.8,
        sm_clock_mhz=2000,
        power_watts=600,
        event_reasons=EventReason.SW_POWER_CAP,
    )
    begin_ns = gpu.set_load(first)
    gpu.set_load(second, begin_ns + 200_000_000)
    end_ns = gpu.set_load(STANDSTILL, begin_ns + 300_000_000)
    wait_until(end_ns)


# ---- what a GPU is ----


def test_an_h100_reports_its_data_sheet(client: Client) -> None:
    """Static values are those of the board."""
    assert client.ask("pynvml.nvmlDeviceGetCount()") == 2
    assert client.ask("pynvml.nvmlDeviceGetName(device(0))") == "NVIDIA H100 80GB HBM3"
    assert client.ask("pynvml.nvmlDeviceGetNumGpuCores(device(0))") == 132 * 128
    assert client.ask("pynvml.nvmlDeviceGetMemoryBusWidth(device(0))") == 5120
    assert client.ask("pynvml.nvmlDeviceGetMaxClockInfo(device(0), 1)") == 1980
    assert client.ask("pynvml.nvmlDeviceGetMaxClockInfo(device(0), 2)") == 2619
    assert client.ask("pynvml.nvmlDeviceGetCudaComputeCapability(device(0))") == [9, 0]
    assert client.ask("pynvml.nvmlDeviceGetPowerManagementLimitConstraints(device(0))") == [
        200_000,
        700_000,
    ]
    assert client.ask("pynvml.nvmlDeviceGetPciInfo(device(1)).busId") == "00000000:1F:00.0"
    assert client.ask("pynvml.nvmlDeviceGetCurrPcieLinkGeneration(device(0))") == 5


def test_gpus_of_one_model_differ_in_uuid_serial_and_bus(fake: FakeNvml, client: Client) -> None:
    """Every GPU can be found by its own UUID, serial and bus id."""
    assert fake.gpu(0).uuid != fake.gpu(1).uuid
    by_uuid = f"pynvml.nvmlDeviceGetHandleByUUID({fake.gpu(1).uuid!r})"
    assert client.ask(f"pynvml.nvmlDeviceGetIndex({by_uuid})") == 1
    by_bus = "pynvml.nvmlDeviceGetHandleByPciBusId('0000:1f:00.0')"
    assert client.ask(f"pynvml.nvmlDeviceGetIndex({by_bus})") == 1
    assert client.code("pynvml.nvmlDeviceGetHandleByUUID('GPU-nobody')") == NOT_FOUND
    serials = client.ask("[pynvml.nvmlDeviceGetSerial(device(i)) for i in (0, 1)]")
    assert len(set(serials)) == 2


def test_boards_lack_what_real_ones_lack(tmp_path: Path) -> None:
    """A100 has no GPM, L4 no NVLink and no memory sensor, GeForce no ECC, T4 retires pages."""
    with FakeNvml([A100, L4, RTX_5090, T4], tmp_path) as fake, Client(fake) as client:
        client.ask("pynvml.nvmlInit()")
        support = "pynvml.nvmlGpmQueryDeviceSupport(device({})).isSupportedDevice"
        assert client.ask(support.format(0)) == 0
        assert client.code("sample('a', device(0))") == NOT_SUPPORTED
        assert client.ask(support.format(2)) == 1
        assert client.code("pynvml.nvmlDeviceGetNvLinkState(device(1), 0)") == NOT_SUPPORTED
        assert client.ask(f"fields(device(1), [{MEMORY_TEMPERATURE}])")[0][0] == NOT_SUPPORTED
        assert client.ask("pynvml.nvmlDeviceGetNumFans(device(2))") == 2
        for function in ("GetEccMode", "GetRemappedRows", "GetSerial"):
            assert client.code(f"pynvml.nvmlDevice{function}(device(2))") == NOT_SUPPORTED
        fake.set(3, retired_double_bit=2)
        assert len(client.ask("list(pynvml.nvmlDeviceGetRetiredPages(device(3), 1))")) == 2
        assert client.code("pynvml.nvmlDeviceGetRetiredPages(device(0), 1)") == NOT_SUPPORTED


def test_an_l4_reaches_its_300_gigabytes_per_second(tmp_path: Path) -> None:
    """The profiles' clocks and widths give the data sheet's bandwidth: twice the clock times the width in bytes."""
    bandwidth = {
        profile.name: 2e6 * profile.max_memory_clock_mhz * profile.memory_bus_width_bits / 8
        for profile in (L4, A100, H100, B200, T4, RTX_5090)
    }
    assert bandwidth == {
        "NVIDIA L4": pytest.approx(300e9, rel=0.01),
        "NVIDIA A100-SXM4-80GB": pytest.approx(2039e9, rel=0.01),
        "NVIDIA H100 80GB HBM3": pytest.approx(3350e9, rel=0.01),
        "NVIDIA B200": pytest.approx(7672e9, rel=0.01),
        "Tesla T4": pytest.approx(320e9, rel=0.01),
        "NVIDIA GeForce RTX 5090": pytest.approx(1792e9, rel=0.01),
    }


def test_every_declared_function_exists(fake: FakeNvml, client: Client) -> None:
    """A caller of any function in nvml.h finds it; the ones not written by hand say that they are not supported."""
    names = list(function_names(fake.library_directory))
    assert len(names) > 400
    client.ask("keep('library', __import__('ctypes').CDLL('libnvidia-ml.so.1'))")
    assert client.ask(f"[n for n in {names} if not hasattr(KEPT['library'], n)]") == []
    assert client.code("pynvml.nvmlDeviceSetPersistenceMode(device(1), 1)") == NOT_SUPPORTED
    assert fake.calls("nvmlDeviceSetPersistenceMode", gpu=1) == 1
    assert fake.calls("nvmlDeviceSet*") == 1
    assert fake.functions_called()["nvmlDeviceSetPersistenceMode"] == 1
    with pytest.raises(ValueError, match="no function nvmlDeviceGetNmae"):
        fake.calls("nvmlDeviceGetNmae")


def test_a_profile_survives_json() -> None:
    """What a recorder writes is what a test reads, and a misspelt key is refused."""
    assert GpuProfile.from_json(H100_NO_CYCLES.to_json()) == H100_NO_CYCLES
    with pytest.raises(ValueError, match="nmae"):
        GpuProfile.from_json(H100.to_json().replace('"name"', '"nmae"'))


def test_a_load_fits_any_board() -> None:
    """The examples describe an H100; an A100 has 1410 of its 1980 MHz and 400 of its 700 W."""
    load = A100.fit(Load(sm_clock_mhz=1980, power_watts=350, nvlink_rx_bytes_per_second=1))
    assert load.sm_clock_mhz == 1410
    assert load.power_watts == pytest.approx(200)
    assert load.nvlink_rx_bytes_per_second == 1
    assert L4.fit(load).nvlink_rx_bytes_per_second == 0
    assert H100.fit(Load.decode()) == Load.decode()


# ---- what it does ----


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


def test_gpm_answers_the_exact_average_of_its_window(fake: FakeNvml, client: Client) -> None:
    """Shares are of elapsed cycles, not of time: half of 4e8 cycles ran HMMA, though it was on 40 % of the time."""
    fake.gpu(0).set_load(STANDSTILL)
    client.ask("sample('a', device(0))")
    run_known_work(fake)
    client.ask("sample('b', device(0))")
    ids = [SM_CYCLES_ELAPSED, HMMA_CYCLES_ACTIVE]
    (_, hmma), (_, sm), (_, elapsed_after), (_, hmma_after) = client.ask(
        f"metrics('a', 'b', {[HMMA_UTIL, SM_UTIL, *ids]})"
    )
    assert hmma == pytest.approx(50.0, rel=1e-9)
    assert sm == pytest.approx(100 * (0.5 * 2e8 + 0.9 * 2e8) / 4e8, rel=1e-9)
    assert elapsed_after > 1e15  # raw counters count from boot, not from the first sample
    client.ask("sample('c', device(0))")
    (_, elapsed_again), (_, hmma_again) = client.ask(f"metrics('b', 'c', {ids})")
    assert (elapsed_again, hmma_again) == (elapsed_after, hmma_after)  # it stands still again


def test_raw_counters_advance_by_the_cycles_of_the_window(fake: FakeNvml, client: Client) -> None:
    """Cycle and byte counters since boot, as of the second sample."""
    fake.gpu(0).set_load(STANDSTILL)
    client.ask("sample('a', device(0)), sample('b', device(0))")
    ids = [SM_CYCLES_ELAPSED, HMMA_CYCLES_ACTIVE, PCIE_TX]
    before = client.ask(f"metrics('a', 'b', {ids})")
    run_known_work(fake)
    client.ask("sample('c', device(0))")
    after = client.ask(f"metrics('b', 'c', {ids})")
    advance = [late - early for (_, early), (_, late) in zip(before, after, strict=True)]
    assert advance == [
        pytest.approx(4e8, abs=2),
        pytest.approx(2e8, abs=2),
        pytest.approx(2e8, abs=2),
    ]


def test_raw_counters_can_be_sums_over_the_sms(tmp_path: Path) -> None:
    """Whether NVIDIA counts the mean or the sum is unknown; both exist here."""
    profiles = [replace(H100, cycles_mode=mode) for mode in ("mean", "sum")]
    with FakeNvml(profiles, tmp_path) as fake, Client(fake) as client:
        client.ask("pynvml.nvmlInit()")
        counts = []
        for index in (0, 1):
            fake.gpu(index).set_load(STANDSTILL)
            client.ask(f"sample('a{index}', device({index})), sample('b{index}', device({index}))")
            answers = client.ask(f"metrics('a{index}', 'b{index}', [{HMMA_CYCLES_ACTIVE}])")
            counts.append(answers[0][1])
        assert counts[1] / counts[0] == pytest.approx(132)


def test_older_drivers_answer_percentages_only(tmp_path: Path) -> None:
    """Unknown metric ids fail in their own entries and leave the others alone."""
    with FakeNvml([H100_NO_CYCLES], tmp_path) as fake, Client(fake) as client:
        client.ask("pynvml.nvmlInit()")
        fake.gpu(0).set_load(Load(sm=0.25, graphics=0.5))
        client.ask("sample('a', device(0)), time.sleep(0.02), sample('b', device(0))")
        answers = client.ask(
            f"metrics('a', 'b', [{SM_CYCLES_ELAPSED}, {SM_UTIL}, 476, {GRAPHICS_UTIL}])"
        )
        assert [code for code, _ in answers] == [NOT_SUPPORTED, 0, NOT_SUPPORTED, 0]
        assert answers[1][1] == pytest.approx(25)
        assert answers[3][1] == pytest.approx(50)


def test_traffic_is_in_mebibytes_per_second(fake: FakeNvml, client: Client) -> None:
    """GPM rates are MiB/s, NVLink ones for all links or for each that is up."""
    mib = 2**20
    fake.gpu(0).set_load(
        Load(pcie_tx_bytes_per_second=3 * mib, nvlink_rx_bytes_per_second=34 * mib)
    )
    fake.set_nvlink_state(0, 17, up=False)
    client.ask("sample('a', device(0)), time.sleep(0.02), sample('b', device(0))")
    last_link = 62 + 2 * 17
    ids = [PCIE_TX_PER_SEC, NVLINK_RX_PER_SEC, NVLINK_L0_RX_PER_SEC, last_link, last_link + 116]
    answers = client.ask(f"metrics('a', 'b', {ids})")
    assert [value for _, value in answers[:4]] == pytest.approx([3, 34, 2, 0])
    assert answers[4][0] == NOT_SUPPORTED  # link 18: an H100 has 18, from 0 on


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


def test_a_load_cannot_change_the_past(fake: FakeNvml) -> None:
    """What the daemon has read must stay true."""
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
    """The call measures, as the real one does: nobody gets it for free."""
    fake.gpu(0).set_load(Load(pcie_tx_bytes_per_second=5e6))
    took, kilobytes = client.ask(
        "(lambda t, v: (time.monotonic() - t, v))"
        "(time.monotonic(), pynvml.nvmlDeviceGetPcieThroughput(device(0), 0))"
    )
    assert took >= 0.020
    assert kilobytes == 5000


def test_the_driver_keeps_samples_of_the_last_seconds(fake: FakeNvml, client: Client) -> None:
    """Ten a second, and only those newer than the last one seen."""
    time.sleep(0.25)
    samples = "pynvml.nvmlDeviceGetSamples(device(0), 5, {})[1]"
    times = client.ask(f"[s.timeStamp for s in {samples.format(0)}]")
    assert [late - early for early, late in itertools.pairwise(times)] == [100_000] * 119
    assert client.code(samples.format(times[-1] + 10**9)) == NOT_FOUND


# ---- what GPM gets wrong in the field ----


@pytest.mark.parametrize(
    ("member", "is_expected"),
    [
        ("gpm_zero", lambda value: value == 0.0),
        ("gpm_blank", lambda value: value == 140737488355328.0),
        ("gpm_nan", math.isnan),
    ],
)
def test_gpm_can_answer_nonsense(
    fake: FakeNvml, client: Client, member: str, is_expected: Callable[[float], bool]
) -> None:
    """Zeros, DCGM's blank value and NaN come with a return code of success."""
    fake.set(0, **{member: 1})
    client.ask("sample('a', device(0)), time.sleep(0.01), sample('b', device(0))")
    ((code, value),) = client.ask(f"metrics('a', 'b', [{SM_UTIL}])")
    assert code == 0
    assert is_expected(value)


def test_a_multi_metric_call_can_collapse(fake: FakeNvml, client: Client) -> None:
    """Every entry then answers the first one's value; single-metric calls stay right."""
    fake.gpu(0).set_load(Load(sm=0.5, fp32=0.1))
    fake.set(0, gpm_collapse=1)
    client.ask("sample('a', device(0)), time.sleep(0.01), sample('b', device(0))")
    together = [value for _, value in client.ask(f"metrics('a', 'b', [{SM_UTIL}, {FP32_UTIL}])")]
    assert together == pytest.approx([50, 50])
    ((_, alone),) = client.ask(f"metrics('a', 'b', [{FP32_UTIL}])")
    assert alone == pytest.approx(10)


def test_sample_pairs_can_be_too_close(fake: FakeNvml, client: Client) -> None:
    """With a minimum interval set, a shorter window answers NO_DATA."""
    fake.set(0, gpm_minimum_interval_ns=10**12)
    client.ask("sample('a', device(0)), sample('b', device(0))")
    assert client.code(f"metrics('a', 'b', [{SM_UTIL}])") == NO_DATA


def test_parallel_gpm_calls_are_noticed(fake: FakeNvml, client: Client) -> None:
    """Two threads in GPM at once count as an overlap; one after the other does not."""
    fake.set(0, gpm_call_ns=50_000_000)
    fake.set(1, gpm_call_ns=50_000_000)
    client.ask("sample('0', device(0)), sample('1', device(1))")
    assert fake.gpm_overlaps == 0
    client.ask("in_threads(2, lambda index: sample(str(index), device(index)))")
    assert fake.gpm_overlaps > 0


def test_misused_samples_are_noticed(fake: FakeNvml, client: Client) -> None:
    """Freed, never taken, swapped and mixed samples are refused and counted; leaks show."""
    client.ask("sample('a', device(0)), time.sleep(0.01), sample('b', device(0))")
    client.ask("sample('other', device(1)), keep('empty', pynvml.nvmlGpmSampleAlloc())")
    for first, second in [("b", "a"), ("a", "other"), ("a", "empty")]:
        assert client.code(f"metrics('{first}', '{second}', [{SM_UTIL}])") == INVALID_ARGUMENT
    alive = fake.gpm_samples_alive
    client.ask("pynvml.nvmlGpmSampleFree(KEPT['a'])")
    assert fake.gpm_samples_alive == alive - 1
    assert client.code(f"metrics('a', 'b', [{SM_UTIL}])") == INVALID_ARGUMENT
    assert client.code("pynvml.nvmlGpmSampleFree(KEPT['a'])") == INVALID_ARGUMENT
    assert fake.gpm_misuses == 5


def test_no_sample_outlives_a_shutdown(fake: FakeNvml, client: Client) -> None:
    """A sample from before the last nvmlInit is refused."""
    client.ask("sample('a', device(0)), pynvml.nvmlShutdown(), pynvml.nvmlInit()")
    assert client.code("sample('a', device(0))") == INVALID_ARGUMENT
    assert fake.gpm_misuses == 1


# ---- faults ----


def test_a_function_fails_for_one_gpu_a_number_of_times(fake: FakeNvml, client: Client) -> None:
    """The fault hits its GPU, wears off, and leaves the calls counted."""
    fake.fail("nvmlDeviceGetPowerUsage", UNKNOWN, gpu=1, count=2)
    codes = [client.code("pynvml.nvmlDeviceGetPowerUsage(device(1))") for _ in range(3)]
    assert codes == [UNKNOWN, UNKNOWN, 0]
    assert client.code("pynvml.nvmlDeviceGetPowerUsage(device(0))") == 0
    assert fake.calls("nvmlDeviceGetPowerUsage", gpu=1) == 3
    assert fake.calls("nvmlDeviceGetPowerUsage") == 4


def test_a_function_fails_until_cleared(fake: FakeNvml, client: Client) -> None:
    """Without a count the fault stays; FUNCTION_NOT_FOUND looks like an old driver to pynvml."""
    fake.fail("nvmlDeviceGetTemperatureV", FUNCTION_NOT_FOUND)
    codes = [client.code("pynvml.nvmlDeviceGetTemperatureV(device(0), 0)") for _ in range(3)]
    assert codes == [FUNCTION_NOT_FOUND] * 3
    fake.clear("nvmlDeviceGetTemperatureV")
    assert client.code("pynvml.nvmlDeviceGetTemperatureV(device(0), 0)") == 0


def test_field_values_fail_one_by_one(fake: FakeNvml, client: Client) -> None:
    """Each entry of a batch has its own return code and value type."""
    fake.gpu(0).set_load(Load(temperature_c=61.5, mma_stall=0.4))
    fake.fail_field(ENERGY_MJ, GPU_IS_LOST, gpu=0)
    ids = [GPU_TEMPERATURE, ENERGY_MJ, MMA_STALL, 9999]
    answers = client.ask(f"fields(device(0), {ids})")
    assert answers[0] == [0, 0, 61.5]  # a double
    assert answers[1][0] == GPU_IS_LOST
    assert answers[2] == [0, 1, 40]  # an unsigned int
    assert answers[3][0] == INVALID_ARGUMENT
    assert client.ask(f"fields(device(1), [{ENERGY_MJ}])")[0][0] == 0
    fake.set_field(0, 9, 77)
    assert client.ask("fields(device(0), [9])") == [[0, 3, 77]]


def test_gpm_metrics_fail_one_by_one(fake: FakeNvml, client: Client) -> None:
    """A metric's fault stays in its entry."""
    fake.fail_gpm_metric(DRAM_UTIL, UNKNOWN)
    client.ask("sample('a', device(0)), time.sleep(0.01), sample('b', device(0))")
    answers = client.ask(f"metrics('a', 'b', [{DRAM_UTIL}, {SM_UTIL}])")
    assert [code for code, _ in answers] == [UNKNOWN, 0]


def test_a_hung_call_returns_when_released(fake: FakeNvml, client: Client) -> None:
    """The call blocks, the other GPU does not, and the release lets it finish with its value."""
    fake.hang("nvmlDeviceGetPowerUsage", gpu=0)
    client.begin("pynvml.nvmlDeviceGetPowerUsage(device(0))")
    wait_for_hang(fake, "nvmlDeviceGetPowerUsage")
    with Client(fake) as other:
        other.ask("pynvml.nvmlInit()")
        assert other.ask("pynvml.nvmlDeviceGetPowerUsage(device(1))") == 70_000
    assert fake.hanging(gpu=0) == 1
    fake.release()
    assert client.result() == 70_000
    assert fake.hanging(gpu=0) == 0


def test_a_slow_call_takes_its_time(fake: FakeNvml, client: Client) -> None:
    """A delay is added to every call."""
    fake.delay("nvmlDeviceGetName", 0.15, gpu=0)
    began = time.monotonic()
    client.ask("pynvml.nvmlDeviceGetName(device(0))")
    assert time.monotonic() - began >= 0.15


@pytest.mark.parametrize(
    ("kind", "number"), [("segfault", signal.SIGSEGV), ("abort", signal.SIGABRT)]
)
def test_a_call_can_kill_its_process(
    fake: FakeNvml, client: Client, kind: Literal["segfault", "abort"], number: int
) -> None:
    """As drivers do: the caller is gone, with the signal as its status."""
    fake.crash("nvmlGpmSampleGet", kind, gpu=1)
    client.ask("sample('a', device(0))")
    with pytest.raises(EOFError):
        client.ask("sample('b', device(1))")
    assert client.process.returncode == -number


def test_a_lost_gpu_comes_back(fake: FakeNvml, client: Client) -> None:
    """Every call on it fails, its handle too; the other GPU and the count stay."""
    client.ask("keep('gpu', device(0))")
    fake.lose(0)
    assert client.code("pynvml.nvmlDeviceGetPowerUsage(KEPT['gpu'])") == GPU_IS_LOST
    assert client.code("device(0)") == GPU_IS_LOST
    assert client.ask("pynvml.nvmlDeviceGetCount()") == 2
    assert client.code("pynvml.nvmlDeviceGetPowerUsage(device(1))") == 0
    fake.restore(0)
    assert client.code("pynvml.nvmlDeviceGetPowerUsage(KEPT['gpu'])") == 0


def test_a_reloaded_driver_wants_a_new_init(fake: FakeNvml, client: Client) -> None:
    """Old handles are refused afterwards and counted, and energy counts from zero again."""
    client.ask("keep('gpu', device(0))")
    fake.unload_driver()
    assert client.code("pynvml.nvmlDeviceGetPowerUsage(KEPT['gpu'])") == UNINITIALIZED
    assert client.code("pynvml.nvmlInit()") == DRIVER_NOT_LOADED
    fake.load_driver()
    assert client.code("pynvml.nvmlDeviceGetCount()") == UNINITIALIZED
    client.ask("pynvml.nvmlInit()")
    assert fake.stale_handles == 0
    assert client.code("pynvml.nvmlDeviceGetPowerUsage(KEPT['gpu'])") == INVALID_ARGUMENT
    assert fake.stale_handles == 1
    energy_mj = client.ask("pynvml.nvmlDeviceGetTotalEnergyConsumption(device(0))")
    assert energy_mj < 120 * 70_000  # less than two minutes at 70 W; it was over 512 MJ


def test_init_and_shutdown_are_counted(fake: FakeNvml) -> None:
    """NVML is there from the first init to the last shutdown."""
    with Client(fake) as client:
        assert client.code("pynvml.nvmlDeviceGetCount()") == UNINITIALIZED
        client.ask("pynvml.nvmlInit(), pynvml.nvmlInit(), pynvml.nvmlShutdown()")
        assert client.code("pynvml.nvmlDeviceGetCount()") == 0
        client.ask("pynvml.nvmlShutdown()")
        assert client.code("pynvml.nvmlDeviceGetCount()") == UNINITIALIZED
        assert client.code("pynvml.nvmlShutdown()") == UNINITIALIZED


def test_an_upgraded_driver_does_not_fit_its_library(fake: FakeNvml, client: Client) -> None:
    """Every call fails until the process is a new one."""
    fake.mismatch_driver()
    for call in ("nvmlInit()", "nvmlDeviceGetCount()", "nvmlSystemGetDriverVersion()"):
        assert client.code(f"pynvml.{call}") == LIB_RM_VERSION_MISMATCH


def test_a_removed_gpu_moves_the_others_up(fake: FakeNvml, client: Client) -> None:
    """The index is not the GPU's identity."""
    client.ask("keep('gpu', device(0))")
    fake.remove_gpu(0)
    assert client.ask("pynvml.nvmlDeviceGetCount()") == 1
    assert client.ask("pynvml.nvmlDeviceGetUUID(device(0))") == fake.gpu(1).uuid
    assert client.code("device(1)") == INVALID_ARGUMENT
    assert client.code("pynvml.nvmlDeviceGetPowerUsage(KEPT['gpu'])") == GPU_IS_LOST
    fake.add_gpu(0)
    assert client.ask("pynvml.nvmlDeviceGetUUID(device(1))") == fake.gpu(0).uuid


def test_a_control_file_of_another_build_is_refused(fake: FakeNvml) -> None:
    """Library and test never read one file in two ways."""
    fake.control.layout += 1
    with Client(fake) as client:
        assert client.code("pynvml.nvmlInit()") == LIBRARY_NOT_FOUND


def test_the_mps_view_answers_little(fake: FakeNvml) -> None:
    """With NVML_MPS_DEVICE_ENUMERATION=1 NVML enumerates, and hardly anything else."""
    with Client(fake, environment={"NVML_MPS_DEVICE_ENUMERATION": "1"}) as client:
        client.ask("pynvml.nvmlInit()")
        assert client.code("pynvml.nvmlDeviceGetName(device(0))") == 0
        assert client.code("pynvml.nvmlDeviceGetPowerUsage(device(0))") == NOT_SUPPORTED


# ---- health, links, processes, events ----


def test_an_xid_reaches_those_who_wait_for_it(fake: FakeNvml, client: Client) -> None:
    """Only from registration on, only for the registered GPU and type."""
    fake.xid(1, 13)
    client.ask("watch(1, pynvml.nvmlEventTypeXidCriticalError)")
    assert client.code("next_event(0)") == TIMEOUT
    fake.xid(0, 31)
    fake.event(1, 0x1)
    fake.xid(1, 79)
    assert client.ask("next_event(5000)") == [1, 0x8, 79]
    client.begin("next_event(60_000)")
    fake.xid(1, 48)
    assert client.result() == [1, 0x8, 48]


def test_waiting_ends_when_a_watched_gpu_is_lost(fake: FakeNvml, client: Client) -> None:
    """The waiter learns of it at once, not at its timeout."""
    client.ask("watch(0, pynvml.nvmlEventTypeXidCriticalError)")
    fake.lose(1)
    assert client.code("next_event(20)") == TIMEOUT
    fake.lose(0)
    assert client.code("next_event(60_000)") == GPU_IS_LOST


def test_unknown_event_types_register_nothing(client: Client) -> None:
    """One unsupported bit refuses the whole call."""
    assert client.code("watch(0, pynvml.nvmlEventTypeXidCriticalError | 0x200)") == NOT_SUPPORTED


def test_processes_are_listed_by_kind(fake: FakeNvml, client: Client) -> None:
    """Their memory and names come as set."""
    fake.set_processes(
        0, [(101, 5 << 30, "compute"), (102, 1 << 20, "graphics")], names={101: "vllm"}
    )
    listed = "[(p.pid, p.usedGpuMemory) for p in pynvml.nvmlDeviceGet{}RunningProcesses(device(0))]"
    assert client.ask(listed.format("Compute")) == [[101, 5 << 30]]
    assert client.ask(listed.format("Graphics")) == [[102, 1 << 20]]
    assert client.ask("pynvml.nvmlSystemGetProcessName(101)") == "vllm"
    assert client.ask(listed.format("Compute").replace("device(0)", "device(1)")) == []


def test_memory_health_is_what_was_set(fake: FakeNvml, client: Client) -> None:
    """ECC counts, remapped rows and the recovery action."""
    fake.set_ecc(0, corrected=7, uncorrected=2, volatile_corrected=1)
    fake.set_remapped(0, correctable=3, uncorrectable=1, pending=True)
    fake.set(0, recovery_action=2, pcie_replays=11)
    ecc = "pynvml.nvmlDeviceGetTotalEccErrors(device(0), {}, {})"
    assert [client.ask(ecc.format(kind, counter)) for kind in (0, 1) for counter in (0, 1)] == [
        1, 7, 0, 2,
    ]  # fmt: skip
    assert client.ask("pynvml.nvmlDeviceGetRemappedRows(device(0))") == [3, 1, 1, 0]
    assert client.ask(f"fields(device(0), [{RECOVERY_ACTION}])") == [[0, 1, 2]]
    assert client.ask("pynvml.nvmlDeviceGetPcieReplayCounter(device(0))") == 11
    fake.set(0, ecc_mode=0)
    assert client.code(ecc.format(0, 0)) == NOT_SUPPORTED


def test_links_go_down_and_count_errors(fake: FakeNvml, client: Client) -> None:
    """Link 3 is down, link 4 has replays; traffic spreads over the 17 that are up."""
    fake.set_nvlink_state(0, 3, up=False)
    fake.set_nvlink_errors(0, 4, replay_errors=9)
    fake.gpu(0).set_load(STANDSTILL)
    assert client.ask("pynvml.nvmlDeviceGetNvLinkState(device(0), 3)") == 0
    assert client.ask(f"fields(device(0), [({NVLINK_STATE}, 3), ({NVLINK_STATE}, 4)])") == [
        [0, 1, 0],
        [0, 1, 1],
    ]
    assert client.ask("pynvml.nvmlDeviceGetNvLinkErrorCounter(device(0), 4, 0)") == 9
    assert client.ask(f"fields(device(0), [(161, 4), (161, {ALL_LINKS})])") == [[0, 3, 9]] * 2
    assert client.ask("fields(device(0), [(161, 18)])")[0][0] == NOT_SUPPORTED


def test_blackwell_counts_its_links_anew(tmp_path: Path) -> None:
    """NVLink 5 answers fields 201 to 222 and no longer 161 to 163."""
    with FakeNvml([B200, H100], tmp_path) as fake, Client(fake) as client:
        client.ask("pynvml.nvmlInit()")
        codes = "[code for code, _, _ in fields(device({}), [(161, 0), (202, 0), (208, 0)])]"
        assert client.ask(codes.format(0)) == [NOT_SUPPORTED, 0, 0]
        assert client.ask(codes.format(1)) == [0, NOT_SUPPORTED, NOT_SUPPORTED]


# ---- MIG ----


def test_mig_instances_have_their_own_load(fake: FakeNvml, client: Client) -> None:
    """Each GPU instance has a handle, its SMs, and its own GPM."""
    fake.set_mig(0, [H100_3G_40GB, H100_1G_10GB])
    fake.gpu(0).instance_loads(7).set_load(Load(sm=0.75))
    fake.gpu(0).instance_loads(1).set_load(Load(sm=0.125))
    assert client.ask("pynvml.nvmlDeviceGetMigMode(device(0))") == [1, 1]
    client.ask(
        "[keep(i, pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device(0), i)) for i in (0, 1)]"
    )
    assert client.code("pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device(0), 2)") == NOT_FOUND
    assert client.ask("[pynvml.nvmlDeviceGetGpuInstanceId(KEPT[i]) for i in (0, 1)]") == [1, 7]
    sms = "[pynvml.nvmlDeviceGetAttributes_v2(KEPT[i]).multiprocessorCount for i in (0, 1)]"
    assert client.ask(sms) == [60, 16]
    assert client.ask("pynvml.nvmlDeviceGetUUID(KEPT[1])").startswith("MIG-")
    client.ask("sample('a', KEPT[0]), time.sleep(0.01), sample('b', KEPT[0])")
    assert client.ask(f"metrics('a', 'b', [{SM_UTIL}])")[0][1] == pytest.approx(12.5)
    by_id = "pynvml.nvmlGpmMigSampleGet(device(0), 7, KEPT.setdefault('{0}', pynvml.nvmlGpmSampleAlloc()))"
    client.ask(f"({by_id.format('c')}, time.sleep(0.01), {by_id.format('d')}, None)[-1]")
    assert client.ask(f"metrics('c', 'd', [{SM_UTIL}])")[0][1] == pytest.approx(75)


def test_a_mig_gpu_answers_less(fake: FakeNvml, client: Client) -> None:
    """Utilization, remapped rows and the core count are gone while MIG is on, as on real H100s."""
    fake.set_mig(0, [H100_3G_40GB])
    for function in ("GetUtilizationRates", "GetRemappedRows", "GetNumGpuCores"):
        assert client.code(f"pynvml.nvmlDevice{function}(device(0))") == NOT_SUPPORTED
        assert client.code(f"pynvml.nvmlDevice{function}(device(1))") == 0
    assert client.code("pynvml.nvmlDeviceGetPowerUsage(device(0))") == 0


def test_reconfigured_instances_are_new_ones(fake: FakeNvml, client: Client) -> None:
    """A handle or a sample from before does not work for what has taken its place, and waiters hear of it."""
    fake.set(0, supported_event_types=0x108)
    client.ask("watch(0, 0x100)")
    fake.set_mig(0, [H100_3G_40GB])
    assert client.ask("next_event(5000)")[1] == 0x100
    client.ask("keep('old', pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device(0), 0))")
    client.ask("sample('a', KEPT['old'])")
    fake.set_mig(0, [H100_1G_10GB])
    assert client.code("sample('b', KEPT['old'])") == NOT_FOUND
    client.ask("sample('b', pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device(0), 0))")
    assert client.code(f"metrics('a', 'b', [{SM_UTIL}])") == INVALID_ARGUMENT
    fake.set_mig(0, None)
    assert client.code("pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device(0), 0)") == NOT_FOUND
