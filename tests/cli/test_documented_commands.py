"""Every `flopwatch` command in the documentation has only flags that exist."""

import re
from pathlib import Path

import pytest

from exporter.cli.main import COMMANDS, build_parser


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# After a word, a slash or a prompt, up to the end of the line or of the code.
COMMAND = re.compile(rf"\bflopwatch ({'|'.join(COMMANDS)})\b([^`\n]*)")


def documented() -> list[tuple[str, str, str]]:
    """Page, subcommand and flag, once each."""
    found = {
        (page.name, command, flag)
        for page in PAGES
        for command, rest in COMMAND.findall(page.read_text())
        for flag in re.findall(r"(?<=\s)--[\w.-]+", rest.partition("#")[0])
    }
    return sorted(found)


def test_there_are_commands_with_flags() -> None:
    """The search finds what the pages are known to show."""
    assert ("cost.md", "bill", "--prometheus") in documented()
    assert ("levers.md", "simulate", "--pull") in documented()


@pytest.mark.parametrize(("page", "command", "flag"), documented())
def test_every_documented_flag_exists(
    page: str, command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The subcommand's own help lists it."""
    with pytest.raises(SystemExit):
        build_parser((command,)).parse_args([command, "--help"])

    assert flag in re.findall(r"--[\w.-]+", capsys.readouterr().out)
