"""Serves a tiny model with real engines and compares flopwatch with the truth, token by token.

    python -m benchmarks.engine_accuracy [--groups NAME,...] [--document]

Two of flopwatch's workloads watch each engine, at intervals of 1 and of 15 seconds. The truth is
what the engine's own scheduler put into each forward pass. Fails above the bounds: tokens exact,
FLOPs within 1 % over a minute and 3 % over less, bytes within 5 %.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.engine_accuracy.cases import names, run_group
from benchmarks.engine_accuracy.report import Row, failures, table, write_document


def main(arguments: list[str] | None = None) -> int:
    """Run the cases, print the table, and return 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", default=",".join(names()), help="of: " + ", ".join(names()))
    parser.add_argument("--document", action="store_true", help="write docs/accuracy-engines.md")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for group in options.groups.split(","):
        with tempfile.TemporaryDirectory(prefix="flopwatch-engines-") as folder:
            for row in run_group(group, Path(folder)):
                rows.append(row)
                print(table([row], head=len(rows) == 1), flush=True)
    missed = failures(rows)
    for line in missed:
        print(f"above its bound: {line}")
    if options.document:
        write_document(rows)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
