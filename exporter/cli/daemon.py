"""The commands of the daemon itself: `serve`, `check`, `config`, `metrics`, and its configuration flags."""

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import Any

from exporter.config.load import CONFIG_FILE_VARIABLE, ConfigOrigin, load_config
from exporter.config.model import SCHEMA, Config
from exporter.errors import FlopwatchError


# Options that a bare flag enables, and options that may be repeated.
_SWITCHES = frozenset({"--web.enable-lifecycle", "--web.systemd-socket"})
_REPEATED = frozenset({"--web.listen-address"})
# The last log lines are for readers that still read; a stuck reader is not waited for.
_LOG_GRACE_SECONDS = 0.3


def add_serve(subparsers: Any) -> None:
    """Register `flopwatch serve`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve", help="run the exporter", description="Sample the devices and serve the metrics."
    )
    add_config_flags(parser)
    parser.set_defaults(run=_serve)


def _serve(parsed: argparse.Namespace) -> int:
    """Serve until terminated."""
    import structlog

    from exporter.logging_setup import set_up_logging

    origin = config_origin(parsed)
    config = _startable(origin)
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


def add_check(subparsers: Any) -> None:
    """Register `flopwatch check`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "check",
        help="examine this host and configuration: what works, and what to do about the rest",
        description=(
            "Examine driver, GPUs, torch, sockets, files and services. Exit code 1 if something "
            "that the daemon needs fails."
        ),
    )
    add_config_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_check)


def _check(parsed: argparse.Namespace) -> int:
    """Print the findings. Returns 0 if nothing failed, else 1."""
    import json

    from exporter.check.doctor import examine, report_lines
    from exporter.logging_setup import set_up_logging

    set_up_logging("error", "logfmt")
    mistakes: tuple[str, ...] = ()
    try:
        config = _startable(config_origin(parsed))
    except FlopwatchError as error:
        mistakes = tuple(str(error).splitlines())
        config = load_config(ConfigOrigin(file=None, flags={}, environment={}))
    report = examine(config, mistakes)
    if parsed.json:
        print(json.dumps(report.document(), indent=2))
    else:
        print("\n".join(report_lines(report, colour=sys.stdout.isatty())))
    return 0 if report.healthy else 1


def add_config(subparsers: Any) -> None:
    """Register `flopwatch config`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "config",
        help="check the configuration and print the effective configuration",
        description="Print the effective configuration as YAML, or its documentation.",
    )
    add_config_flags(parser)
    parser.add_argument(
        "--markdown", action="store_true", help="print docs/configuration.md instead"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="print nothing: the exit code says whether serve would start with it",
    )
    parser.set_defaults(run=_config)


def _config(parsed: argparse.Namespace) -> int:
    """Print the configuration."""
    if parsed.markdown:
        from exporter.documentation import configuration_page

        print(configuration_page(), end="")
        return 0
    config = _startable(config_origin(parsed))
    for variable in config.unknown_variables:
        print(f"flopwatch: warning: {variable.name} {variable.remark}", file=sys.stderr)
    if not parsed.check:
        import yaml

        text = yaml.safe_dump(_plain(config.values), sort_keys=False, allow_unicode=True)
        print(text, end="")
    return 0


def add_metrics(subparsers: Any) -> None:
    """Register `flopwatch metrics`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "metrics",
        help="list the metrics",
        description="List every metric that the exporter can expose.",
    )
    parser.add_argument("--markdown", action="store_true", help="print docs/metrics.md instead")
    parser.set_defaults(run=_metrics)


def _metrics(parsed: argparse.Namespace) -> int:
    """Print the catalogue of metrics."""
    from exporter.documentation import metrics_page
    from exporter.metrics.catalogue import CATALOGUE

    if parsed.markdown:
        print(metrics_page(), end="")
        return 0
    width = max(len(family.name) for family in CATALOGUE)
    for family in CATALOGUE:
        print(f"{family.name:<{width}}  {family.type:<9}  {family.unit or '-':<8}  {family.help}")
    return 0


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags shared by all commands that read a configuration."""
    parser.add_argument(
        "--config.file",
        dest="config_file",
        metavar="FILE",
        help=f"configuration in YAML (default: none; environment {CONFIG_FILE_VARIABLE})",
    )
    for path, option in SCHEMA.options():
        if option.flag is None:
            continue
        if option.flag in _SWITCHES:
            parser.add_argument(
                option.flag, dest=path, action="store_true", default=None, help=option.help
            )
        else:
            action = "append" if option.flag in _REPEATED else "store"
            metavar = path.rpartition(".")[2].upper()
            # argparse interprets percent signs.
            help_ = f"{option.help} Default: {_shown(option.default)}.".replace("%", "%%")
            parser.add_argument(option.flag, dest=path, action=action, metavar=metavar, help=help_)


def config_origin(parsed: argparse.Namespace) -> ConfigOrigin:
    """The source of the configuration, from the given flags."""
    environment = dict(os.environ)
    given = vars(parsed)
    return ConfigOrigin(
        file=parsed.config_file or environment.get(CONFIG_FILE_VARIABLE) or None,
        flags={
            path: (option.flag, given[path])
            for path, option in SCHEMA.options()
            if option.flag is not None and given[path] is not None
        },
        environment=environment,
    )


def _startable(origin: ConfigOrigin) -> Config:
    """The configuration, after all checks that could make `serve` refuse to start.

    Raises FlopwatchError. Conditions of the host that can change, such as a port in use, are not
    checked.
    """
    config = load_config(origin)
    if config.web.config_file:
        from exporter.web.config import load_web_config

        load_web_config(Path(config.web.config_file))
    return config


def _plain(value: Any) -> Any:
    """The value with tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "none" if default is None else str(default)
