"""`flopwatch top`: the status of a daemon in the terminal."""

import argparse
import contextlib
import getpass
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from exporter.errors import FlopwatchError


if TYPE_CHECKING:
    from rich.console import Console

    from exporter.cli.remote import Access
    from exporter.status.document import Status

_DEFAULT_URL = "http://127.0.0.1:9907"
_PASSWORD_VARIABLE = "FLOPWATCH_PASSWORD"  # noqa: S105  the name of a variable
_INTERVAL_MIN = 0.2


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "top",
        help="show what each GPU delivers, live in the terminal",
        description="Show the status page of a local or remote daemon in the terminal. Ctrl-C ends it.",
    )
    parser.add_argument(
        "--url", default=_DEFAULT_URL, metavar="URL", help=f"the daemon (default {_DEFAULT_URL})"
    )
    parser.add_argument("--once", action="store_true", help="print the status once and exit")
    parser.add_argument(
        "--interval",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="time between two refreshes (default 2)",
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help=f"user name; the password is taken from {_PASSWORD_VARIABLE}, or asked for",
    )
    parser.add_argument("--ca-file", metavar="FILE", help="certificates to trust for https, in PEM")
    parser.add_argument(
        "--insecure", action="store_true", help="accept any certificate from the daemon"
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Show the status until Ctrl-C, or once if requested or if the output is not a terminal."""
    from rich.console import Console

    from exporter.cli.remote import Access, fetch_status

    if not parsed.interval >= _INTERVAL_MIN:
        raise FlopwatchError(f"--interval must be at least {_INTERVAL_MIN} seconds")
    access = Access(
        url=parsed.url,
        user=parsed.user,
        password=_password(parsed.user),
        ca_file=parsed.ca_file,
        verify=not parsed.insecure,
    )
    console = Console(highlight=False)
    status = fetch_status(access)
    if parsed.once or not console.is_terminal:
        from exporter.status.terminal import render

        console.print(render(status, width=console.width))
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        _follow(console, access, status, parsed.interval)
    return 0


def _password(user: str | None) -> str | None:
    given = os.environ.get(_PASSWORD_VARIABLE)
    if user is None or given is not None or not sys.stdin.isatty():
        return given
    return getpass.getpass(f"Password of {user}: ")


def _follow(console: "Console", access: "Access", status: "Status", interval: float) -> None:
    """Refresh the view. If the daemon is unreachable, keep its last status, with a line on top."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from exporter.cli.remote import StatusError, fetch_status
    from exporter.status.terminal import plain, render

    with Live(console=console, screen=True, auto_refresh=False) as live:
        trouble = ""
        while True:
            notice = [Text(plain(trouble), "bold red", no_wrap=True)] if trouble else []
            height = max(1, console.height - len(notice))
            picture = render(status, width=console.width, height=height)
            live.update(Group(*notice, picture), refresh=True)
            time.sleep(interval)
            try:
                status = fetch_status(access)
                trouble = ""
            except StatusError as error:
                trouble = f"{error}; trying again"
