"""`flopwatch serve`: run the daemon."""

import argparse
import gc
from typing import Any

from exporter.cli.config import add_config_flags, config_origin, load_startable


# The last log lines are for readers that still read; a stuck reader is not waited for.
_LOG_GRACE_SECONDS = 0.3


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve", help="run the exporter", description="Sample the devices and serve the metrics."
    )
    add_config_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Serve until terminated."""
    import structlog

    from exporter.logging_setup import set_up_logging

    origin = config_origin(parsed)
    config = load_startable(origin)
    log_writer = set_up_logging(config.log_level, config.log_format)
    for variable in config.unknown_variables:
        structlog.get_logger(__name__).warning(
            "environment_variable_unknown", name=variable.name, nearest=variable.nearest
        )
    from exporter.early_start import EarlyStart

    early = EarlyStart(config)
    early.begin()
    # Loaded while the samplers wait for their first windows.
    from exporter.app import Daemon, end_process

    daemon = Daemon(config, origin, early, log_lines_dropped=lambda: log_writer.dropped)
    # Everything loaded so far stays: the garbage collector need not scan it every few seconds.
    gc.freeze()
    gc.enable()
    code = daemon.run()
    log_writer.drain(_LOG_GRACE_SECONDS)
    end_process(code)
    return code
