"""The driver's list of GPUs against those that are sampled, in lists that a bus seldom gives."""

from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from exporter.nvml.errors import NoPermission, NvmlError
from exporter.readings import DeviceIdentity
from exporter.sampling import lookout
from exporter.sampling.lookout import DeviceLookout


EPOCH = 3


def handle_of(address: int) -> Any:
    """A handle as the driver gives it: a new pointer object each time."""
    return pynvml.cast(address, pynvml.c_nvmlDevice_t)


class Driver:
    """Handles and UUIDs by index; an error stands for a GPU that does not answer."""

    epoch = EPOCH

    def __init__(self, *gpus: tuple[int, str] | NvmlError) -> None:
        self.gpus = gpus

    def device_count(self) -> int:
        return len(self.gpus)

    def call(self, function: str, argument: Any) -> Any:
        if function == "nvmlDeviceGetHandleByIndex":
            entry = self.gpus[argument]
            if isinstance(entry, NvmlError):
                raise entry
            return handle_of(entry[0])
        assert function == "nvmlDeviceGetUUID"
        address = pynvml.cast(argument, pynvml.c_void_p).value
        return next(
            entry[1] for entry in self.gpus if isinstance(entry, tuple) and entry[0] == address
        )


class Sampled:
    """A GPU that is sampled, as the lookout knows it; it notes what it is told."""

    def __init__(self, index: int, uuid: str, address: int | None) -> None:
        self.identity = DeviceIdentity(index=str(index), uuid=uuid, name="")
        self.uuid = uuid
        self.handle = None if address is None else handle_of(address)
        self.told: list[tuple[Any, ...]] = []

    def enumerated(self, index: int, _handle: Any, epoch: int) -> None:
        self.told.append(("at", index, epoch))

    def usurped(self, epoch: int) -> None:
        self.told.append(("usurped", epoch))


Look = Callable[..., list[tuple[int, str]]]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Look once; what was added."""

    def once(
        driver: Driver, *sampled: Sampled, hung: frozenset[str] = frozenset()
    ) -> list[tuple[int, str]]:
        monkeypatch.setattr(lookout, "call", driver.call)
        added: list[tuple[int, str]] = []
        found: Any = DeviceLookout(
            driver,  # type: ignore[arg-type]
            lambda: sampled,  # type: ignore[arg-type,return-value]
            lambda index, uuid: added.append((index, uuid)),
            lambda: hung,
        )
        found.look()
        return added

    return once


def test_a_list_that_is_known_adds_nothing(look: Look) -> None:
    """Each is told where it stands."""
    first, second = Sampled(0, "GPU-a", 0x10), Sampled(1, "GPU-b", 0x20)

    assert look(Driver((0x10, "GPU-a"), (0x20, "GPU-b")), first, second) == []
    assert (first.told, second.told) == ([("at", 0, EPOCH)], [("at", 1, EPOCH)])


def test_a_new_uuid_behind_a_known_handle_is_a_new_gpu(look: Look) -> None:
    """The driver reuses the replaced GPU's handle: whoever reads through it must let go of it."""
    replaced = Sampled(0, "GPU-a", 0x10)

    assert look(Driver((0x10, "GPU-z")), replaced) == [(0, "GPU-z")]
    assert replaced.told == [("usurped", EPOCH)]


def test_one_that_would_not_tell_its_uuid_is_not_taken_for_another(look: Look) -> None:
    """It was opened under its PCI address, and tells its UUID now: the same GPU."""
    shy = Sampled(0, "PCI-00000000:0F:00.0", 0x10)

    assert look(Driver((0x10, "GPU-a")), shy) == []
    assert shy.told == [("at", 0, EPOCH)]


def test_those_that_do_not_answer_are_passed_over(look: Look) -> None:
    """One that is not for this process, one that hangs, one that its own sampler still looks for."""
    hanging, unnamed = Sampled(1, "GPU-b", None), Sampled(2, "unknown", None)
    driver = Driver(
        NoPermission("nvmlDeviceGetHandleByIndex", 4), (0x20, "x"), (0x30, "y"), (0x40, "GPU-d")
    )

    assert look(driver, hanging, unnamed, hung=frozenset({"1"})) == [(3, "GPU-d")]


def test_a_driver_that_makes_up_uuids_is_not_followed_for_ever(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that left count as well."""
    monkeypatch.setattr(lookout, "_GPUS_MAX", 2)
    left, there = Sampled(0, "GPU-a", None), Sampled(0, "GPU-b", None)

    assert look(Driver((0x10, "GPU-c")), left, there) == []
