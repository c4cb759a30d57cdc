"""Finds GPUs that appear while the daemon runs: hot-plugged, replaced, or back under another UUID.

It has a thread of its own: a driver call that hangs here delays only the discovery of new GPUs. A
GPU that disappears is noticed by its own sampler, and stays down until an operator acts. If another
GPU answers at its PCI address, it was replaced: it is removed before the other is added, so that no
more GPUs are shown than there are.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from exporter.collect.gpu import SampledGpu
from exporter.collect.nvml.answers import text
from exporter.collect.nvml.identity import NO_UUID
from exporter.collect.nvml.library import (
    DriverGone,
    DriverLibrary,
    DriverMismatch,
    NvmlError,
    call,
    handle_address,
)
from exporter.device_state import UNKNOWN


log = structlog.get_logger(__name__)

# More GPUs than any host has, including those that left: a bound in case a driver invents UUIDs.
_GPUS_MAX = 64
_SOON_SECONDS = 1.0


class DeviceDiscovery:
    """Compares the driver's list of GPUs with the sampled ones, once a slow interval."""

    def __init__(
        self,
        library: DriverLibrary,
        *,
        gpus: Callable[[], Sequence[SampledGpu]],
        add: Callable[[int, str], None],
        forget: Callable[[SampledGpu], None],
        hung: Callable[[], frozenset[tuple[str, str]]],
    ) -> None:
        """`gpus` are those sampled now; `add` starts to sample another one, by index and UUID.

        `forget` stops sampling one that was replaced. `hung` are index and UUID of GPUs whose driver
        calls do not return: no call is made for them.
        """
        self._library = library
        self._gpus = gpus
        self._add = add
        self._forget = forget
        self._hung = hung
        self._full_logged = False

    def run(self, stop: threading.Event, interval: Callable[[], float]) -> None:
        """Look until `stop` is set; the body of a thread."""
        again = False
        while not stop.wait(min(interval(), _SOON_SECONDS) if again else interval()):
            again = False
            try:
                again = self.look()
            except NvmlError as error:  # the driver is away: the samplers bring it back
                log.debug("device_discovery_failed", reason=error.reason)
            except Exception:  # a bug must not end discovery permanently
                log.exception("device_discovery_fault")

    def look(self) -> bool:
        """Compare once; whether to look again soon. Raises NvmlError if the driver lists no GPUs."""
        epoch = self._library.epoch
        gpus = self._gpus()
        known = {gpu.uuid: gpu for gpu in gpus}
        listed: list[SampledGpu] = []
        again = False
        found = self._listed(gpus)
        uuids = frozenset(uuid for _index, _handle, uuid in found)
        for index, handle, uuid in found:
            gpu = known.get(uuid)
            for holder in self._holders(gpus, handle):
                if gpu is None and holder.uuid.startswith(NO_UUID):
                    gpu = holder  # it did not report its UUID when it was opened
                elif holder is not gpu:
                    holder.handle_reassigned(epoch)
            if gpu is not None:
                gpu.enumerated(index, handle, epoch)
                listed.append(gpu)
                continue
            old = self._predecessor(handle, gpus, uuids)
            if old is not None and old.handle is not None:
                # Its sampler has not noticed yet. Showing both would be one GPU too many.
                old.handle_reassigned(epoch)
                again = True
                continue
            if old is not None:
                self._replace(old, uuid)
            self._welcome(index, uuid, self._gpus())
            gpus = self._gpus()
        self._forget_replaced(gpus, listed)
        return again

    def _listed(self, gpus: Sequence[SampledGpu]) -> list[tuple[int, Any, str]]:
        """Index, handle and UUID of the listed GPUs, except those that hang or never answered."""
        # One that has never answered is found by its own sampler, by its index.
        left_alone = {index for index, _uuid in self._hung()} | {
            gpu.identity.index for gpu in gpus if gpu.uuid == UNKNOWN and not gpu.index_taken
        }
        listed: list[tuple[int, Any, str]] = []
        for index in range(min(self._library.device_count(), _GPUS_MAX)):
            if str(index) in left_alone:
                continue
            handle = _answer("nvmlDeviceGetHandleByIndex", index)
            uuid = None if handle is None else _answer("nvmlDeviceGetUUID", handle)
            if uuid is not None:
                listed.append((index, handle, str(uuid)))
        return listed

    @staticmethod
    def _predecessor(
        handle: Any, gpus: Sequence[SampledGpu], listed_uuids: frozenset[str]
    ) -> SampledGpu | None:
        """The GPU that was at the same PCI address before and is no longer listed."""
        places = {
            gpu.identity.pci_bus_id: gpu
            for gpu in gpus
            if gpu.identity.pci_bus_id is not None and gpu.uuid not in listed_uuids
        }
        place = _answer("nvmlDeviceGetPciInfo", handle) if places else None
        return None if place is None else places.get(text(place.busId) or "")

    def _welcome(self, index: int, uuid: str, gpus: Sequence[SampledGpu]) -> None:
        """Start to sample a new GPU, by a sampler that still waits for a GPU if there is one."""
        waiting = next((gpu for gpu in gpus if gpu.index_taken), None)
        if waiting is not None:
            log.info("gpu_found", gpu=index, uuid=uuid)
            waiting.assign_uuid(uuid)
        elif len(gpus) < _GPUS_MAX:
            self._add(index, uuid)
        elif not self._full_logged:
            self._full_logged = True
            log.warning("gpu_not_sampled", gpu=index, uuid=uuid, most=_GPUS_MAX)

    def _forget_replaced(self, gpus: Sequence[SampledGpu], listed: Sequence[SampledGpu]) -> None:
        """Forget GPUs that are gone and at whose PCI address another GPU answers."""
        at_place = {gpu.identity.pci_bus_id: gpu for gpu in listed if gpu.handle is not None}
        for gpu in gpus:
            bus_id = gpu.identity.pci_bus_id
            successor = at_place.get(bus_id) if bus_id is not None else None
            if gpu not in listed and gpu.handle is None and successor is not None:
                self._replace(gpu, successor.uuid)

    def _replace(self, old: SampledGpu, by: str) -> None:
        log.info("gpu_replaced", uuid=old.uuid, pci_bus_id=old.identity.pci_bus_id, by=by)
        self._forget(old)

    @staticmethod
    def _holders(gpus: Sequence[SampledGpu], handle: object) -> list[SampledGpu]:
        """The GPUs read through this handle, which the driver may have given to another GPU."""
        address = handle_address(handle)
        opened = [(gpu, gpu.handle) for gpu in gpus]
        return [gpu for gpu, held in opened if held is not None and handle_address(held) == address]


def _answer(function: str, *arguments: Any) -> Any:
    """The driver's answer; None where the GPU is lost or not accessible.

    Raises DriverGone or DriverMismatch.
    """
    try:
        return call(function, *arguments)
    except (DriverGone, DriverMismatch):
        raise
    except NvmlError:
        return None
