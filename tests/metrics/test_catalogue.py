"""The catalogue follows the conventions, and the documentation matches it."""

import re
from pathlib import Path

import pytest

from exporter.documentation import metrics_page
from exporter.metrics.catalogue import CATALOGUE
from exporter.metrics.family import Family, MetricType


ROOT = Path(__file__).parents[2]
BASE_UNITS = {
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_bytes_per_second": "bytes/s",
    "_hertz": "hertz",
    "_watts": "watts",
    "_joules": "joules",
    "_celsius": "celsius",
    "_ratio": "ratio",
    "_flops": "FLOP/s",
}
FORBIDDEN = re.compile(r"_(mhz|percent|teraflops|tflops|mib|kb|ms|milliseconds|count|sum|bucket)\b")


@pytest.mark.parametrize("family", CATALOGUE, ids=lambda family: family.name)
def test_conventions(family: Family) -> None:
    """Prefix, characters, suffix by type, base units, a meaningful help text."""
    # The process metrics have the names of Prometheus' client libraries.
    assert re.fullmatch(r"(flopwatch|process|python_gc)_[a-z][a-z0-9_]*", family.name)
    assert (family.type is MetricType.COUNTER) == family.name.endswith("_total")
    assert not FORBIDDEN.search(family.name)
    base = family.name.removesuffix("_total")
    for suffix, unit in sorted(BASE_UNITS.items(), key=lambda item: -len(item[0])):
        if base.endswith(suffix):
            assert family.unit == unit
            break
    assert family.help.endswith(".") or family.name.startswith("python_gc_")
    assert family.interpretation.endswith((".", "?", "`.")) or family.interpretation.endswith("`.")
    assert (family.type is MetricType.HISTOGRAM) == bool(family.buckets)
    assert len(set(family.label_names)) == len(family.label_names)


def test_names_are_unique() -> None:
    """A family is declared once."""
    assert len({family.name for family in CATALOGUE}) == len(CATALOGUE)


def test_the_page_is_generated_from_the_catalogue() -> None:
    """docs/metrics.md matches the catalogue (`make generate` writes it)."""
    assert (ROOT / "docs/metrics.md").read_text() == metrics_page()
