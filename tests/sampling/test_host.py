"""The host: its devices as published, its boot, and the GPUs on its PCI bus."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.collect.gpu import SampledGpu
from exporter.collect.host import (
    HostSampling,
    Machine,
    boot_id,
    boot_time_seconds,
    expected_gpus,
)
from exporter.collect.nvml.library import Transient
from exporter.collect.sampler import Sampler
from exporter.collect.settings import SamplingSettings
from exporter.state import State


MODES: Mapping[str, str] = {"nvml": "off", "gpm": "off", "dcgm": "off", "cpu": "on"}


@pytest.fixture
def host() -> HostSampling:
    return HostSampling(lambda: SamplingSettings(modes=MODES), lambda: State(at_seconds=0.0))


def test_late_messages_of_a_removed_device_are_ignored(
    host: HostSampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may be in the middle of a tick when it is removed: none of its readings come back."""
    monkeypatch.setattr(Sampler, "start", lambda _self: None)
    host._start_cpu()
    (sampler,) = host._samplers.values()
    words = sampler.device.failed(None)  # type: ignore[arg-type]
    sampler._publish(words)
    assert [device.identity.index for device in host.published(0.0).devices] == ["cpu0"]

    host._remove("cpu0")
    sampler._publish(words)

    assert host.published(0.0).devices == ()


def test_a_tick_is_over_when_every_device_that_is_up_has_ticked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three GPUs, in any order: once a tick. One that is lost or gone is not waited for; one that is late ends no tick."""
    monkeypatch.setattr(Sampler, "start", lambda _self: None)
    ended: list[float] = []
    interval = 1.0
    host = HostSampling(
        lambda: SamplingSettings(modes=MODES, interval=interval),
        lambda: State(at_seconds=0.0),
        on_tick=lambda: ended.append(now),
    )
    for index in range(3):
        host._start(SampledGpu(index, host._context()))
    states = {key: each.device.failed(Transient("x", 1)) for key, each in host._samplers.items()}

    def tick(key: str, *, up: bool = True) -> None:
        at_seconds = host._started_at + now
        host._samplers[key]._publish(replace(states[key], up=up, at_seconds=at_seconds))

    for now in (1.01, 2.01):  # noqa: B007  read by tick
        for key in "012":
            tick(key)
    now = 3.01
    for key in "120":
        tick(key)
    assert ended[-2:] == [2.01, 3.01]  # at the first, none was known to be up

    ended.clear()
    now = 4.01
    for key in "02":
        tick(key)
    assert ended == []  # GPU 1 is late
    now = 5.01
    for key in "021":
        tick(key)
    assert ended == [5.01]

    now = 6.01
    tick("0")
    tick("2")
    tick("1", up=False)
    assert ended == [5.01, 6.01]
    now = 7.01
    tick("2")
    tick("0")
    assert ended == [5.01, 6.01, 7.01]

    host._remove("0")
    interval, now = 10.0, 10.01
    tick("2")
    assert ended == [5.01, 6.01, 7.01, 10.01]


def test_a_device_without_a_thread_is_not_listed(
    host: HostSampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If none can start, the device is found again later, and is not shown as down until then."""

    def refuse(_self: Sampler) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Sampler, "start", refuse)
    with pytest.raises(RuntimeError):
        host._start_cpu()

    assert host.published(0.0).devices == ()


def device(sys: Path, address: str, *, vendor: str = "0x10de", kind: str = "0x030200") -> Path:
    folder = sys / "bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")
    return folder


def test_gpus_are_counted_whether_or_not_a_driver_has_them(tmp_path: Path) -> None:
    """Two GPUs, not the NVSwitch bridge, not another vendor's, not a virtual function, not one of a virtual machine."""
    device(tmp_path, "0000:18:00.0")
    device(tmp_path, "0000:2a:00.0", kind="0x030000")
    device(tmp_path, "0000:c1:00.0", kind="0x068000")
    device(tmp_path, "0000:00:02.0", vendor="0x8086", kind="0x030000")
    (device(tmp_path, "0000:18:00.4") / "physfn").mkdir()
    drivers = tmp_path / "bus/pci/drivers/vfio-pci"
    drivers.mkdir(parents=True)
    (device(tmp_path, "0000:3a:00.0") / "driver").symlink_to(drivers)

    assert expected_gpus(tmp_path) == 2


def test_an_unreadable_bus_is_not_a_host_without_gpus(tmp_path: Path) -> None:
    """With nothing to read there is no value."""
    assert expected_gpus(tmp_path) is None


def test_boot(tmp_path: Path) -> None:
    """btime and boot_id, as the kernel writes them; None without them."""
    assert (boot_time_seconds(tmp_path), boot_id(tmp_path)) == (None, None)
    (tmp_path / "stat").write_text("cpu  1 2 3\nbtime 1700000000\nprocesses 5\n")
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("5c0f-1\n")

    assert (boot_time_seconds(tmp_path), boot_id(tmp_path)) == (1700000000.0, "5c0f-1")


def test_the_bus_is_read_once_a_minute(tmp_path: Path) -> None:
    """A scrape reads no file of it in between."""
    now = 0.0
    machine = Machine(proc=tmp_path, sys=tmp_path, clock=lambda: now)
    device(tmp_path, "0000:18:00.0")
    assert machine.facts().expected_gpus == 1
    device(tmp_path, "0000:2a:00.0")
    assert machine.facts().expected_gpus == 1
    now = 61.0
    assert machine.facts().expected_gpus == 2
