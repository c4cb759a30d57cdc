"""Looks for GPUs that came while the daemon runs: hot-plugged, replaced, or back under another UUID.

It has a thread of its own: a driver call that hangs here holds up nothing but the finding of new
GPUs. A GPU that left is found out by its own sampler, and stays down: somebody must see to it. Only
when another GPU has been at its place for minutes was it replaced, and nobody waits for it any more.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from exporter.collect.gpu import SampledGpu
from exporter.collect.nvml.errors import DriverGone, DriverMismatch, NvmlError
from exporter.collect.nvml.library import DriverLibrary, call, handle_address
from exporter.collect.nvml.reading import NO_UUID
from exporter.state import UNKNOWN


log = structlog.get_logger(__name__)

# More GPUs than any host has, those that left counted in: a bound for a driver that makes up UUIDs.
_GPUS_MAX = 64
# Long enough that an alert on the GPU that left has come and been seen to end with its successor.
REPLACED_SECONDS = 300.0


class DeviceLookout:
    """Compares the driver's list of GPUs with those that are sampled, once a slow interval."""

    def __init__(
        self,
        library: DriverLibrary,
        *,
        gpus: Callable[[], Sequence[SampledGpu]],
        add: Callable[[int, str], None],
        forget: Callable[[SampledGpu], None],
        hung: Callable[[], frozenset[tuple[str, str]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`gpus` are those sampled now; `add` begins to sample one more, by index and UUID.

        `forget` ends it for one that was replaced. `hung` are index and UUID of those whose driver
        calls do not return: they are not called.
        """
        self._library = library
        self._gpus = gpus
        self._add = add
        self._forget = forget
        self._hung = hung
        self._clock = clock
        self._replaced_since: dict[str, float] = {}
        self._full_logged = False

    def run(self, stop: threading.Event, interval: Callable[[], float]) -> None:
        """Look until `stop` is set; the body of a thread."""
        while not stop.wait(interval()):
            try:
                self.look()
            except NvmlError as error:  # the driver is away: the samplers bring it back
                log.debug("device_lookout_failed", reason=error.reason)
            except Exception:  # a fault of ours must not end the looking for good
                log.exception("device_lookout_fault")

    def look(self) -> None:
        """Compare once. Raises NvmlError when the driver gives no list."""
        epoch = self._library.epoch
        gpus = self._gpus()
        known = {gpu.uuid: gpu for gpu in gpus}
        listed: list[SampledGpu] = []
        # One that has never answered is found by its own sampler, by its index.
        left_alone = {index for index, _uuid in self._hung()} | {
            gpu.identity.index for gpu in gpus if gpu.uuid == UNKNOWN and not gpu.index_taken
        }
        for index in range(min(self._library.device_count(), _GPUS_MAX)):
            if str(index) in left_alone:
                continue
            found = self._ask(index)
            if found is None:
                continue
            handle, uuid = found
            gpu = known.get(uuid)
            for holder in self._holders(gpus, handle):
                if gpu is None and holder.uuid.startswith(NO_UUID):
                    gpu = holder  # it would not tell its UUID when it was opened
                elif holder is not gpu:
                    holder.handle_reassigned(epoch)
            if gpu is None:
                self._welcome(index, uuid, gpus)
                gpus = self._gpus()
            else:
                gpu.enumerated(index, handle, epoch)
                listed.append(gpu)
        self._forget_replaced(gpus, listed)

    @staticmethod
    def _ask(index: int) -> tuple[Any, str] | None:
        """Handle and UUID of the GPU that is listed there; None if it is lost, or not for us."""
        try:
            handle = call("nvmlDeviceGetHandleByIndex", index)
            return handle, str(call("nvmlDeviceGetUUID", handle))
        except (DriverGone, DriverMismatch):
            raise
        except NvmlError:
            return None

    def _welcome(self, index: int, uuid: str, gpus: Sequence[SampledGpu]) -> None:
        """Begin to sample a GPU that is new here: by one that still waits for its own, if any does."""
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
        """Forget those that are gone, and whose place on the bus another has had for long enough."""
        at_place: Mapping[str | None, SampledGpu] = {
            gpu.identity.pci_bus_id: gpu for gpu in listed if gpu.handle is not None
        }
        now = self._clock()
        waited = self._replaced_since
        self._replaced_since = {}
        for gpu in gpus:
            bus_id = gpu.identity.pci_bus_id
            successor = at_place.get(bus_id) if bus_id is not None else None
            if gpu in listed or gpu.handle is not None or successor is None:
                continue
            since = waited.get(gpu.uuid, now)
            if now - since < REPLACED_SECONDS:
                self._replaced_since[gpu.uuid] = since
                continue
            log.info("gpu_replaced", uuid=gpu.uuid, pci_bus_id=bus_id, by=successor.uuid)
            self._forget(gpu)

    @staticmethod
    def _holders(gpus: Sequence[SampledGpu], handle: object) -> list[SampledGpu]:
        """The GPUs that are read through this very handle; the driver may use it for another now."""
        address = handle_address(handle)
        opened = [(gpu, gpu.handle) for gpu in gpus]
        return [gpu for gpu, held in opened if held is not None and handle_address(held) == address]
