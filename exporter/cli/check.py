"""`flopwatch check`: what works on this host, what does not, and how to fix it."""

import argparse
import json
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from exporter.cli.config import add_config_flags, config_origin, load_startable
from exporter.errors import FlopwatchError


if TYPE_CHECKING:
    from exporter.check import Report

_COLOURS = {"ok": "32", "note": "36", "warning": "33", "failure": "1;31"}
_WIDTH = 100


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
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
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the findings. Returns 0 if nothing failed, else 1."""
    from exporter.check.doctor import examine
    from exporter.config.load import ConfigOrigin, load_config
    from exporter.logging_setup import set_up_logging

    set_up_logging("error", "logfmt")
    mistakes: tuple[str, ...] = ()
    try:
        config = load_startable(config_origin(parsed))
    except FlopwatchError as error:
        mistakes = tuple(str(error).splitlines())
        config = load_config(ConfigOrigin(file=None, flags={}, environment={}))
    report = examine(config, mistakes)
    if parsed.json:
        print(json.dumps(report.document(), indent=2))
    else:
        print_table(report, colour=sys.stdout.isatty())
    return 0 if report.healthy else 1


def print_table(report: "Report", *, colour: bool) -> None:
    """Print one line per finding, with its remedy below."""
    area_width = max(len(finding.area) for finding in report.findings)
    indent = " " * (len("warning") + area_width + 4)
    for finding in report.findings:
        level = f"{finding.level.value:<7}"
        if colour:
            level = f"\x1b[{_COLOURS[finding.level.value]}m{level}\x1b[0m"
        lines = textwrap.wrap(finding.text, _WIDTH - len(indent)) or [""]
        print(f"{level}  {finding.area:<{area_width}}  {lines[0]}")
        for line in lines[1:]:
            print(indent + line)
        for line in textwrap.wrap(f"-> {finding.remedy}", _WIDTH - len(indent)):
            if finding.remedy is not None:
                print(indent + line)
