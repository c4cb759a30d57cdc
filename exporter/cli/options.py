"""Flags that several subcommands share, and how they reach the configuration."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.config.load import CONFIG_FILE_VARIABLE, ConfigOrigin


if TYPE_CHECKING:
    from exporter.config.model import Config


# Flag, path of the configuration key that it sets, argparse arguments.
_FLAGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "--web.listen-address",
        "web.listen_address",
        {
            "action": "append",
            "metavar": "ADDRESS",
            "help": "address to listen on, several allowed (default :9907)",
        },
    ),
    (
        "--web.telemetry-path",
        "web.telemetry_path",
        {"metavar": "PATH", "help": "path of the metrics (default /metrics)"},
    ),
    (
        "--web.config.file",
        "web.config_file",
        {"metavar": "FILE", "help": "TLS and authentication, in exporter-toolkit's format"},
    ),
    (
        "--web.enable-lifecycle",
        "web.enable_lifecycle",
        {
            "action": "store_true",
            "default": None,
            "help": "allow POST /-/reload and /-/probes/pause|resume",
        },
    ),
    (
        "--log.level",
        "log.level",
        {"metavar": "LEVEL", "help": "debug, info (default), warning or error"},
    ),
    (
        "--log.format",
        "log.format",
        {"metavar": "FORMAT", "help": "auto (default), console, logfmt or json"},
    ),
)


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command with a configuration has."""
    parser.add_argument(
        "--config.file",
        dest="config_file",
        metavar="FILE",
        help=f"configuration in YAML (default: none; environment {CONFIG_FILE_VARIABLE})",
    )
    for flag, path, arguments in _FLAGS:
        parser.add_argument(flag, dest=path, **arguments)


def config_origin(parsed: argparse.Namespace) -> ConfigOrigin:
    """Where the configuration comes from, by the flags that were given."""
    environment = dict(os.environ)
    given = vars(parsed)
    return ConfigOrigin(
        file=parsed.config_file or environment.get(CONFIG_FILE_VARIABLE) or None,
        flags={
            path: (flag, given[path])
            for flag, path, _arguments in _FLAGS
            if given[path] is not None
        },
        environment=environment,
    )


def load_startable(origin: ConfigOrigin) -> "Config":
    """The configuration, with everything checked that `serve` would refuse to start with.

    Raises FlopwatchError. What a host can change by itself, such as a port in use, is not looked at.
    """
    from exporter.config.load import load_config
    from exporter.errors import ConfigError, ListenError
    from exporter.web.addresses import parse_listen_address
    from exporter.web.config import load_web_config

    config = load_config(origin)
    mistakes = []
    for address in config.web.listen_address:
        try:
            parse_listen_address(address)
        except ListenError as error:
            mistakes.append(f"web.listen_address: {error}")
    if mistakes:
        raise ConfigError(mistakes)
    if config.web.config_file:
        load_web_config(Path(config.web.config_file))
    return config
