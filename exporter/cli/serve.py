"""`flopwatch serve`: run the daemon."""

import argparse
import gc
from typing import Any

from exporter.cli.options import add_config_flags, config_origin


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve", help="run the exporter", description="Sample the devices and serve the metrics."
    )
    add_config_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Serve until told to end."""
    from exporter.config.load import load_config
    from exporter.logging_setup import set_up_logging

    origin = config_origin(parsed)
    config = load_config(origin)
    set_up_logging(config.log_level, config.log_format)
    from exporter.daemon import Daemon, end_process

    daemon = Daemon(config, origin)
    # What was loaded so far stays: the collector need not look at it again every few seconds.
    gc.collect()
    gc.freeze()
    code = daemon.run()
    end_process(code)
    return code
