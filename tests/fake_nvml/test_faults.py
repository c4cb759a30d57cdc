"""Faults: failing, slow, hung and crashing calls, lost GPUs, reloaded and upgraded drivers."""

from __future__ import annotations

import signal
import time
from typing import Literal

import pytest

from tests.fake_nvml import FakeNvml, Load
from tests.fake_nvml.client import Client
from tests.fake_nvml.known import (
    DRAM_UTIL,
    DRIVER_NOT_LOADED,
    ENERGY_MJ,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    GPU_TEMPERATURE,
    INVALID_ARGUMENT,
    LIB_RM_VERSION_MISMATCH,
    LIBRARY_NOT_FOUND,
    MMA_STALL,
    NOT_SUPPORTED,
    SM_UTIL,
    UNINITIALIZED,
    UNKNOWN,
    wait_for_hang,
)


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


def test_a_slow_call_takes_as_long_as_set(fake: FakeNvml, client: Client) -> None:
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
    """As real drivers do: the caller dies, with the signal as its status."""
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


def test_a_reloaded_driver_needs_a_new_init(fake: FakeNvml, client: Client) -> None:
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
    """NVML is available from the first init to the last shutdown."""
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
    """Library and test never interpret the file differently."""
    fake.control.layout += 1
    with Client(fake) as client:
        assert client.code("pynvml.nvmlInit()") == LIBRARY_NOT_FOUND


def test_the_mps_view_answers_few_calls(fake: FakeNvml) -> None:
    """With NVML_MPS_DEVICE_ENUMERATION=1 NVML enumerates devices and does hardly anything else."""
    with Client(fake, environment={"NVML_MPS_DEVICE_ENUMERATION": "1"}) as client:
        client.ask("pynvml.nvmlInit()")
        assert client.code("pynvml.nvmlDeviceGetName(device(0))") == 0
        assert client.code("pynvml.nvmlDeviceGetPowerUsage(device(0))") == NOT_SUPPORTED
