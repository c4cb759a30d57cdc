"""Whether memory, descriptors and threads stay constant, however long the daemon runs.

    python -m benchmarks.soak                                # 30 days of ticks in one process, on a simulated clock
    python -m benchmarks.soak --days 0 --daemon-minutes 20   # and the real daemon at ten ticks a second (make soak)

Everything that churns on a node churns here, faster: processes, pods, engines, MIG instances, XIDs, lost
GPUs, reloads, scrapers. Each scrape of the daemon is compared with those before it: no counter decreases, no
series is duplicated, the states of a GPU sum to the time that passed without its gaps, nothing is stale.
"""

import argparse
import gc
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import structlog

from benchmarks.programs import descriptors, memory, threads
from benchmarks.soak_daemon import soak_daemon
from benchmarks.soak_host import Played, SoakedHost
from benchmarks.soak_node import SLOW_TICKS
from benchmarks.soak_watch import BrokenPromiseError, Growth, Usage
from exporter.metrics.layout import Format
from exporter.metrics.render import Exposition


DAY_TICKS = 86_400
# 256 removed MIG instances are remembered, and one is removed every hour: after eleven days all
# bounds are reached. A shorter run is judged after its first fifth.
_WARM_UP_TICKS = 11 * DAY_TICKS
_WARM_UP_SHARE = 0.2


def soak_accounts(
    ticks: int,
    directory: Path,
    seed: int = 1,
    each_day: Callable[[Usage], None] = lambda _usage: None,
) -> tuple[Growth, Played]:
    """All of the daemon but the sampling, for this many ticks of one GPU, on a simulated clock.

    `each_day` gets the usage after each day.
    """
    node = SoakedHost(random.Random(seed), directory)
    exposition = Exposition(
        node.parts,
        series_limit=lambda: 20_000,
        state=node.state,
        extra_labels=node.extra_labels,
        clock=lambda: node.seconds,
    )
    warm = _WARM_UP_TICKS if ticks > 2 * _WARM_UP_TICKS else int(_WARM_UP_SHARE * ticks)
    before = None
    for tick in range(ticks):
        node.tick()
        if tick % SLOW_TICKS == 0:
            exposition.render(Format.OPENMETRICS, compressed=True)
        if tick == warm:
            before = _usage()
        if (tick + 1) % DAY_TICKS == 0:
            each_day(_used(node, exposition, directory))
    assert before is not None
    after = _usage()
    grown = Growth(before[0], after[0], before[1], after[1], before[2], after[2])
    return grown, node.played


def _used(node: SoakedHost, exposition: Exposition, directory: Path) -> Usage:
    text = exposition.render(Format.OPENMETRICS, compressed=False)
    series = sum(1 for line in text.splitlines() if not line.startswith(b"#"))
    return Usage(
        node.ticks / DAY_TICKS, *_usage(), (directory / "state.json").stat().st_size, series
    )


def _usage() -> tuple[int, int, int]:
    gc.collect()
    pid = os.getpid()
    return memory(pid, "fake-nvml-control").own, descriptors(pid), threads(pid)


def main() -> int:
    """Soak and report the growth; 1 when it was too much, or when a scrape was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--days", type=float, default=30.0, help="simulated days of ticks")
    parser.add_argument("--daemon-minutes", type=float, default=0.0)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    failed = False
    if options.days:
        with tempfile.TemporaryDirectory() as directory:
            grown, played = soak_accounts(
                int(options.days * DAY_TICKS),
                Path(directory),
                each_day=lambda used: print(used, flush=True),
            )
        print(f"played: {played}")
        print(f"{options.days:g} days of ticks: {grown}", flush=True)
        failed |= grown.is_leak
    if options.daemon_minutes:
        with tempfile.TemporaryDirectory() as directory:
            try:
                grown = soak_daemon(
                    60 * options.daemon_minutes,
                    Path(directory),
                    report=lambda line: print(line, flush=True),
                )
            except BrokenPromiseError as error:
                print(f"a scrape was wrong: {error}")
                return 1
        print(f"{options.daemon_minutes:g} minutes of the daemon: {grown}")
        failed |= grown.is_leak
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
