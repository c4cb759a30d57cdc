"""`flopwatch config`: check the configuration and print the effective configuration."""

import argparse
from typing import Any

from exporter.cli.options import add_config_flags, config_origin, load_startable


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
        from exporter.config.documentation import configuration_page

        print(configuration_page(), end="")
        return 0
    config = load_startable(config_origin(parsed))
    if parsed.check:
        return 0
    import yaml

    values = config.values
    print(yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True), end="")
    return 0


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
