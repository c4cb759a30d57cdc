"""Source `dcgm` for one device: only as long as no better source has opened."""

from exporter.accounting.mig import InstanceShare, instance_share
from exporter.collect.dcgm.exposition import Shares
from exporter.collect.dcgm.source import DcgmReader
from exporter.collect.settings import SamplingSettings
from exporter.collect.source import ActivitySource, MeasuredDevice
from exporter.device_state import SourceHealth
from exporter.readings import ActivityWindow, FastReading


class DcgmActivity(ActivitySource):
    """A device's use of the one scrape of dcgm-exporter."""

    def __init__(self, device: MeasuredDevice) -> None:
        super().__init__(device)
        self._reader: DcgmReader | None = None
        self._open_since: float | None = None

    def open(self) -> bool:
        """Request the device; not a GPU in MIG mode unless DCGM is read for its instances, too.

        Also where GPM exists but is refused to us: DCGM's own daemon may have the permission.
        """
        device, source = self.device, self.device.context.dcgm
        shares = self._shares()
        partitioned = device.gpu is None and device.mig_enabled
        if source.mode == "off" or (partitioned and not shares):
            self.stand_by()
            return False
        if self._reader is None:
            gpu = device.gpu or device
            self._reader = source.reader(gpu.identity.uuid, device.identity.mig)
        self._reader.reshape(shares)
        return True

    def read(self, fast: FastReading, settings: SamplingSettings) -> ActivityWindow | None:
        """The oldest closed window that was not read yet."""
        assert self._reader is not None
        window, self._open_since = self._reader.take(fast)
        return window

    @property
    def open_since_seconds(self) -> float | None:
        """Start of the window that is open after the last reading."""
        return self._open_since

    @property
    def max_window_seconds(self) -> float:
        """DCGM's windows are as long as its collection interval."""
        return 0.0 if self._reader is None else self._reader.max_window_seconds

    def stand_by(self) -> None:
        """Stop requesting it."""
        if self._reader is not None:
            self.device.context.dcgm.forget(self._reader)
            self._reader = self._open_since = None

    def restart(self) -> None:
        """Drop the open window."""
        if self._reader is not None:
            self._reader.restart()

    def close(self, *, driver_is_gone: bool = False) -> None:
        """A GPU is still requested while it is away; an instance that is gone is not."""
        if self.device.gpu is not None:
            self.stand_by()

    def implausible(self) -> None:
        """Count activities that cannot be true."""
        if self._reader is not None:
            self._reader.failed("implausible")

    def health(self, *, up: bool) -> dict[str, SourceHealth]:
        """Shown while it is in use."""
        return {} if self._reader is None else {self._reader.name: self._reader.health(up=up)}

    def _shares(self) -> Shares:
        """The instances' shares of the GPU; empty unless DCGM is the source of all of them."""
        shares: dict[str, InstanceShare] = {}
        gpu, sm_count = self.device.identity, self.device.sm_count
        for instance in self.device.instances:
            share = instance_share(gpu, sm_count, instance.identity)
            if share is None or not isinstance(instance.in_use, DcgmActivity):
                return {}
            shares[instance.identity.mig or ""] = share
        return shares
