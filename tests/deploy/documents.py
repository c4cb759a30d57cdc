"""Commands from the documentation, for tests that run them."""

import re
from pathlib import Path


DOCS = Path(__file__).parents[2] / "docs"


def commands(page: str, heading: str) -> list[str]:
    """The shell blocks below a heading, in order, up to the next heading of its level."""
    text = (DOCS / page).read_text()
    level = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert level is not None, f"{page} has no heading {heading!r}"
    below = text[level.end() :]
    end = re.search(rf"^#{{1,{len(level[1])}}} ", below, re.MULTILINE)
    section = below[: end.start()] if end else below
    return re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
