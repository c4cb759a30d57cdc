"""Flags that several subcommands share, and how they reach the configuration."""

import argparse
import os
from pathlib import Path

from exporter.config.load import CONFIG_FILE_VARIABLE, ConfigOrigin, load_config
from exporter.config.model import SCHEMA, Config


# Options that a bare flag switches on, and those that may be given several times.
_SWITCHES = frozenset({"--web.enable-lifecycle", "--web.systemd-socket"})
_REPEATED = frozenset({"--web.listen-address"})


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command with a configuration has."""
    parser.add_argument(
        "--config.file",
        dest="config_file",
        metavar="FILE",
        help=f"configuration in YAML (default: none; environment {CONFIG_FILE_VARIABLE})",
    )
    for path, option in SCHEMA.options():
        if option.flag is None:
            continue
        # Percent signs are argparse's own.
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
    """Where the configuration comes from, by the flags that were given."""
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
    """The configuration, with everything checked that `serve` would refuse to start with.

    Raises FlopwatchError. What a host can change by itself, such as a port in use, is not looked at.
    """
    config = load_config(origin)
    if config.web.config_file:
        from exporter.web.config import load_web_config

        load_web_config(Path(config.web.config_file))
    return config


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "none" if default is None else str(default)
