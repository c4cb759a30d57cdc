"""The state file: what must be known across restarts, and by several processes.

One JSON object with a version and named sections. Each section has one owner; an update replaces
its own section and keeps the others, under a lock, through a temporary file that is synced and
renamed, so a reader or a crash sees the old file or the new one. A file that cannot be read as
such is moved aside to `<name>.broken-<timestamp>`.
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog


STATE_VERSION: Final = 1
# A fleet host has 16 GPUs at most, with a few kilobytes each.
STATE_BYTES_MAX: Final = 8 * 2**20
# An update takes milliseconds; whoever holds the lock for longer is stopped or stuck.
LOCK_SECONDS: Final = 2.0
_LOCK_RETRY_SECONDS: Final = 0.02

log = structlog.get_logger(__name__)


_Section = TypeVar("_Section")


def usable_state_path(preferred: Path) -> Path:
    """`preferred` when its folder can be written, else the same name in the user's state folder.

    Folders are created if need be; the user's is `$XDG_STATE_HOME/flopwatch`, by default
    `~/.local/state/flopwatch`.
    """
    with contextlib.suppress(OSError):
        preferred.parent.mkdir(parents=True, exist_ok=True)
        if os.access(preferred.parent, os.W_OK | os.X_OK):
            return preferred
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - no exception where there is no home
    return Path(home) / "flopwatch" / preferred.name


class StateFile:
    """Access to the file's sections; never raises for a bad file or disk, warns once instead.

    When the disk refuses, the sections live on in memory and every later update tries again.
    Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._memory: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._warned = False

    def read(self, name: str, kind: type[_Section]) -> _Section | None:
        """A section as a value of this type; None when there is none or it cannot be used."""
        with self._lock:
            document = self._read()
            if name not in document:
                return None
            try:
                return msgspec.convert(document[name], kind)
            except msgspec.ValidationError as error:
                self._move_aside(f"{name}: {error}")
                return None

    def save(self, name: str, section: Any) -> None:
        """Replace a section by a value that msgspec can encode."""
        self.update(name, lambda _before: msgspec.to_builtins(section))

    def update(self, name: str, change: Callable[[Any], Any]) -> None:
        """Replace a section, as plain data, by `change` of it; None stands for no section."""
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self._exclusive():
                    document = self._read()
                    document[name] = change(document.get(name))
                    document["version"] = STATE_VERSION
                    self._memory[name] = document[name]
                    self._write(document)
            except OSError as error:
                self._memory[name] = change(self._memory.get(name))
                if not self._warned:
                    log.warning("state_not_saved", path=str(self.path), error=str(error))
                self._warned = True
                return
            if self._warned:
                log.info("state_saved_again", path=str(self.path))
            # The file has it now; what another process writes into it must not be overwritten.
            self._memory.clear()
            self._warned = False

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other processes from updating at the same time."""
        lock = self.path.with_name(self.path.name + ".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, Any]:
        """The file's sections and those that are only in memory."""
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for its writer.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:  # noqa: PTH123  a descriptor, not a path
                _require_regular(os.fstat(descriptor).st_mode)
                data = file.read(STATE_BYTES_MAX + 1)
        except FileNotFoundError:
            return dict(self._memory)
        except OSError as error:
            if not self._warned:
                log.warning("state_not_read", path=str(self.path), error=str(error))
            self._warned = True
            return dict(self._memory)
        try:
            document = _parse(data)
        except (ValueError, RecursionError) as error:
            self._move_aside(str(error))
            return dict(self._memory)
        return {**document, **self._memory}

    def _move_aside(self, why: str) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.broken-{stamp}")
        try:
            self.path.rename(aside)
        except OSError as error:
            log.warning("state_broken", path=str(self.path), why=why, not_moved=str(error))
            return
        log.warning("state_broken", path=str(self.path), why=why, moved_to=str(aside))

    def _write(self, document: dict[str, Any]) -> None:
        temporary = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            _require_regular(self.path.stat().st_mode)  # a device would be replaced by a file
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(_text(document))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        # The rename itself lasts only once the folder is synced.
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _text(document: dict[str, Any]) -> str:
    """The document in lines. `json` would indent it in Python: 50 ms where this takes 3."""
    text = json.dumps(document)
    try:
        return msgspec.json.format(text, indent=1)
    except msgspec.DecodeError:  # NaN and infinity, which only `json` has
        return text


def _require_regular(mode: int) -> None:
    """Raise OSError for a named pipe, a device or a folder."""
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file")


def _lock(descriptor: int) -> None:
    """Wait for the lock, but not for ever: its holder may be stopped. Raises OSError."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_LOCK_RETRY_SECONDS)
        else:
            return


def _refuse(name: str) -> float:
    """JSON has no NaN and no infinities, and a sum with one is lost for good."""
    raise ValueError(f"{name} is no number")


def _parse(data: bytes) -> dict[str, Any]:
    """The document in a state file; raises ValueError when it is none."""
    if len(data) > STATE_BYTES_MAX:
        raise ValueError(f"longer than {STATE_BYTES_MAX} bytes")
    document = json.loads(data, parse_constant=_refuse)
    json.dumps(document, ensure_ascii=False).encode()  # half of a surrogate pair is a ValueError
    if not isinstance(document, dict) or document.get("version") != STATE_VERSION:
        raise ValueError(f"not a state file of version {STATE_VERSION}")
    return document
