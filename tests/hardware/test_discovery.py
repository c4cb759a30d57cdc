"""The driver's list of GPUs compared with the sampled ones, in unusual lists."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from exporter.collect import discovery
from exporter.collect.discovery import DeviceDiscovery
from exporter.collect.nvml.library import NoPermission, NvmlError
from exporter.readings import DeviceIdentity


EPOCH = 3


def handle_of(address: int) -> Any:
    """A handle as the driver gives it: a new pointer object each time."""
    return pynvml.cast(address, pynvml.c_nvmlDevice_t)


class Driver:
    """Handles and UUIDs by index; an error means a GPU that does not answer."""

    epoch = EPOCH

    def __init__(self, *gpus: tuple[int, str] | NvmlError, bus: str = "elsewhere") -> None:
        self.gpus = gpus
        self.bus = bus

    def device_count(self) -> int:
        return len(self.gpus)

    def call(self, function: str, argument: Any) -> Any:
        if function == "nvmlDeviceGetHandleByIndex":
            entry = self.gpus[argument]
            if isinstance(entry, NvmlError):
                raise entry
            return handle_of(entry[0])
        if function == "nvmlDeviceGetPciInfo":
            return SimpleNamespace(busId=self.bus)
        assert function == "nvmlDeviceGetUUID"
        address = pynvml.cast(argument, pynvml.c_void_p).value
        return next(
            entry[1] for entry in self.gpus if isinstance(entry, tuple) and entry[0] == address
        )


class Sampled:
    """A sampled GPU as the discovery sees it; it records what it is told."""

    def __init__(
        self, index: int, uuid: str, address: int | None, *, bus: str | None = None
    ) -> None:
        self.identity = DeviceIdentity(index=str(index), uuid=uuid, name="", pci_bus_id=bus)
        self.uuid = uuid
        self.index_taken = False
        self.handle = None if address is None else handle_of(address)
        self.told: list[tuple[Any, ...]] = []

    def enumerated(self, index: int, _handle: Any, epoch: int) -> None:
        self.told.append(("at", index, epoch))

    def handle_reassigned(self, epoch: int) -> None:
        self.told.append(("handle_reassigned", epoch))

    def assign_uuid(self, uuid: str) -> None:
        self.told.append(("named", uuid))
        self.index_taken = False
        self.uuid = uuid


def forbidden(gpu: object) -> None:
    raise AssertionError(f"forgotten: {gpu}")


Look = Callable[..., list[tuple[int, str]]]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Look once; what was added."""

    def once(
        driver: Driver, *sampled: Sampled, hung: frozenset[tuple[str, str]] = frozenset()
    ) -> list[tuple[int, str]]:
        monkeypatch.setattr(discovery, "call", driver.call)
        added: list[tuple[int, str]] = []
        found: Any = DeviceDiscovery(
            driver,  # type: ignore[arg-type]
            gpus=lambda: sampled,  # type: ignore[arg-type,return-value]
            add=lambda index, uuid: added.append((index, uuid)),
            forget=forbidden,
            hung=lambda: hung,
        )
        found.look()
        return added

    return once


def test_a_list_that_is_known_adds_nothing(look: Look) -> None:
    """Each is told its place."""
    first, second = Sampled(0, "GPU-a", 0x10), Sampled(1, "GPU-b", 0x20)

    assert look(Driver((0x10, "GPU-a"), (0x20, "GPU-b")), first, second) == []
    assert (first.told, second.told) == ([("at", 0, EPOCH)], [("at", 1, EPOCH)])


def test_a_new_uuid_behind_a_known_handle_is_a_new_gpu(look: Look) -> None:
    """The driver reuses the replaced GPU's handle: its sampler must give it up."""
    replaced = Sampled(0, "GPU-a", 0x10)

    assert look(Driver((0x10, "GPU-z")), replaced) == [(0, "GPU-z")]
    assert replaced.told == [("handle_reassigned", EPOCH)]


def test_a_gpu_without_a_uuid_is_not_mistaken_for_another(look: Look) -> None:
    """It was opened under its PCI address and now reports its UUID: the same GPU."""
    shy = Sampled(0, "PCI-00000000:0F:00.0", 0x10)

    assert look(Driver((0x10, "GPU-a")), shy) == []
    assert shy.told == [("at", 0, EPOCH)]


def test_devices_that_do_not_answer_are_skipped(look: Look) -> None:
    """One that is not for this process, one that hangs, one that its own sampler still looks for."""
    hanging, unnamed = Sampled(1, "GPU-b", None), Sampled(2, "unknown", None)
    driver = Driver(
        NoPermission("nvmlDeviceGetHandleByIndex", 4), (0x20, "x"), (0x30, "y"), (0x40, "GPU-d")
    )

    assert look(driver, hanging, unnamed, hung=frozenset({hanging.identity.key})) == [(3, "GPU-d")]


