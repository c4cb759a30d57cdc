"""Prints how predictions of levers compare with a simulated engine, published figures, a real engine.

    python -m benchmarks.levers [--workloads N] [--seed N] [--no-engine]

Fails if a bound of the predictions is missed (docs/levers.md).
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.levers import published, simulated


INSIDE, BEST, WIDTH = 0.90, 0.90, 0.25
PUBLISHED_ERROR, ENGINE_ERROR = 0.10, 0.20


def main() -> int:
    """Print the three tables; 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=int, default=200, help="simulated (default 200)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-engine", action="store_true", help="leave llama.cpp out")
    options = parser.parse_args()
    missed: list[str] = []

    print(f"a simulated engine, {options.workloads} random workloads with a queue", flush=True)
    outcome = simulated.compare(options.workloads, options.seed)
    print(simulated.table(outcome), flush=True)
    missed += simulated.missed(outcome, inside=INSIDE, best=BEST, width=WIDTH)

    print("\nH100 under a power cap, predicted from its row at 700 W", flush=True)
    caps = published.rows()
    print(published.table(caps), flush=True)
    missed += [
        f"{row.workload} at {row.cap_watts} W: error {row.error:+.1%}"
        for row in caps
        if row.cap_watts in published.JUDGED_WATTS and abs(row.error) > PUBLISHED_ERROR
    ]

    if not options.no_engine:
        missed += _engine()
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0


def _engine() -> list[str]:
    from benchmarks.engine_accuracy.environments import llama_server
    from benchmarks.levers import engine

    print("\nllama.cpp on this processor, one thread, predicted from batch 1 in bf16", flush=True)
    with tempfile.TemporaryDirectory(prefix="flopwatch-levers-") as folder:
        found = engine.rows(llama_server().parent, Path(folder))
    print(engine.table(found), flush=True)
    return [
        f"{row.change}: error {row.error:+.1%}" for row in found if abs(row.error) > ENGINE_ERROR
    ]


if __name__ == "__main__":
    sys.exit(main())
