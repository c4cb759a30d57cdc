"""The host's boot, and the GPUs on its PCI bus whether or not a driver is loaded."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from exporter.readings import HostFacts


_NVIDIA: Final = "0x10de"
_DISPLAY_CLASS: Final = "0x03"
# GPUs are rarely plugged in or handed over.
_BUS_SECONDS: Final = 60.0


def boot_time_seconds(proc: Path = Path("/proc")) -> float | None:
    """Unix time of the host's boot (`btime` in /proc/stat); None where it cannot be read."""
    try:
        for line in (proc / "stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "btime":
                return float(value)
    except (OSError, ValueError):
        pass
    return None


def boot_id(proc: Path = Path("/proc")) -> str | None:
    """The kernel's random identity of this boot; None where it cannot be read."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def expected_gpus(sys: Path = Path("/sys")) -> int | None:
    """NVIDIA display controllers on the PCI bus; None where there is no bus to read.

    Virtual functions and devices handed to a virtual machine (vfio-pci) are not counted.
    """
    try:
        devices = list((sys / "bus/pci/devices").iterdir())
    except OSError:
        return None
    return sum(_is_gpu(device) for device in devices)


def _is_gpu(device: Path) -> bool:
    try:
        vendor = (device / "vendor").read_text().strip()
        kind = (device / "class").read_text().strip()
        if vendor != _NVIDIA or not kind.startswith(_DISPLAY_CLASS) or (device / "physfn").exists():
            return False
        driver = device / "driver"
        return not (driver.exists() and driver.resolve().name.startswith("vfio"))
    except OSError:
        return False


class Machine:
    """The host's facts, the bus read again every minute. Any thread may ask."""

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc, self._sys, self._clock = proc, sys, clock
        self._read_at = float("-inf")
        self._facts = HostFacts()

    def facts(self) -> HostFacts:
        """What the host reports about itself."""
        now = self._clock()
        if now - self._read_at >= _BUS_SECONDS:
            self._facts = HostFacts(expected_gpus(self._sys), boot_time_seconds(self._proc))
            self._read_at = now
        return self._facts
