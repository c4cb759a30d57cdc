"""A wall clock that the test can move under a process, by a preloaded library."""

import mmap
import subprocess
from pathlib import Path


_SOURCE = Path(__file__).parent / "clock_shim.c"


class WallClock:
    """Build it before the process starts, and start that with `env`."""

    def __init__(self, directory: Path) -> None:
        library = directory / "clock_shim.so"
        subprocess.run(
            ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", _SOURCE, "-o", library, "-ldl"],
            check=True,
        )
        offset = directory / "wall-clock-offset"
        offset.write_bytes(bytes(8))
        with offset.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_SHIM_OFFSET": str(offset)}

    def jump(self, seconds: int) -> None:
        """Set the clock this far ahead of the true time, or behind it."""
        self._memory[:] = seconds.to_bytes(8, "little", signed=True)
