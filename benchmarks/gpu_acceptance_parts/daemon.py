"""The product's daemon as the parts run it, and the counters they read from it."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.daemon.process import DaemonProcess, Scrape


# A little more than a tick of one second: the next tick includes all earlier work.
SETTLE_SECONDS = 1.3
_TICK_SECONDS, _POLL_SECONDS = 3.0, 0.02
_START_SECONDS = 40.0
_FAKE_DRIVER = "FAKE_NVML_CONTROL"


def start_daemon(
    directory: Path, settings: Mapping[str, Any], *, state: Path | None = None
) -> DaemonProcess:
    """A daemon with these settings, not entered yet; its state is in the directory."""
    config = {"state_file": str(state or directory / "state.json"), **settings}
    # Tests run the acceptance on the fake driver library; the daemon has to find it too.
    fake = {key: value for key, value in os.environ.items() if key == _FAKE_DRIVER}
    directory.mkdir(parents=True, exist_ok=True)
    return DaemonProcess(directory, config=json.dumps(config), environment=fake)


def settings(
    *, precision: str | None = None, probes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A configuration: the headline precision of all GPUs, and the probes (off when not given)."""
    made: dict[str, Any] = {"probes": {"enabled": False} if probes is None else dict(probes)}
    if precision is not None:
        made["gpus"] = [{"match": {"name": "*"}, "precision": precision}]
    return made


def reconfigure(daemon: DaemonProcess, changed: Mapping[str, Any]) -> None:
    """Give a running daemon another configuration and wait until it is active."""
    before = daemon.scrape().value("flopwatch_config_last_reload_success_timestamp_seconds")
    current = json.loads(daemon.config_file.read_text())
    daemon.config_file.write_text(json.dumps({**current, **changed}))
    daemon.reload()
    daemon.wait_until(
        lambda scrape: (
            scrape.value("flopwatch_config_last_reload_success_timestamp_seconds") > before
        )
    )


def wait_for_gpu(daemon: DaemonProcess, gpu: int) -> Scrape:
    """The first scrape with the GPU's state times."""
    return daemon.wait_until(
        lambda scrape: scrape.total("flopwatch_gpu_seconds_total", gpu=str(gpu)) > 0,
        _START_SECONDS,
    )


class Counters:
    """One GPU's counters at one moment."""

    def __init__(self, scrape: Scrape, gpu: int) -> None:
        self._scrape = scrape
        self._gpu = str(gpu)

    @property
    def at(self) -> float:
        """Unix time of the reading that the counters end with.

        It comes from the daemon: when a poll sees the counters depends on how busy this machine is.
        """
        name = "flopwatch_source_last_success_timestamp_seconds"
        for source in ("gpm_cycles", "gpm", "nvml"):
            if found := self._scrape.series(name, gpu=self._gpu, source=source):
                return max(found.values())
        raise ValueError(f"the daemon does not say when it read GPU {self._gpu}")

    def flop(self, pipe: str, precision: str) -> float | None:
        """FLOP of one pipe and precision; None when the daemon counts none."""
        return self._total("flopwatch_flop_total", pipe=pipe, precision=precision)

    def pipes(self) -> dict[str, float]:
        """FLOP of every pipe and precision."""
        series = self._scrape.series("flopwatch_flop_total", gpu=self._gpu)
        found: dict[str, float] = {}
        for labels, value in series.items():
            names = dict(labels)
            key = f"{names['pipe']} {names['precision']}"
            found[key] = found.get(key, 0.0) + value
        return found

    def dram_bytes(self) -> float | None:
        """Bytes moved to and from device memory; None where the daemon counts none."""
        return self._total("flopwatch_dram_bytes_total")

    def states(self) -> dict[str, float]:
        """Seconds by state."""
        series = self._scrape.series("flopwatch_gpu_seconds_total", gpu=self._gpu)
        return {dict(labels)["state"]: value for labels, value in series.items()}

    def _total(self, name: str, **labels: str) -> float | None:
        found = self._scrape.series(name, gpu=self._gpu, **labels)
        return sum(found.values()) if found else None


def settled(daemon: DaemonProcess, gpu: int) -> Counters:
    """The counters right after the tick that includes the work. Raises TimeoutError without ticks."""
    time.sleep(SETTLE_SECONDS)
    before = sum(Counters(daemon.scrape(), gpu).states().values())
    deadline = time.monotonic() + _TICK_SECONDS
    while time.monotonic() < deadline:
        now = Counters(daemon.scrape(), gpu)
        if sum(now.states().values()) != before:
            return now
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"the daemon's counters stand still for {_TICK_SECONDS:g} s")


def grown(before: float | None, after: float | None) -> float | None:
    """The increase; a counter that appeared in between started at 0. None: it does not exist."""
    return None if after is None else after - (before or 0.0)
