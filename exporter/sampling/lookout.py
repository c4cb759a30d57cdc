"""Looks for GPUs that came while the daemon runs: hot-plugged, replaced, or back under another UUID.

It has a thread of its own: a driver call that hangs here holds up nothing but the finding of new
GPUs. A GPU that left is no business of it: its own sampler finds that out.
"""

import threading
from collections.abc import Callable, Sequence

import structlog

from exporter.nvml.errors import DriverGone, DriverMismatch, NvmlError
from exporter.nvml.library import DriverLibrary, call, handle_address
from exporter.nvml.reading import NO_UUID
from exporter.sampling.gpu import SampledGpu
from exporter.snapshot import UNKNOWN


log = structlog.get_logger(__name__)

# More GPUs than any host has, those that left counted in: a bound for a driver that makes up UUIDs.
_GPUS_MAX = 64


class DeviceLookout:
    """Compares the driver's list of GPUs with those that are sampled, once a slow interval."""

    def __init__(
        self,
        library: DriverLibrary,
        gpus: Callable[[], Sequence[SampledGpu]],
        add: Callable[[int, str], None],
        hung: Callable[[], frozenset[str]],
    ) -> None:
        """`gpus` are those sampled now; `add` begins to sample one more, by index and UUID.

        `hung` are the indices of those whose driver calls do not return: they are not called.
        """
        self._library = library
        self._gpus = gpus
        self._add = add
        self._hung = hung
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
        # One that has never answered is found by its own sampler, by its index.
        left_alone = self._hung() | {gpu.identity.index for gpu in gpus if gpu.uuid == UNKNOWN}
        for index in range(min(self._library.device_count(), _GPUS_MAX)):
            if str(index) in left_alone:
                continue
            try:
                handle = call("nvmlDeviceGetHandleByIndex", index)
                uuid = str(call("nvmlDeviceGetUUID", handle))
            except (DriverGone, DriverMismatch):
                raise
            except NvmlError:
                continue  # lost, or not for us
            gpu = known.get(uuid)
            for holder in self._holders(gpus, handle):
                if gpu is None and holder.uuid.startswith(NO_UUID):
                    gpu = holder  # it would not tell its UUID when it was opened
                elif holder is not gpu:
                    holder.usurped(epoch)
            if gpu is not None:
                gpu.enumerated(index, handle, epoch)
            elif len(gpus) < _GPUS_MAX:
                self._add(index, uuid)
                gpus = self._gpus()
            elif not self._full_logged:
                self._full_logged = True
                log.warning("gpu_not_sampled", gpu=index, uuid=uuid, most=_GPUS_MAX)

    @staticmethod
    def _holders(gpus: Sequence[SampledGpu], handle: object) -> list[SampledGpu]:
        """The GPUs that are read through this very handle; the driver may use it for another now."""
        address = handle_address(handle)
        opened = [(gpu, gpu.handle) for gpu in gpus]
        return [gpu for gpu, held in opened if held is not None and handle_address(held) == address]
