"""The state file survives crashes, other writers, full disks and nonsense."""

import json
import os
import threading

import pytest
import structlog

from exporter.services import Calibration, read_calibrations, save_calibrations
from flopwatch.state_file import StateFile, usable_state_path
from probes.device_states import SECTION, SavedProbes, saved_probes
from probes.judgement import Baseline


BASELINE = Baseline(versions="v1", shape=(64, 64, 64), digest="aa", best=2.0, recent=(1.0, 2.0))
# Numbers that would lift the budget's limit, divide by zero, or be invalid operand sizes.
BROKEN_BASELINE = (
    b'{"version": 1, "probes": {"baselines": {"GPU-0": {"g": {"versions": "v", %s}}}}}'
)
STATE = SavedProbes(baselines={"GPU-0": {"gemm_fp32": BASELINE}}, charges={"GPU-0": [(1.0, 0.5)]})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


@pytest.fixture
def events():
    """What was logged."""
    with structlog.testing.capture_logs() as captured:
        yield captured


def broken_files(path):
    return sorted(each.name for each in path.parent.glob("*.broken-*"))


def test_saved_state_is_restored(path):
    """All of it, by another process that reads the file again."""
    StateFile(path).save(SECTION, STATE)

    assert saved_probes(StateFile(path)) == STATE
    assert json.loads(path.read_text())["version"] == 1


def test_a_missing_file_is_an_empty_state(path, events):
    """The first start is no reason for a warning."""
    assert saved_probes(StateFile(path)) == SavedProbes()
    assert events == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b'{"version": 2, "probes": {}}',
        b'{"version": 1, "probes": {"baselines": 3}}',
        b'{"version": 1, "probes": {"baselines": {"GPU-0": {"gemm": {"shape": "x"}}}}}',
        b"\xff\xfe\x00garbage",
        b"[" * 100_000,
        b'{"version": 1, "probes": {"charges": {"GPU-0": [[NaN, 0.1]]}}}',
        b'{"version": 1, "probes": {"charges": {"GPU-0": [[1.0, -5.0]]}}}',
        b'{"version": 1, "probes": {"charges": {"GPU-0": [[1.0, 1e999]]}}}',
        BROKEN_BASELINE % b'"shape": [64, 64, 64], "best": 0.0',
        BROKEN_BASELINE % b'"shape": [64, 64, 64], "recent": [-1.0]',
        BROKEN_BASELINE % b'"shape": [64, 64, 64], "device_seconds": -1.0',
        BROKEN_BASELINE % b'"shape": [0, 64, 64]',
        BROKEN_BASELINE % b'"shape": []',
        BROKEN_BASELINE % (b'"shape": [' + b"1," * 100 + b"1]"),
    ],
)
def test_a_broken_file_is_moved_aside(path, events, content):
    """It is kept for inspection, with one warning, and replaced by a new one."""
    path.write_bytes(content)
    file = StateFile(path)

    assert saved_probes(file) == SavedProbes()
    file.save(SECTION, STATE)
    assert saved_probes(StateFile(path)) == STATE
    assert len(broken_files(path)) == 1
    assert (path.parent / broken_files(path)[0]).read_bytes() == content
    assert [event["event"] for event in events] == ["state_broken"]


def test_each_owner_keeps_the_others_section(path):
    """The daemon saving its baselines leaves what `calibrate` wrote meanwhile, and the reverse."""
    daemon, command = StateFile(path), StateFile(path)
    daemon.save(SECTION, STATE)
    save_calibrations(command, "GPU-0", {"bf16": Calibration(0.01, 5.0)})
    save_calibrations(command, "GPU-0", {"fp8": Calibration(-0.02, 6.0)})
    daemon.save(SECTION, SavedProbes())

    assert saved_probes(daemon) == SavedProbes()
    assert read_calibrations(daemon) == {
        "GPU-0": {"bf16": Calibration(0.01, 5.0), "fp8": Calibration(-0.02, 6.0)}
    }


def test_many_writers_lose_nothing(path):
    """Eight threads, each with its own handle as a process would have, all survive in the file."""
    threads = [
        threading.Thread(
            target=save_calibrations,
            args=(StateFile(path), f"GPU-{number}", {"bf16": Calibration(number / 100, 1.0)}),
        )
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    StateFile(path).save(SECTION, STATE)

    assert len(read_calibrations(StateFile(path))) == 8
    assert saved_probes(StateFile(path)) == STATE


def test_a_disk_error_is_logged_once(path, events, monkeypatch):
    """The state stays in memory, and is written when the disk works again."""

    def full(*_):
        raise OSError(28, "No space left on device")

    file = StateFile(path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        file.save(SECTION, STATE)
        file.save(SECTION, STATE)

        assert saved_probes(file) == STATE
        assert not path.exists()
        assert list(path.parent.glob("*.tmp-*")) == []
        assert [event["event"] for event in events] == ["state_not_saved"]

    file.save(SECTION, STATE)

    assert saved_probes(StateFile(path)) == STATE
    assert [event["event"] for event in events] == ["state_not_saved", "state_saved_again"]


def test_a_crash_before_the_rename_leaves_the_old_file(path, monkeypatch):
    """The new content is written beside it and takes its name only when it is whole."""
    file = StateFile(path)
    file.save(SECTION, STATE)
    old = path.read_bytes()

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr("pathlib.Path.replace", crash)
    file.save(SECTION, SavedProbes())

    assert path.read_bytes() == old


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_falls_back(tmp_path, monkeypatch):
    """The user's state folder takes its place."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))

    assert (
        usable_state_path(locked / "state.json") == tmp_path / "home" / "flopwatch" / "state.json"
    )


def test_a_path_below_a_file_falls_back(tmp_path, monkeypatch):
    """A path that cannot be a folder cannot hold the state."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))

    assert usable_state_path(tmp_path / "file" / "state.json") == (
        tmp_path / "home" / "flopwatch" / "state.json"
    )


def test_a_folder_that_can_be_written_is_used(tmp_path):
    """It is created when it does not exist."""
    wanted = tmp_path / "new" / "state.json"

    assert usable_state_path(wanted) == wanted
    assert wanted.parent.is_dir()


@pytest.mark.parametrize("special", ["pipe", "device", "folder"])
def test_a_pipe_or_device_is_neither_read_nor_replaced(tmp_path, special):
    """A named pipe has no writer, and a rename would replace a device for the whole host."""
    path = tmp_path / "state.json"
    if special == "pipe":
        os.mkfifo(path)
    elif special == "folder":
        path.mkdir()
    else:
        path.symlink_to(os.devnull)
    file = StateFile(path)

    assert file.read(SECTION, SavedProbes) is None
    file.save(SECTION, STATE)

    assert file.read(SECTION, SavedProbes) == STATE  # in memory
    assert not path.is_file()