def test_a_driver_that_invents_uuids_does_not_add_devices_forever(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that left count as well."""
    monkeypatch.setattr(discovery, "_GPUS_MAX", 2)
    left, there = Sampled(0, "GPU-a", None), Sampled(0, "GPU-b", None)

    assert look(Driver((0x10, "GPU-c")), left, there) == []


def test_an_expected_gpu_is_not_added_again(look: Look) -> None:
    """Lost before it ever answered, it returns at another place: its sampler is told its UUID."""
    waiting, known = Sampled(0, "unknown", None), Sampled(0, "GPU-b", 0x20)
    waiting.index_taken = True

    assert look(Driver((0x20, "GPU-b"), (0x30, "GPU-c"), (0x40, "GPU-d")), waiting, known) == [
        (2, "GPU-d")
    ]
    assert waiting.told == [("named", "GPU-c")]
    assert known.told == [("at", 0, EPOCH)]
    # Until it has opened the GPU the discovery waits for it, and starts no other sampler.
    assert look(Driver((0x20, "GPU-b"), (0x30, "GPU-c")), waiting, known) == []


class Replacing:
    """Repeated looks: forgotten GPUs leave the list, new ones join it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *sampled: Sampled) -> None:
        self.sampled = list(sampled)
        self._patch = monkeypatch
        self._driver: Any = Driver()
        self._discovery = DeviceDiscovery(
            self,  # type: ignore[arg-type]
            gpus=lambda: list(self.sampled),  # type: ignore[arg-type,return-value]
            add=lambda index, uuid: self.sampled.append(Sampled(index, uuid, None)),
            forget=self.sampled.remove,  # type: ignore[arg-type]
            hung=frozenset,
        )

    epoch = EPOCH

    def device_count(self) -> int:
        return int(self._driver.device_count())

    def look(self, driver: Driver) -> list[str]:
        """The UUIDs that are sampled after one more look."""
        self._driver = driver
        self._patch.setattr(discovery, "call", driver.call)
        self.again = self._discovery.look()
        return [gpu.uuid for gpu in self.sampled]


OLD_PLACE = "00000000:0F:00.0"


def test_a_replacement_appears_when_the_old_gpu_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are never more GPUs than places on the bus, not even for one scrape."""
    old = Sampled(0, "GPU-old", None, bus=OLD_PLACE)
    host = Replacing(monkeypatch, old)

    assert host.look(Driver((0x20, "GPU-new"), bus=OLD_PLACE)) == ["GPU-new"]


def test_a_gpu_that_reports_itself_lost_is_named_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its sampler lets go in its next tick; the successor comes with the next look, which is soon."""
    old = Sampled(0, "GPU-old", 0x10, bus=OLD_PLACE)
    host = Replacing(monkeypatch, old)
    there = Driver((0x20, "GPU-new"), bus=OLD_PLACE)

    assert host.look(there) == ["GPU-old"]
    assert host.again
    assert old.told == [("handle_reassigned", EPOCH)]
    old.handle = None
    assert host.look(there) == ["GPU-new"]
    assert not host.again


def test_a_gpu_without_a_bus_id_at_first_is_removed_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The successor is sampled already, and answers from the place of the one that is gone."""
    old = Sampled(0, "GPU-old", None, bus=OLD_PLACE)
    new = Sampled(0, "GPU-new", 0x20, bus=OLD_PLACE)

    assert Replacing(monkeypatch, old, new).look(Driver((0x20, "GPU-new"))) == ["GPU-new"]


def test_a_lost_gpu_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is empty, or it is still listed but does not answer: an operator must act."""
    lost = Sampled(0, "GPU-lost", None, bus=OLD_PLACE)
    other = Sampled(1, "GPU-other", 0x20, bus="00000000:1F:00.0")
    host = Replacing(monkeypatch, lost, other)

    for driver in (
        Driver((0x20, "GPU-other")),
        Driver(NoPermission("nvmlDeviceGetHandleByIndex", 4), (0x20, "GPU-other")),
        Driver((0x10, "GPU-lost"), (0x20, "GPU-other")),
    ):
        for _look in range(3):
            assert host.look(driver) == ["GPU-lost", "GPU-other"]


def test_a_replacement_that_is_lost_too_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one that answers has taken the place."""
    old = Sampled(0, "GPU-old", None, bus=OLD_PLACE)
    new = Sampled(0, "GPU-new", None, bus=OLD_PLACE)
    host = Replacing(monkeypatch, old, new)

    assert host.look(Driver((0x20, "GPU-new"))) == ["GPU-old", "GPU-new"]


def test_a_gpu_that_moved_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another GPU has its old place, and it is listed itself: it is being opened at its new place."""
    moved = Sampled(0, "GPU-moved", None, bus=OLD_PLACE)
    host = Replacing(monkeypatch, moved)
    both = Driver((0x20, "GPU-new"), (0x10, "GPU-moved"), bus=OLD_PLACE)

    assert host.look(both) == ["GPU-moved", "GPU-new"]
    assert host.look(both) == ["GPU-moved", "GPU-new"]
