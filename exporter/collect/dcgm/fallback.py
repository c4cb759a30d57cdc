"""DCGM in place of GPM: for a device that has none, and only as long as it has none."""

from exporter.accounting.device import LastWindow
from exporter.collect.dcgm.instances import Shares
from exporter.collect.dcgm.source import DcgmReader, DcgmSource
from exporter.readings import ActivityWindow, FastReading
from exporter.state import SourceHealth


class DcgmFallback:
    """One device's use of the source `dcgm`. The device's own thread calls it."""

    def __init__(self, source: DcgmSource) -> None:
        self._source = source
        self._reader: DcgmReader | None = None
        self._held: LastWindow | None = None

    @property
    def in_use(self) -> bool:
        """Whether DCGM is asked for this device."""
        return self._reader is not None

    def follow(
        self,
        uuid: str,
        gpu_instance_id: str | None = None,
        *,
        wanted: bool,
        shares: Shares | None = None,
    ) -> None:
        """Begin or end to use the source, as the device needs it and the configuration allows.

        `shares` are those of its instances, of a GPU in MIG mode.
        """
        wanted = wanted and self._source.mode != "off"
        if wanted and self._reader is None:
            self._reader = self._source.reader(uuid, gpu_instance_id)
        elif not wanted and self._reader is not None:
            self._source.forget(self._reader)
            self._reader = self._held = None
        if self._reader is not None:
            self._reader.reshape(shares or {})

    def take(self, fast: FastReading) -> tuple[ActivityWindow | None, float | None]:
        """The window that closed, and the start of the one now open."""
        return (None, None) if self._reader is None else self._reader.take(fast)

    def restart(self) -> None:
        """Count nothing of the time since the last window."""
        self._held = None
        if self._reader is not None:
            self._reader.restart()

    def implausible(self) -> None:
        """Book activities that cannot be true."""
        if self._reader is not None:
            self._reader.failed("implausible")

    @property
    def max_window_seconds(self) -> float:
        """The longest window that counts as watched."""
        return 0.0 if self._reader is None else self._reader.max_window_seconds

    def hold(self, last: LastWindow | None, now: float) -> LastWindow | None:
        """What the gauges show: DCGM's last window, until the next or until it is too old."""
        if self._reader is None:
            return last
        if last is not None:
            self._held = last
        elif self._held is not None:
            age = now - self._held.activity.end_seconds
            if age > self._reader.max_window_seconds:
                self._held = None
        return self._held

    def health(self, *, up: bool) -> dict[str, SourceHealth]:
        """The source's entry among the device's sources; empty while it is not in use."""
        return {} if self._reader is None else {self._reader.name: self._reader.health(up=up)}
