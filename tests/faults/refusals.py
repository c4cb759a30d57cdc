"""A node that refuses to start processes or threads, simulated by a preloaded library."""

import subprocess
from pathlib import Path
from typing import Literal


_SOURCE = Path(__file__).parent / "refusal_shim.c"
What = Literal["processes", "threads"]


class Refusals:
    """Build it before the process starts, and start that with `env`."""

    def __init__(self, directory: Path) -> None:
        library = directory / "refusal_shim.so"
        subprocess.run(
            ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", _SOURCE, "-o", library, "-ldl"],
            check=True,
        )
        self._directory = directory
        self.env = {
            "LD_PRELOAD": str(library),
            "REFUSAL_SHIM_PROCESSES": str(self._file("processes")),
            "REFUSAL_SHIM_THREADS": str(self._file("threads")),
        }

    def refuse(self, what: What) -> None:
        """Refuse, as when the limit on tasks is reached."""
        self._file(what).touch()

    def allow(self, what: What) -> None:
        """Stop refusing."""
        self._file(what).unlink()

    def _file(self, what: What) -> Path:
        return self._directory / f"refused-{what}"
