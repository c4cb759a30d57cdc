"""GPUs that come, leave, and come back as others while the daemon runs."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.fake_nvml import A100, H100, FakeNvml, Load


CONFIG = """
sampling: {interval: 250ms, slow_interval: 1s, deadline: 1s}
sources: {cpu: "off", dcgm: "off"}
probes: {enabled: false}
"""
UP, SECONDS, FLOP = "flopwatch_gpu_up", "flopwatch_gpu_seconds_total", "flopwatch_flop_total"
XIDS = "flopwatch_xid_errors_total"
HUNG = "flopwatch_source_hung"
ERRORS = "flopwatch_source_errors_total"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeNvml]:
    """Three GPUs, of which only the first is plugged in."""
    with FakeNvml([H100, H100, A100], tmp_path) as machine:
        for gpu in machine.gpus:
            gpu.set_load(gpu.profile.fit(Load.decode()))
        machine.remove_gpu(1)
        machine.remove_gpu(2)
        yield machine


def run(fake: FakeNvml, tmp_path: Path) -> DaemonProcess:
    return DaemonProcess(tmp_path, config=CONFIG, environment=fake.env)


def index_of(scrape: Scrape, uuid: str) -> str:
    """The label `gpu` under which a GPU is up."""
    (labels,) = [found for found, up in scrape.series(UP, uuid=uuid).items() if up]
    return dict(labels)["gpu"]


def is_up(scrape: Scrape, uuid: str) -> bool:
    return scrape.total(UP, uuid=uuid) == 1


def test_a_gpu_that_is_plugged_in_is_sampled(fake: FakeNvml, tmp_path: Path) -> None:
    """It appears by itself, and the other GPU ticks on: no tick missed, no window lost."""
    first, second = fake.gpu(0).uuid, fake.gpu(1).uuid
    with run(fake, tmp_path) as daemon:
        before = daemon.wait_until(lambda s: s.total(FLOP, uuid=first) > 0)
        fake.add_gpu(1)
        after = daemon.wait_until(lambda s: is_up(s, second) and s.total(FLOP, uuid=second) > 0)
        log = daemon.log

    assert index_of(after, second) == "1"
    assert after.value("flopwatch_ticks_missed_total", uuid=first) == before.value(
        "flopwatch_ticks_missed_total", uuid=first
    )
    assert after.total(FLOP, uuid=first) > before.total(FLOP, uuid=first)
    assert log.count("event=device_opened") == 2
    assert fake.stale_handles == 0


def test_a_gpu_in_front_moves_the_others(fake: FakeNvml, tmp_path: Path) -> None:
    """NVML numbers GPUs in bus order: the known GPU keeps its counters under its new index."""
    first, second = fake.gpu(0).uuid, fake.gpu(1).uuid
    with run(fake, tmp_path) as daemon:
        before = daemon.wait_until(lambda s: s.total(SECONDS, uuid=first) >= 2)
        fake.add_gpu(1, index=0)
        after = daemon.wait_until(
            lambda s: is_up(s, second) and s.has(SECONDS, uuid=first, gpu="1"), seconds=60
        )

    assert index_of(after, second) == "0"
    assert index_of(after, first) == "1"
    assert after.total(SECONDS, uuid=first) >= before.total(SECONDS, uuid=first)


def test_a_replaced_gpu_is_another_one(fake: FakeNvml, tmp_path: Path) -> None:
    """The same place but another UUID: it gets new counters, and the old one stays down."""
    first, replacement = fake.gpu(0).uuid, fake.gpu(2).uuid
    with run(fake, tmp_path) as daemon:
        before = daemon.wait_until(lambda s: s.total(SECONDS, uuid=first) >= 3)
        fake.remove_gpu(0)
        fake.add_gpu(2)
        after = daemon.wait_until(lambda s: is_up(s, replacement) and s.has(SECONDS), seconds=60)

    assert index_of(after, replacement) == "0"
    assert after.value(UP, uuid=first) == 0
    assert not after.has(SECONDS, uuid=first)
    assert after.total(SECONDS, uuid=replacement) < before.total(SECONDS, uuid=first)


def test_a_replaced_gpu_is_never_counted_beside_its_replacement(
    fake: FakeNvml, tmp_path: Path
) -> None:
    """A GPU in another's place on the bus: it comes when the other goes, and no scrape shows both.

    One lost without a successor is still reported.
    """
    first, second, replacement = (gpu.uuid for gpu in fake.gpus)
    fake.set(2, pci_bus=fake.gpu(0).shared.pci_bus)
    fake.add_gpu(1)
    shown: list[int] = []

    def swapped(scrape: Scrape) -> bool:
        shown.append(len(scrape.series(UP)))
        return is_up(scrape, replacement)

    with run(fake, tmp_path) as daemon:
        daemon.wait_until(lambda s: is_up(s, first) and is_up(s, second))
        fake.remove_gpu(1)
        fake.remove_gpu(0)
        fake.add_gpu(2)
        after = daemon.wait_until(swapped)
        # A GPU lost without a successor is still reported, and the log names the one that was given
        # up.
        assert after.value(UP, uuid=second) == 0
        assert not after.has(UP, uuid=first)
        (told,) = [line for line in daemon.log.splitlines() if "event=gpu_replaced" in line]
        assert f"uuid={first}" in told
        assert f"by={replacement}" in told
        # It comes back after all, at another place: it counts as a new GPU.
        fake.set(0, pci_bus=0x7F)
        fake.add_gpu(0)
        daemon.wait_until(lambda s: is_up(s, first) and s.has(SECONDS, uuid=first))

    assert max(shown) == 2


def test_a_hanging_call_affects_only_its_own_gpu(fake: FakeNvml, tmp_path: Path) -> None:
    """The replaced GPU had the same index as its successor: only the UUID distinguishes them."""
    first, replacement = fake.gpu(0).uuid, fake.gpu(2).uuid
    with run(fake, tmp_path) as daemon:
        daemon.wait_until(lambda s: is_up(s, first))
        fake.remove_gpu(0)
        fake.add_gpu(2)
        daemon.wait_until(lambda s: is_up(s, replacement), seconds=60)
        # Only the one that is gone is still looked for by its UUID.
        fake.hang("nvmlDeviceGetHandleByUUID")
        scrape = daemon.wait_until(lambda s: s.value(HUNG, uuid=first) == 1, seconds=60)
        fake.release()

    assert index_of(scrape, replacement) == "0"
    assert scrape.value(HUNG, uuid=replacement) == 0
    assert scrape.has("flopwatch_power_watts", uuid=replacement)


def test_a_gpu_that_never_answered_is_not_mistaken_for_another(
    fake: FakeNvml, tmp_path: Path
) -> None:
    """Its index is another's now: no duplicate series, and no ghost when it returns."""
    first, second = fake.gpu(0).uuid, fake.gpu(1).uuid
    fake.add_gpu(1)
    fake.lose(0)
    with run(fake, tmp_path) as daemon:
        daemon.wait_until(lambda s: is_up(s, second) and s.value(UP, gpu="0") == 0)
        fake.remove_gpu(0)
        moved = daemon.wait_until(lambda s: s.total(UP, uuid=second, gpu="0") == 1)
        # Its sampler looked at index 0 again and found it taken.
        waiting = daemon.wait_until(
            lambda s: s.total(ERRORS, uuid="unknown", reason="gpu_not_found") > 0
        )
        # The longer it waits between its attempts, the more often it is looked for meanwhile.
        daemon.wait_until(
            lambda s: s.total(ERRORS, uuid="unknown", reason="gpu_not_found") > 2, seconds=60
        )
        fake.restore(0)
        fake.add_gpu(0)
        back = daemon.wait_until(lambda s: is_up(s, first), seconds=60)

    for scrape in (moved, waiting):
        assert scrape.value(UP, uuid="unknown") == 0
    assert index_of(back, first) == "1"
    assert not back.has(UP, uuid="unknown")


