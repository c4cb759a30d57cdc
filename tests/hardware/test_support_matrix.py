"""docs/support-matrix.md."""

from pathlib import Path

from benchmarks.support_matrix import support_page


ROOT = Path(__file__).parents[2]


def test_the_page_is_fresh() -> None:
    """`python -m benchmarks.support_matrix > docs/support-matrix.md` generates it."""
    assert (ROOT / "docs/support-matrix.md").read_text() == support_page()


def test_every_model_has_its_row() -> None:
    """989.4 TFLOP/s at 1830 MHz for an H100 SXM; a T4 has FP16 and no BF16."""
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in support_page().splitlines()}

    h100 = [cell.strip() for cell in rows["H100 SXM5 80GB"].split("|")]
    assert h100[4:9] == ["132", "1980 / 1830", "66.9", "66.9", "989.4"]
    t4 = [cell.strip() for cell in rows["T4"].split("|")]
    assert t4[8:10] == ["65", ""]
