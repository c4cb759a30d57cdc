"""What a simulated GPU is, seen through the real pynvml in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_nvml import (
    A100,
    B200,
    H100,
    H100_NO_CYCLES,
    L4,
    RTX_5090,
    T4,
    FakeNvml,
    GpuProfile,
    Load,
)
from tests.fake_nvml.build import function_names
from tests.fake_nvml.client import Client
from tests.fake_nvml.known import MEMORY_TEMPERATURE, NOT_FOUND, NOT_SUPPORTED


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


def test_boards_lack_the_same_features_as_real_ones(tmp_path: Path) -> None:
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
    """Every function of nvml.h exists; those not written by hand answer NOT_SUPPORTED."""
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
