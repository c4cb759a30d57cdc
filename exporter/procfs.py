"""Names of processes by pid, from /proc: no driver call, and none for a process that has gone."""

from pathlib import Path


def process_name(pid: int, proc: Path = Path("/proc")) -> str:
    """The process's command name, as `ps` shows it; `unknown` if it is gone or hidden.

    Read anew each time: pids are handed out again, and a name kept would be another's.
    """
    try:
        # Not by Path: it interns every part, and the interpreter's table of these never shrinks.
        with open(f"{proc}/{pid}/comm", errors="replace") as file:  # noqa: PTH123
            return file.read(64).strip() or "unknown"
    except OSError:
        return "unknown"
