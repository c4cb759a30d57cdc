"""Numbers as people read them."""

import pytest

from exporter.status.document import binary, count, megahertz, percent, quantity, span


def words(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0, "0 %"),
        (0.0004, "<0.1 %"),
        (0.004, "0.4 %"),
        (0.914, "91 %"),
        (1.08, "108 %"),
        (12, "1,200 %"),
    ],
)
def test_percent(ratio: float, text: str) -> None:
    """Whole per cent, finer where that would hide something; above 1 is not clamped."""
    assert text == words(percent(ratio))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 FLOP/s"),
        (989.4e12, "989 TFLOP/s"),
        (98.43e12, "98.4 TFLOP/s"),
        (1.118e15, "1.12 PFLOP/s"),
        (999.9e12, "1.00 PFLOP/s"),
        (455, "455 FLOP/s"),
    ],
)
def test_quantity(value: float, text: str) -> None:
    """Three digits and an SI prefix; never 1,000 of a smaller unit."""
    assert text == words(quantity(value, "FLOP/s"))


@pytest.mark.parametrize(
    ("value", "text"), [(80 * 2**30, "80.0 GiB"), (512, "512 B"), (2**40 * 1.5, "1.50 TiB")]
)
def test_binary(value: float, text: str) -> None:
    """Memory has binary prefixes."""
    assert text == words(binary(value))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (34.9, "34 s"), (300, "5 min"), (9000, "2 h"), (200_000, "2 days")],
)
def test_span(seconds: float, text: str) -> None:
    """The largest unit that still says enough."""
    assert text == words(span(seconds))


def test_small_words() -> None:
    """Clocks with a separator, nouns in the right number."""
    assert megahertz(1.2e9) == "1,200"
    assert words(count(1, "error")) == "1 error"
    assert words(count(2, "mismatch", "mismatches")) == "2 mismatches"
