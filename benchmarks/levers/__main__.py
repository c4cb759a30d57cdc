"""Prints how predictions of levers compare with a simulated engine, published figures, a real engine.

    python -m benchmarks.levers [--workloads N] [--seed N] [--no-engine | --only-engine]

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
    parser.add_argument("--only-engine", action="store_true", help="llama.cpp alone")
    parser.add_argument("--experiment", help="of llama.cpp: first, second, third or fourth")
    options = parser.parse_args()
    missed: list[str] = []
    if not options.only_engine:
        missed += _simulated(options.workloads, options.seed) + _published()
    if not options.no_engine:
        missed += _engine(options.experiment)
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0


def _simulated(workloads: int, seed: int) -> list[str]:
    print(f"a simulated engine, {workloads} random workloads with a queue", flush=True)
    outcome = simulated.compare(workloads, seed)
    print(simulated.table(outcome), flush=True)
    return simulated.missed(outcome, inside=INSIDE, best=BEST, width=WIDTH)


def _published() -> list[str]:
    print("\nH100 under a power cap, predicted from its row at 700 W", flush=True)
    caps = published.rows()
    print(published.table(caps), flush=True)
    return [
        f"{row.workload} at {row.cap_watts} W: error {row.error:+.1%}"
        for row in caps
        if row.cap_watts in published.JUDGED_WATTS and abs(row.error) > PUBLISHED_ERROR
    ]


def _engine(only: str | None) -> list[str]:
    from benchmarks.engine_accuracy.environments import llama_server
    from benchmarks.levers import engine

    missed = []
    binaries = llama_server().parent
    for name, experiment in engine.EXPERIMENTS.items():
        if only not in {None, name}:
            continue
        print(f"\nllama.cpp on this processor, one thread: {experiment.title}", flush=True)
        with tempfile.TemporaryDirectory(prefix="flopwatch-levers-") as folder:
            found = engine.rows(binaries, Path(folder), experiment)
        print(engine.table(found), flush=True)
        missed += [
            f"{row.change}: error {row.error:+.1%}"
            for row in found
            if row.error is not None and abs(row.error) > ENGINE_ERROR
        ]
    return missed


if __name__ == "__main__":
    sys.exit(main())