def test_a_gpu_without_a_uuid_is_found_by_its_bus_id(fake: FakeNvml, tmp_path: Path) -> None:
    """It is known by its PCI address, lost, and found again with its counters."""
    fake.fail("nvmlDeviceGetUUID", 4, gpu=0)
    with run(fake, tmp_path) as daemon:
        before = daemon.wait_until(lambda s: s.total(FLOP) > 0)
        fake.lose(0)
        daemon.wait_until(lambda s: s.total(UP) == 0)
        fake.restore(0)
        after = daemon.wait_until(lambda s: s.total(UP) == 1 and s.has(FLOP))

    (labels,) = after.series(UP)
    assert dict(labels)["uuid"] == "PCI-00000000:0F:00.0"
    assert after.total(FLOP) >= before.total(FLOP)


def test_a_gpu_that_comes_back_continues(fake: FakeNvml, tmp_path: Path) -> None:
    """The same UUID after a reset, behind another GPU: one device, counters from where they were."""
    first = fake.gpu(0).uuid
    with run(fake, tmp_path) as daemon:
        before = daemon.wait_until(lambda s: s.total(FLOP, uuid=first) > 0)
        fake.remove_gpu(0)
        daemon.wait_until(lambda s: s.value(UP, uuid=first) == 0)
        fake.add_gpu(1)
        fake.add_gpu(0)
        after = daemon.wait_until(lambda s: is_up(s, first) and s.has(FLOP, uuid=first), seconds=60)

    assert index_of(after, first) == "1"
    assert after.total(FLOP, uuid=first) >= before.total(FLOP, uuid=first)


