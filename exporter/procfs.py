"""Names of processes by pid, from /proc: no driver call, and none for a process that has gone."""

from pathlib import Path


# More processes than GPUs have contexts; a host with more gets its names read again.
_NAMES_MAX = 1024


class ProcessNames:
    """Remembers names; a pid that is not there (gone, or of another pid namespace) is `unknown`."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._names: dict[int, str] = {}

    def name(self, pid: int) -> str:
        """The process's command name, as `ps` shows it."""
        known = self._names.get(pid)
        if known is not None:
            return known
        try:
            # Not by Path: it interns every part, and the interpreter's table of these never shrinks.
            with open(f"{self._proc}/{pid}/comm", errors="replace") as file:  # noqa: PTH123
                name = file.read().strip()
        except OSError:
            return "unknown"
        if len(self._names) >= _NAMES_MAX:
            self._names.clear()
        self._names[pid] = name
        return name
