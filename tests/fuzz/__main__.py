"""Corrupts inputs for a given time: `python -m tests.fuzz --minutes 30 [--target config]`.

Inputs that break a parser are written to tests/fuzz/findings, and the tests run them again.
"""

import argparse
import hashlib
import random
import sys
import time
import traceback

import structlog

from tests.fuzz.edits import EDITS_MAX, LENGTH_MAX, TOKENS, Edit, Kind, spoil
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.test_parsers import FINDINGS


_REPORT_SECONDS = 10.0


def edits(source: random.Random) -> list[Edit]:
    """A few random edits."""
    return [
        Edit(
            source.choice(list(Kind)),
            source.random(),
            source.randint(0, LENGTH_MAX),
            source.choice(TOKENS) if source.random() < 0.7 else source.randbytes(8),
        )
        for _ in range(source.randint(1, EDITS_MAX))
    ]


def break_one(target: Target, source: random.Random) -> bool:
    """Run one corrupted input; True when it broke the parser."""
    data = spoil(source.choice(target.seeds), edits(source))
    try:
        target.run(data)
    except Exception:
        digest = hashlib.sha256(data).hexdigest()[:12]
        finding = FINDINGS / f"{target.name}-{digest}.bin"
        finding.parent.mkdir(exist_ok=True)
        finding.write_bytes(data)
        print(f"{finding}:\n{traceback.format_exc()}", file=sys.stderr)
        return True
    return False


def main() -> int:
    """Corrupt inputs until the time is up; 1 when anything broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    parser.add_argument("--seed", type=int, default=None, help="to run the same inputs again")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    seed = options.seed if options.seed is not None else time.time_ns()
    print(f"seed {seed}")
    source = random.Random(seed)
    targets = [TARGETS[name] for name in options.target or TARGETS]
    began = reported = time.monotonic()
    count = broken = 0
    while (now := time.monotonic()) < began + 60 * options.minutes:
        for target in targets:
            broken += break_one(target, source)
            count += 1
        if now - reported > _REPORT_SECONDS:
            reported = now
            print(f"{now - began:6.0f} s  {count} inputs, {broken} broke a parser", flush=True)
    print(f"{count} inputs, {broken} broke a parser")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
