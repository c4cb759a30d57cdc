"""The command as a shell sees it: whatever happens to its streams, one line and an exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter import find_revision


FLOPWATCH = [sys.executable, "-m", "flopwatch"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def shell(words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `flopwatch WORDS` in a shell, so that redirections work."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"$PYTHON" -m flopwatch {words}'],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("words", ["metrics", "config", "--version", "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_reported_in_one_line(words: str, unbuffered: str) -> None:
    """EX_IOERR, whichever layer of Python notices it."""
    result = shell(f"{words} >/dev/full", PYTHONUNBUFFERED=unbuffered)

    assert (result.returncode, result.stderr) == (
        74,
        "flopwatch: standard output: no space left on device\n",
    )


@pytest.mark.parametrize("words", ["metrics", "config", "check", "--version"])
def test_a_closed_standard_output_is_not_an_error(words: str) -> None:
    """The reader closed the pipe."""
    result = shell(f"{words} >&-", FLOPWATCH_PROBES_ENABLED="false")

    assert (result.returncode, result.stderr) == (0, "")


def test_a_reader_that_disconnects_is_not_a_fault() -> None:
    """`flopwatch metrics | head -1`."""
    result = shell("metrics | head -1")

    assert (result.returncode, result.stderr) == (0, "")


def test_a_terminal_with_a_small_character_set_gets_substitutes() -> None:
    """A micro sign and a dash are not in ASCII: the text stays readable."""
    result = shell("config --markdown", PYTHONIOENCODING="ascii")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("# Configuration")


@pytest.mark.parametrize("after_seconds", [0.05, 0.15, 0.3, 0.6])
def test_ctrl_c_at_any_moment_ends_it_silently(after_seconds: float, tmp_path: Path) -> None:
    """While modules load, and while it works: by the signal, or by its exit code."""
    process = subprocess.Popen(
        [*FLOPWATCH, "simulate", "--listen-address", "127.0.0.1:0", "--hosts", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after_seconds)  # any moment will do
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    # Python's own start, before any of our code runs, cannot be silenced by us.
    before_our_code = "site" in errors or "runpy" in errors
    assert "exporter" not in errors
    assert process.returncode in (0, 130, -signal.SIGINT) or before_our_code, errors


class TestRevision:
    def test_a_checkout_names_its_commit(self, tmp_path: Path) -> None:
        """`.git/HEAD` names a branch, and the branch's file the commit."""
        (tmp_path / ".git/refs/heads").mkdir(parents=True)
        (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
        (tmp_path / ".git/refs/heads/main").write_text(COMMIT + "\n")

        assert find_revision(tmp_path / "exporter") == COMMIT

    def test_packed_branches_and_loose_heads(self, tmp_path: Path) -> None:
        """A fresh clone has its branches in one file; a checked-out tag has none."""
        (tmp_path / ".git").mkdir()
        (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
        (tmp_path / ".git/packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/main\n")
        assert find_revision(tmp_path / "exporter") == COMMIT

        (tmp_path / ".git/HEAD").write_text(COMMIT + "\n")
        assert find_revision(tmp_path / "exporter") == COMMIT

    def test_a_worktree_points_to_its_repository(self, tmp_path: Path) -> None:
        """Its `.git` is a file, and its branches are the repository's."""
        git = tmp_path / "main/.git/worktrees/w"
        git.mkdir(parents=True)
        (git / "HEAD").write_text("ref: refs/heads/topic\n")
        (git / "commondir").write_text("../..\n")
        (tmp_path / "main/.git/refs/heads").mkdir(parents=True)
        (tmp_path / "main/.git/refs/heads/topic").write_text(COMMIT + "\n")
        (tmp_path / "w").mkdir()
        (tmp_path / "w/.git").write_text(f"gitdir: {git}\n")

        assert find_revision(tmp_path / "w/exporter") == COMMIT

    def test_a_build_notes_it(self, tmp_path: Path) -> None:
        """The commit recorded in a wheel wins over a checkout that surrounds it."""
        (tmp_path / "exporter").mkdir()
        (tmp_path / "exporter/revision.txt").write_text("1.2.3-dirty\n")

        assert find_revision(tmp_path / "exporter") == "1.2.3-dirty"

    def test_without_either_it_is_unknown(self, tmp_path: Path) -> None:
        """A folder of modules does not show where it came from."""
        assert find_revision(tmp_path / "exporter") == "unknown"
