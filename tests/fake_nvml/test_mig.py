"""MIG instances and their reconfiguration."""

from __future__ import annotations

import pytest

from tests.fake_nvml import H100_1G_10GB, H100_3G_40GB, FakeNvml, Load
from tests.fake_nvml.client import Client
from tests.fake_nvml.known import INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, SM_UTIL


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


def test_a_mig_gpu_answers_fewer_calls(fake: FakeNvml, client: Client) -> None:
    """Utilization, remapped rows and the core count are gone while MIG is on, as on real H100s."""
    fake.set_mig(0, [H100_3G_40GB])
    for function in ("GetUtilizationRates", "GetRemappedRows", "GetNumGpuCores"):
        assert client.code(f"pynvml.nvmlDevice{function}(device(0))") == NOT_SUPPORTED
        assert client.code(f"pynvml.nvmlDevice{function}(device(1))") == 0
    assert client.code("pynvml.nvmlDeviceGetPowerUsage(device(0))") == 0


def test_reconfigured_instances_are_new_ones(fake: FakeNvml, client: Client) -> None:
    """An old handle or sample does not work for the new instance, and waiters are notified."""
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
