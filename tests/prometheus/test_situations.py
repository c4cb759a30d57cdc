"""docs/faults.md, "Situations and their alerts": each row is proven by what it cites."""

import re
from pathlib import Path

import pytest

from exporter.simulate.scenarios import SCENARIOS

from .test_alerts import CASES


PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
SECTION = PAGE.read_text().split("## Situations and their alerts")[1]
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| (scenario|case) `(.+?)` \|$", SECTION, re.MULTILINE)


def test_every_row_of_the_table_is_read() -> None:
    """All lines but the heading and its rule are situations with a proof."""
    lines = [line for line in SECTION.splitlines() if line.startswith("| ")]

    assert len(ROWS) == len(lines) - 2
    assert len({situation for situation, *_ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("alerts", "kind", "proof"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_situation_is_proven_by_what_it_cites(alerts: str, kind: str, proof: str) -> None:
    """The scenario, or the promtool case, raises the alerts of the row and no others."""
    wanted = set() if alerts == "none" else set(alerts.split(", "))
    if kind == "scenario":
        scenario = SCENARIOS[proof]
        assert scenario.alerts | scenario.host_alerts == wanted
    else:
        (case,) = [case for case in CASES if case.story == proof]
        # At each minute exactly the named alert fires, or none does.
        assert ({case.alert} if case.fires_at else set()) == wanted
        assert case.quiet_at
