"""Optional labels are named in the configuration; for a wrong name the nearest is suggested."""

import pytest

from exporter.metrics.catalogue import BY_NAME
from flopwatch.option_parsers import choice


def test_a_family_that_does_not_exist_is_named_with_the_nearest() -> None:
    """A list of ninety names would not help."""
    with pytest.raises(ValueError, match=r"did you mean flopwatch_achieved_flops\?"):
        choice(*BY_NAME)("flopwatch_achieved_flop")
