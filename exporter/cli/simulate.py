"""`flopwatch simulate`: serve a simulated fleet."""

import argparse
import math
import signal
import sys
import threading
import time
from typing import Any


_DEFAULT_ADDRESS = "127.0.0.1:9908"
_GRACE_SECONDS = 0.5
_SHORTEST_SECONDS = 0.01


def add_simulate(subparsers: Any) -> None:
    """Register `flopwatch simulate`."""
    from exporter.simulate.scenarios import SCENARIOS

    width = max(map(len, SCENARIOS)) + 2
    listed = "\n".join(
        f"  {name:{width}}{scenario.summary}" for name, scenario in SCENARIOS.items()
    )
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "simulate",
        help="serve a simulated fleet",
        description="Serve a fleet of simulated GPUs: /hosts/<name>/metrics for each host, /sd for Prometheus's\n"
        "HTTP service discovery. Only the readings are simulated.",
        epilog=f"scenarios:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", type=_positive, default=2, help="hosts per scenario (default 2)")
    parser.add_argument("--gpus", type=_positive, default=8, help="GPUs per host (default 8)")
    parser.add_argument(
        "--scenario",
        action="append",
        metavar="NAME",
        help="scenario to simulate (default steady-decode); repeat for several, each in its own cluster; `all` for all",
    )
    parser.add_argument(
        "--listen-address",
        "--web.listen-address",
        dest="listen_address",
        default=_DEFAULT_ADDRESS,
        metavar="ADDRESS",
        help=f"addresses to listen on: one, or several separated by commas (default {_DEFAULT_ADDRESS})",
    )
    parser.add_argument("--seed", type=int, default=1, help="same seed, same fleet (default 1)")
    parser.add_argument(
        "--pace",
        type=_factor,
        default=1.0,
        help="speed of the scenario's clock (default 1): at 60, its hours pass in minutes",
    )
    parser.add_argument(
        "--pull",
        type=_pull,
        action="append",
        default=[],
        metavar="LEVER=DURATION",
        help="pull a lever at this time after the start, on the scenario's clock (scenarios serving-*): "
        "larger_batch=30m; repeat for several. `flopwatch advise --url` of a host shows the prediction "
        "and, ten stable minutes later, the outcome",
    )
    parser.add_argument(
        "--tick", type=_duration, default=1.0, metavar="DURATION", help="sampling tick (default 1s)"
    )
    parser.add_argument(
        "--history",
        type=_duration,
        metavar="DURATION",
        help="write this much history to standard output as OpenMetrics, for promtool, and exit",
    )
    parser.add_argument(
        "--step",
        type=_duration,
        default=15.0,
        metavar="DURATION",
        help="time between the samples of --history (default 15s)",
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Serve until terminated, or write the history."""
    from exporter.logging_setup import set_up_logging
    from exporter.simulate.host import FleetPlan, Pull, Timing, build_fleet, find_scenarios, history

    set_up_logging("info", "auto")
    scenarios = find_scenarios(parsed.scenario or ["steady-decode"])
    pulls = tuple(Pull(lever, seconds) for lever, seconds in parsed.pull)
    plan = FleetPlan(scenarios, parsed.hosts, parsed.gpus, parsed.seed, pulls)
    now = time.time()
    began = now if parsed.history is None else now - parsed.history
    hosts = build_fleet(plan, Timing(began, parsed.tick, parsed.pace))
    if parsed.history is not None:
        for line in history(hosts, begins=began, ends=now, step_seconds=parsed.step):
            sys.stdout.write(line)
        return 0
    return _serve(parsed.listen_address.split(","), hosts)


def _serve(addresses: list[str], hosts: Any) -> int:
    from exporter.simulate.host import fleet_limits, fleet_router
    from exporter.web.server import Server

    server = Server(
        [address.strip() for address in addresses], fleet_router(hosts), limits=fleet_limits(hosts)
    )
    server.start()
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ending.set())
    host, port = server.addresses[0]
    print(f"simulating {len(hosts)} hosts at http://{host}:{port}/sd", flush=True)
    ending.wait()
    server.close(_GRACE_SECONDS)
    return 0


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value


def _pull(text: str) -> tuple[str, float]:
    """The lever and the seconds in a value such as `larger_batch=30m`."""
    from exporter.simulate.engine import ENGINE_LEVERS, GPU_LEVERS

    lever, _, after = text.partition("=")
    known = (*ENGINE_LEVERS, *GPU_LEVERS)
    if lever not in known:
        raise argparse.ArgumentTypeError(
            f"'{lever}' is not a lever that can be pulled here; known: {', '.join(known)}"
        )
    if not after:
        raise argparse.ArgumentTypeError(f"'{text}' has no time; for example {lever}=30m")
    return lever, _duration(after)


def _duration(text: str) -> float:
    """The seconds in a duration such as `250ms`, `15s`, `2h`, `1d`."""
    from flopwatch.option_parsers import duration

    try:
        return float(duration(at_least=_SHORTEST_SECONDS)(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
