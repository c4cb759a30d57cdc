"""`flopwatch`: the command line."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from exporter.errors import FlopwatchError
from exporter.version import REVISION, VERSION


# Subcommands in the order of the help. Each module has `add_parser(subparsers)`.
_COMMANDS = ("serve", "top", "check", "probe", "calibrate", "simulate", "config", "metrics")
# Those that run for months beside a server.
_LEAN_COMMANDS = ("serve",)

EXIT_USAGE = 2
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h
_TRACEBACK_VARIABLE = "FLOPWATCH_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; a mistake of the user's is one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="flopwatch",
        description="How many FLOPS each GPU delivers, and where the others went.",
    )
    parser.add_argument(
        "--version", action="version", version=f"flopwatch {VERSION} (revision {REVISION})"
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # A daemon does not carry the modules of the other subcommands: only the one asked for is loaded.
    given = next(
        (a for a in (sys.argv[1:] if arguments is None else arguments) if a[:1] != "-"), ""
    )
    if given in _LEAN_COMMANDS:
        _load_structlog_alone()
    for name in (given,) if given in _COMMANDS else _COMMANDS:
        importlib.import_module(f"exporter.cli.{name}").add_parser(subparsers)
    try:
        parsed = parser.parse_args(arguments)
        return int(parsed.run(parsed))
    except FlopwatchError as error:
        for line in str(error).splitlines():
            print(f"flopwatch: {line}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone (`flopwatch metrics | head`); say no more to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get(_TRACEBACK_VARIABLE):
            raise
        print(
            f"flopwatch: internal error: {type(error).__name__}: {error}; please report it, with "
            f"what {_TRACEBACK_VARIABLE}=1 prints",
            file=sys.stderr,
        )
        return EXIT_INTERNAL


def _load_structlog_alone() -> None:
    """Load structlog without what it imports for others: 12 MB that a daemon never uses.

    That is rich and greenlet, where they are installed, for colours and for contexts that nobody
    here has; and asyncio, for its coroutines' methods.
    """
    hidden: dict[str, Any] = {"rich": None, "greenlet": None, "asyncio": ModuleType("asyncio")}
    hidden = {name: stand_in for name, stand_in in hidden.items() if name not in sys.modules}
    sys.modules.update(hidden)
    importlib.import_module("structlog")
    for name in hidden:
        del sys.modules[name]


if __name__ == "__main__":
    sys.exit(main())
