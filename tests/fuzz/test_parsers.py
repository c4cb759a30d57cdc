"""Parsers of foreign input return a value or raise their own error, whatever the input."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.edits import EDITS_MAX, LENGTH_MAX, TOKENS, Edit, Kind, spoil
from tests.fuzz.targets import TARGETS


# Enough for the hundred malformed inputs of each parser; `python -m tests.fuzz` does millions.
EXAMPLES = 120
FINDINGS = Path(__file__).parent / "findings"

EDITS = st.lists(
    st.builds(
        Edit,
        st.sampled_from(Kind),
        st.floats(0, 1),
        st.integers(0, LENGTH_MAX),
        st.sampled_from(TOKENS) | st.binary(max_size=16),
    ),
    min_size=1,
    max_size=EDITS_MAX,
)


@pytest.mark.parametrize("name", TARGETS)
def test_real_inputs_are_read(name: str) -> None:
    """The seeds themselves raise nothing."""
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_corrupted_inputs_are_read_or_refused(name: str, data: st.DataObject) -> None:
    """Real inputs with a few edits."""
    target = TARGETS[name]
    target.run(spoil(data.draw(st.sampled_from(target.seeds)), data.draw(EDITS)))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES // 2, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200))
def test_noise_is_read_or_refused(name: str, data: bytes) -> None:
    """Any bytes at all."""
    TARGETS[name].run(data)


@pytest.mark.parametrize("finding", sorted(FINDINGS.glob("*-*")), ids=lambda path: path.name)
def test_inputs_that_once_failed_are_handled(finding: Path) -> None:
    """Inputs that once broke a parser."""
    TARGETS[finding.name.split("-")[0]].run(finding.read_bytes())