def test_handles_invalidated_by_rediscovery_are_fetched_again(
    fake: FakeNvml, tmp_path: Path
) -> None:
    """Every call on the old handle is refused: the GPU is opened again, with nothing missing after."""
    first, second = fake.gpu(0).uuid, fake.gpu(1).uuid
    with run(fake, tmp_path) as daemon:
        before = daemon.wait_until(lambda s: s.total(FLOP, uuid=first) > 0)
        fake.invalidate_handles()
        fake.add_gpu(1)
        daemon.wait_until(lambda s: is_up(s, second))
        daemon.wait_for(lambda: daemon.log.count("event=device_opened") == 3)
        after = daemon.wait_until(
            lambda s: s.has("flopwatch_power_watts", uuid=first) and s.has(FLOP, uuid=first)
        )

    assert after.value("flopwatch_power_watts", uuid=first) == 455
    assert after.total(FLOP, uuid=first) >= before.total(FLOP, uuid=first)


def test_a_driver_that_hangs_during_discovery_affects_no_other_gpu(
    fake: FakeNvml, tmp_path: Path
) -> None:
    """The list of GPUs never arrives: known GPUs tick on, and the new one waits."""
    first, second = fake.gpu(0).uuid, fake.gpu(1).uuid
    with run(fake, tmp_path) as daemon:
        daemon.wait_until(lambda s: s.total(FLOP, uuid=first) > 0)
        fake.hang("nvmlDeviceGetCount_v2")
        fake.add_gpu(1)
        daemon.wait_for(lambda: fake.hanging("nvmlDeviceGetCount_v2"))
        hung = daemon.scrape()
        later = daemon.wait_until(
            lambda s: s.total(SECONDS, uuid=first) >= hung.total(SECONDS, uuid=first) + 2
        )
        assert not later.has(UP, uuid=second)
        fake.release()
        daemon.wait_until(lambda s: is_up(s, second))

    assert later.value(UP, uuid=first) == 1
    assert later.value("flopwatch_source_hung", uuid=first) == 0


def test_xids_are_counted_once_during_reregistration(fake: FakeNvml, tmp_path: Path) -> None:
    """When a GPU appears all events are registered again: of sixty events none is lost or doubled."""
    first, second = fake.gpu(0).uuid, fake.gpu(1).uuid
    with run(fake, tmp_path) as daemon:
        daemon.wait_until(lambda s: s.total(FLOP, uuid=first) > 0)
        daemon.wait_for(lambda: fake.registered_for_events(0))
        fake.add_gpu(1)
        for _ in range(60):
            fake.xid(0, 31)
            time.sleep(0.05)
        daemon.wait_until(lambda s: is_up(s, second))
        daemon.wait_until(lambda s: s.total(XIDS, uuid=first, xid="31") >= 60)
        # One more than there were would come within a wait for events, which is a second.
        until = daemon.scrape().total(SECONDS, uuid=first) + 2
        last = daemon.wait_until(lambda s: s.total(SECONDS, uuid=first) >= until)

    assert last.total(XIDS, uuid=first, xid="31") == 60
