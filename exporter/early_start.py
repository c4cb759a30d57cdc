"""What begins while most of the daemon is still being loaded.

GPM shows the activity of a GPU a third of a second after its first sample at the earliest
(`collect/gpm_windows.py`). Loading the other modules meanwhile saves a tenth of a second.
"""

from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

from exporter.collect.host import HostSampling
from exporter.collect.settings import SamplingSettings
from exporter.config.model import Config
from exporter.device_state import DeviceState
from exporter.web.connections import DEFAULT_LIMITS, open_listeners


if TYPE_CHECKING:
    from exporter.state import State
    from exporter.web.config import WebConfig


class EarlyStart:
    """The listening sockets and the sampling of one daemon.

    The sampling uses `settings`, `latest`, `on_device` and `on_tick`, which the daemon sets once it
    is loaded.
    """

    def __init__(self, config: Config) -> None:
        self.web_config = _web_config(config.web.config_file)
        self.listeners: tuple[socket, ...] = ()
        self.settings: Callable[[], SamplingSettings] = lambda: config.sampling
        self.latest: Callable[[], State] | None = None
        self.on_device: Callable[[DeviceState], None] = lambda _device: None
        self.on_tick: Callable[[], None] = lambda: None
        self.host = HostSampling(
            self._current_settings,
            self._latest_state,
            on_device=self._observe,
            on_tick=self._after_tick,
        )
        self._config = config

    def begin(self) -> None:
        """Listen, and begin to sample. Raises FlopwatchError, and then no device has been touched.

        Connections wait until the web server accepts them.
        """
        web = self._config.web
        # Bound before anything else: a port in use must not cost the GPUs a second exporter.
        self.listeners = open_listeners(
            web.listen_address, DEFAULT_LIMITS.backlog, systemd_socket=web.systemd_socket
        )
        self.host.start()

    def _current_settings(self) -> SamplingSettings:
        return self.settings()

    def _latest_state(self) -> "State":
        if self.latest is not None:
            return self.latest()
        from exporter.state import State  # noqa: PLC0415  not loaded before the first samples

        return State(at_seconds=0.0, pending=True)

    def _observe(self, device: DeviceState) -> None:
        self.on_device(device)

    def _after_tick(self) -> None:
        self.on_tick()


def _web_config(file: str | None) -> "WebConfig | None":
    if not file:
        return None
    from exporter.web.config import load_web_config  # noqa: PLC0415  6 MB, for those who have one

    return load_web_config(Path(file))
