"""`flopwatch metrics`: the catalogue of metrics."""

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "metrics",
        help="list the metrics",
        description="List every metric that the exporter can expose.",
    )
    parser.add_argument("--markdown", action="store_true", help="print docs/metrics.md instead")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the catalogue."""
    from exporter.documentation import metrics_page
    from exporter.metrics.catalogue import CATALOGUE

    if parsed.markdown:
        print(metrics_page(), end="")
        return 0
    width = max(len(family.name) for family in CATALOGUE)
    for family in CATALOGUE:
        print(f"{family.name:<{width}}  {family.type:<9}  {family.unit or '-':<8}  {family.help}")
    return 0
