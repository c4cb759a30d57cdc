"""Events, processes, memory errors and links."""

from __future__ import annotations

from pathlib import Path

from tests.fake_nvml import B200, H100, FakeNvml
from tests.fake_nvml.client import Client
from tests.fake_nvml.known import (
    ALL_LINKS,
    GPU_IS_LOST,
    NOT_SUPPORTED,
    NVLINK_STATE,
    RECOVERY_ACTION,
    STANDSTILL,
    TIMEOUT,
)


def test_an_xid_reaches_its_waiters(fake: FakeNvml, client: Client) -> None:
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


def test_blackwell_uses_its_own_link_counters(tmp_path: Path) -> None:
    """NVLink 5 answers fields 201 to 222 and no longer 161 to 163."""
    with FakeNvml([B200, H100], tmp_path) as fake, Client(fake) as client:
        client.ask("pynvml.nvmlInit()")
        codes = "[code for code, _, _ in fields(device({}), [(161, 0), (202, 0), (208, 0)])]"
        assert client.ask(codes.format(0)) == [NOT_SUPPORTED, 0, 0]
        assert client.ask(codes.format(1)) == [0, NOT_SUPPORTED, NOT_SUPPORTED]
