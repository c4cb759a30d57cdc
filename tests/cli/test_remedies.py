"""A remedy is a command that works when it is typed on the machine that printed it."""

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flopwatch.state_file import state_remedy
from probes.environment import TORCH_REQUIREMENTS, torch_remedy


ROOT = Path(__file__).parents[2]


def test_torch_comes_by_the_ranges_of_the_project() -> None:
    """What the remedy installs is what the extra `probes` asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert list(TORCH_REQUIREMENTS) == project["optional-dependencies"]["probes"]


def test_it_goes_into_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By this interpreter's own pip, quoted for a shell; pip itself takes the words."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    program, *words = shlex.split(torch_remedy())

    assert (program, words) == (sys.executable, ["-m", "pip", "install", *TORCH_REQUIREMENTS])


def test_an_environment_without_pip_uses_one_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment made by uv has no pip: uv installs into it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    words = shlex.split(torch_remedy())

    help_text = subprocess.run(
        [Path(sys.executable).with_name("uv"), *words[1:3], "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert words[:3] == ["uv", "pip", "install"]
    assert "--python" in help_text


def test_an_image_keeps_its_state_in_a_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its root is read-only; elsewhere a folder can be made writable, or another can be named."""
    assert "set state_file" in state_remedy()
    monkeypatch.setenv("FLOPWATCH_IMAGE", "slim")

    assert state_remedy() == "mount a volume at /var/lib/flopwatch that this user may write to"


def test_nothing_is_installed_into_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another image has it."""
    monkeypatch.setenv("FLOPWATCH_IMAGE", "slim")

    assert torch_remedy() == "use the image that is built with --target full"
