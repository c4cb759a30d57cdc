"""The disk under the state file full, read-only, gone or locked: the daemon continues in memory."""

import errno
import fcntl
import itertools
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess
from tests.faults.invariants import Witness
from tests.faults.probing import probing, runs


class Disk:
    """A folder for the state file, on a file system of its own where the test may mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self._mounted = False

    def mount(self) -> None:
        """64 kB, empty. Skips the test where this user may not mount."""
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(self.folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"cannot mount a file system: {result.stderr.strip()}")
        self._mounted = True

    def writable(self, *, yes: bool) -> None:
        """Make it read-only, as the kernel does after errors, or writable again."""
        mode = f"remount,{'rw' if yes else 'ro'}"
        subprocess.run(["mount", "-o", mode, str(self.folder)], check=True)

    def unmount(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Not mounted yet."""
    disk = Disk(tmp_path / "state")
    yield disk
    disk.unmount()


class Kept:
    """A probing daemon, and the state file that it keeps."""

    def __init__(self, daemon: DaemonProcess, file: Path) -> None:
        self.daemon = daemon
        self.file = file
        self.witness = Witness(daemon, window_seconds=1.5)
        self.goes_on()
        daemon.wait_for(file.exists)

    def goes_on(self) -> None:
        """Three more good runs of the probes, with the processor watched all the time."""
        before = runs(self.witness.scrape(), outcome="ok")
        scrape = self.witness.until(lambda scrape: runs(scrape, outcome="ok") >= before + 3, 120)
        assert scrape.value("flopwatch_gpu_up", gpu="cpu0") == 1
        assert runs(scrape) == runs(scrape, outcome="ok") + runs(scrape, outcome="contended")

    def saves(self) -> None:
        """The file is rewritten completely."""
        before = self.file.stat().st_mtime_ns if self.file.exists() else 0
        self.daemon.wait_for(
            lambda: self.file.exists() and self.file.stat().st_mtime_ns > before, 60
        )
        assert json.loads(self.file.read_text())["probes"]["charges"]

    def not_saved(self, times: int) -> None:
        """This many changes from saved to not saved were logged, none with a traceback."""
        assert self.daemon.log.count("state_not_saved") == times
        assert "Traceback" not in self.daemon.log

    def saved_again(self, times: int) -> None:
        self.daemon.wait_for(lambda: self.daemon.log.count("state_saved_again") == times, 60)
        self.saves()


def fill(file: Path) -> None:
    """Write until there is no space left."""
    with file.open("wb", buffering=0) as stream, pytest.raises(OSError) as raised:
        stream.writelines(itertools.repeat(bytes(4096)))
    assert raised.value.errno == errno.ENOSPC


@contextmanager
def kept(tmp_path: Path, disk: Disk) -> Iterator[Kept]:
    with probing(tmp_path, disk.folder / "state.json") as daemon:
        yield Kept(daemon, disk.folder / "state.json")


@pytest.mark.timeout(300)
def test_nothing_can_be_written(tmp_path: Path, disk: Disk) -> None:
    """Every write fails (by a limit on file sizes): logged once, and saved when it ends."""
    with kept(tmp_path, disk) as state:
        whole = state.file.read_bytes()
        pid = state.daemon.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        state.daemon.wait_for(lambda: "state_not_saved" in state.daemon.log)
        state.goes_on()
        state.not_saved(1)
        # The last good file remains, and nothing of the attempts.
        assert json.loads(state.file.read_text())["version"] == json.loads(whole)["version"]
        assert not list(disk.folder.glob("*.tmp-*"))

        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        state.saved_again(1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_disk_that_is_full_and_one_that_is_read_only(tmp_path: Path, disk: Disk) -> None:
    """ENOSPC and EROFS: each logged once, the last good file remains, saved when they end."""
    disk.mount()
    with kept(tmp_path, disk) as state:
        ballast = disk.folder / "ballast"
        fill(ballast)
        state.daemon.wait_for(lambda: "No space left on device" in state.daemon.log)
        state.goes_on()
        state.not_saved(1)
        assert json.loads(state.file.read_text())["probes"]
        ballast.unlink()
        state.saved_again(1)

        disk.writable(yes=False)
        state.daemon.wait_for(lambda: "Read-only file system" in state.daemon.log)
        state.goes_on()
        state.not_saved(2)
        disk.writable(yes=True)
        state.saved_again(2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_folder_that_vanishes_and_a_lock_that_is_never_released(
    tmp_path: Path, disk: Disk
) -> None:
    """The folder is recreated; a lock held by another process prevents saving and nothing else."""
    with kept(tmp_path, disk) as state:
        shutil.rmtree(disk.folder)
        state.saves()

        descriptor = os.open(disk.folder / "state.json.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        state.daemon.wait_for(lambda: "state_not_saved" in state.daemon.log)
        state.goes_on()
        state.not_saved(1)
        os.close(descriptor)
        state.saved_again(1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_state_file_that_is_broken_while_the_daemon_runs(tmp_path: Path, disk: Disk) -> None:
    """Cut in the middle, as by a node that lost power: moved aside, and a good one written."""
    with kept(tmp_path, disk) as state:
        data = state.file.read_bytes()
        state.file.write_bytes(data[: len(data) // 2])
        state.daemon.wait_for(lambda: list(disk.folder.glob("state.json.broken-*")))
        state.saves()
        state.goes_on()
        assert "Traceback" not in state.daemon.log
