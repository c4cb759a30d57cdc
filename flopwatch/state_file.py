"""The state file: data that must survive restarts and be shared between processes.

One JSON object with a version and named sections. Each section has one owner; an update replaces
its own section and keeps the others, under a lock, through a temporary file that is synced and
renamed, so readers, even after a crash, find either the old file or the new one. A corrupt file is
moved aside to `<name>.broken-<timestamp>`.
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
# An update takes milliseconds; a process that holds the lock longer is stopped or stuck.
LOCK_SECONDS: Final = 2.0
_LOCK_RETRY_SECONDS: Final = 0.02
# Set in the container images, in which nothing can be installed.
IMAGE_VARIABLE: Final = "FLOPWATCH_IMAGE"

log = structlog.get_logger(__name__)

_Section = TypeVar("_Section")


def usable_state_path(preferred: Path) -> Path:
    """`preferred` if its folder is writable, else the same name in the user's state folder.

    Folders are created as needed; the user's is `$XDG_STATE_HOME/flopwatch`, by default
    `~/.local/state/flopwatch`.
    """
    with contextlib.suppress(OSError):
        preferred.parent.mkdir(parents=True, exist_ok=True)
        if os.access(preferred.parent, os.W_OK | os.X_OK):
            return preferred
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - no exception without a home directory
    return Path(home) / "flopwatch" / preferred.name


def state_remedy() -> str:
    """How to provide a place for the state file."""
    if os.environ.get(IMAGE_VARIABLE):
        return "mount a volume at /var/lib/flopwatch that this user may write to"
    return "make it writable for this user, free some space, or set state_file to a writable file"


class StateFile:
    """Access to the file's sections. Bad files and disk errors raise nothing; they are logged once.

    On a disk error, the sections are kept in memory and every later update tries again.
    Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._memory: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._warned = False

    def read(self, name: str, kind: type[_Section]) -> _Section | None:
        """A section as a value of this type; None if it is missing or invalid."""
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
        """Replace a section with a value that msgspec can encode."""
        self.update(name, lambda _before: msgspec.to_builtins(section))

    def update(self, name: str, change: Callable[[Any], Any]) -> None:
        """Replace a section (plain data) with the result of `change`; None means no section."""
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
            # The file has it now: do not overwrite later writes of another process.
            self._memory.clear()
            self._warned = False

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Prevent concurrent updates by other processes."""
        lock = self.path.with_name(self.path.name + ".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, Any]:
        """The file's sections, together with those held only in memory."""
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
            _require_regular(self.path.stat().st_mode)  # or the rename would replace a device
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
        # The rename is durable only after the folder is synced.
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _text(document: dict[str, Any]) -> str:
    """The document as indented text. `json` indents in Python, which takes 50 ms instead of 3."""
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
    """Wait for the lock up to a limit, since its holder may be stopped. Raises OSError."""
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
    """JSON has no NaN or infinity, and a sum that contains one never recovers."""
    raise ValueError(f"{name} is no number")


def _parse(data: bytes) -> dict[str, Any]:
    """The document in a state file; raises ValueError if it is invalid."""
    if len(data) > STATE_BYTES_MAX:
        raise ValueError(f"longer than {STATE_BYTES_MAX} bytes")
    document = json.loads(data, parse_constant=_refuse)
    json.dumps(document, ensure_ascii=False).encode()  # a lone surrogate is a ValueError
    if not isinstance(document, dict) or document.get("version") != STATE_VERSION:
        raise ValueError(f"not a state file of version {STATE_VERSION}")
    return document
