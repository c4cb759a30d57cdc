"""`flopwatch config`, and the configuration flags that it shares with other commands."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from exporter.config.load import CONFIG_FILE_VARIABLE, ConfigOrigin, load_config
from exporter.config.model import SCHEMA, Config


# Options that a bare flag enables, and options that may be repeated.
_SWITCHES = frozenset({"--web.enable-lifecycle", "--web.systemd-socket"})
_REPEATED = frozenset({"--web.listen-address"})


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
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
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the configuration."""
    if parsed.markdown:
        from exporter.documentation import configuration_page

        print(configuration_page(), end="")
        return 0
    config = load_startable(config_origin(parsed))
    for variable in config.unknown_variables:
        print(f"flopwatch: warning: {variable.name} {variable.remark}", file=sys.stderr)
    if parsed.check:
        return 0
    import yaml

    values = config.values
    print(yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True), end="")
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
        # argparse interprets percent signs.
        help_ = f"{option.help} Default: {_shown(option.default)}.".replace("%", "%%")
        if option.flag in _SWITCHES:
            parser.add_argument(
                option.flag, dest=path, action="store_true", default=None, help=option.help
            )
        else:
            action = "append" if option.flag in _REPEATED else "store"
            metavar = path.rpartition(".")[2].upper()
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


def load_startable(origin: ConfigOrigin) -> Config:
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
