"""docs/status-page.md is complete."""

import inspect
import re
from pathlib import Path

import msgspec
import pytest

from exporter.status import document, verdict


PAGE = (Path(__file__).parents[2] / "docs" / "status-page.md").read_text(encoding="utf-8")
STRUCTS = [
    member
    for _name, member in inspect.getmembers(document, inspect.isclass)
    if issubclass(member, msgspec.Struct)
]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_field_is_described(struct: type[msgspec.Struct]) -> None:
    """An undocumented field would not be found."""
    missing = [name for name in struct.__struct_fields__ if f"`{name}`" not in PAGE]

    assert missing == []


def test_every_finding_is_described() -> None:
    """The kinds are for programs, and their authors need the documentation."""
    source = inspect.getsource(verdict)
    kinds = set(re.findall(r"(?:Finding\(\s*\w+,\s*|else )\"([a-z_]+)\"", source))
    kinds.discard("s")

    assert len(kinds) > 20
    assert sorted(kind for kind in kinds if f"`{kind}`" not in PAGE) == []


def test_the_pictures_are_there_and_small() -> None:
    """A page of documentation should not weigh megabytes."""
    pictures = re.findall(r"\((images/[\w-]+\.png)\)", PAGE)

    assert len(pictures) == 3
    for picture in pictures:
        assert (Path(__file__).parents[2] / "docs" / picture).stat().st_size < 300_000
