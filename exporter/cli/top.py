"""`flopwatch top`: the status of a daemon in the terminal; and how commands read a daemon's documents."""

import argparse
import contextlib
import getpass
import os
import ssl
import sys
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

from exporter.errors import FlopwatchError, Reason, ScrapeError
from exporter.http_client import fetch
from exporter.status.document import API_VERSION, STATUS_PATH, Status


if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_URL = "http://127.0.0.1:9907"
_PASSWORD_VARIABLE = "FLOPWATCH_PASSWORD"  # noqa: S105  the name of a variable
_INTERVAL_MIN = 0.2
# 64 devices make 400 kB.
_LIMIT_BYTES = 16 * 1024 * 1024

_Document = TypeVar("_Document")


class DocumentError(FlopwatchError):
    """The document could not be read; the message names the daemon and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a daemon. `password` is not shown in messages."""

    url: str
    user: str | None = None
    password: str | None = None
    ca_file: str | None = None
    verify: bool = True
    timeout_seconds: float = 5.0


class _Version(msgspec.Struct):
    api_version: int = 0


def add_top(subparsers: Any) -> None:
    """Register `flopwatch top`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "top",
        help="show what each GPU delivers, live in the terminal",
        description="Show the status page of a local or remote daemon in the terminal. Ctrl-C ends it.",
    )
    parser.add_argument(
        "--url", default=DEFAULT_URL, metavar="URL", help=f"the daemon (default {DEFAULT_URL})"
    )
    parser.add_argument("--once", action="store_true", help="print the status once and exit")
    parser.add_argument(
        "--interval",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="time between two refreshes (default 2)",
    )
    add_access_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Show the status until Ctrl-C, or once if requested or if the output is not a terminal."""
    from rich.console import Console

    if not parsed.interval >= _INTERVAL_MIN:
        raise FlopwatchError(f"--interval must be at least {_INTERVAL_MIN} seconds")
    access = access_of(parsed)
    console = Console(highlight=False)
    status = fetch_status(access)
    if parsed.once or not console.is_terminal:
        from exporter.status.terminal import render

        console.print(render(status, width=console.width))
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        _follow(console, access, status, parsed.interval)
    return 0


def _follow(console: "Console", access: "Access", status: "Status", interval: float) -> None:
    """Refresh the view. If the daemon is unreachable, keep its last status, with a line on top."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

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
            except DocumentError as error:
                trouble = f"{error}; trying again"


def add_access_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all commands that read a daemon, except its address."""
    parser.add_argument(
        "--user",
        metavar="NAME",
        help=f"user name; the password comes from {_PASSWORD_VARIABLE} or a prompt",
    )
    parser.add_argument("--ca-file", metavar="FILE", help="certificates to trust for https, in PEM")
    parser.add_argument(
        "--insecure", action="store_true", help="accept any certificate from the daemon"
    )


def access_of(parsed: argparse.Namespace) -> Access:
    """How to reach the daemon that the flags name. May ask for the password."""
    return Access(
        url=parsed.url,
        user=parsed.user,
        password=_password(parsed.user),
        ca_file=parsed.ca_file,
        verify=not parsed.insecure,
    )


def _password(user: str | None) -> str | None:
    given = os.environ.get(_PASSWORD_VARIABLE)
    if user is None or given is not None or not sys.stdin.isatty():
        return given
    return getpass.getpass(f"Password of {user}: ")


def fetch_status(access: Access) -> Status:
    """The current status document. Raises DocumentError."""
    return fetch_document(access, STATUS_PATH, Status, API_VERSION, "status")


def fetch_document(
    access: Access, path: str, kind: type[_Document], version: int, name: str
) -> _Document:
    """The document at this path of a daemon. Raises DocumentError with one line for people.

    `version` is the version of the API that this program reads, `name` what messages call it.
    """
    url, shown = _address(access, path)
    try:
        text = fetch(
            url,
            timeout_seconds=access.timeout_seconds,
            limit_bytes=_LIMIT_BYTES,
            tls_context=_context(access) if url.startswith("https") else None,
        )
    except ScrapeError as error:
        raise DocumentError(f"{shown}: {_failure(error)}") from None
    try:
        # The version is read first: a document of another version may have any form.
        served = msgspec.json.decode(text, type=_Version).api_version
    except msgspec.DecodeError:
        raise DocumentError(f"{shown}: the response is not a flopwatch {name} document") from None
    if served != version:
        raise DocumentError(
            f"{shown}: serves version {served} of the {name} API, but this program reads version {version}"
        )
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise DocumentError(f"{shown}: its {name} document is malformed: {error}") from None


def _address(access: Access, document: str) -> tuple[str, str]:
    """The document's address, and how messages show it. A bare `host:port` is plain HTTP."""
    text = access.url if "://" in access.url else f"http://{access.url}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    # A user may give the page's address, the document's, or a proxy's prefix.
    path = parts.path.removesuffix(document).rstrip("/") + document
    words = f"{host}{path}"
    written = path.isascii() and words.isprintable() and " " not in words
    if parts.scheme not in {"http", "https"} or not host or not written:
        raise DocumentError("--url must be an address such as http://node:9907")
    place = f"[{host}]" if ":" in host else host
    place += "" if port is None else f":{port}"
    user = access.user or unquote(parts.username or "")
    password = access.password or unquote(parts.password or "")
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user else ""
    return f"{parts.scheme}://{login}{place}{path}", f"{parts.scheme}://{place}"


def _failure(error: ScrapeError) -> str:
    """What failed, in words for people."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {cause.verify_message} (see --ca-file)"
    if str(error) == f"status {HTTPStatus.UNAUTHORIZED}":
        return "user or password not accepted (see --user)"
    if error.reason in {Reason.HTTP_STATUS, Reason.REDIRECT}:
        return f"answered with {error}; is this the address of a flopwatch daemon?"
    return str(error).lower() if error.reason is Reason.CONNECTION else str(error)


def _context(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = (error.strerror or str(error)).lower()
        raise DocumentError(f"--ca-file {access.ca_file}: {reason}") from None
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
