"""`flopwatch`: the command line."""

import argparse
import contextlib
import errno
import gc
import importlib
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from exporter import version_line
from exporter.errors import FlopwatchError


_PROGRAM = "flopwatch"
# Subcommands in the order of the help, and their modules here, with `add_COMMAND(subparsers)`.
COMMANDS = {
    "serve": "daemon",
    "top": "top",
    "advise": "advise",
    "check": "daemon",
    "probe": "probe",
    "calibrate": "calibrate",
    "bill": "bill",
    "simulate": "simulate",
    "config": "daemon",
    "metrics": "daemon",
}
# Errors from writing to a full disk or to a closed terminal.
_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EBADF})

_STANDARD_ERROR = 2

EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h
EXIT_OUTPUT = 74  # EX_IOERR
EXIT_INTERRUPTED = 130  # the shell's exit code for SIGINT
_TRACEBACK_VARIABLE = "FLOPWATCH_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. A user error is one line on standard error, with its exit code."""
    try:
        _prepare_streams()
        code = _run(arguments)
        sys.stdout.flush()
    except FlopwatchError as error:
        for line in str(error).splitlines():
            print(f"flopwatch: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe (`flopwatch metrics | head`).
        _let_go_of_output()
        return 0
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS or error.filename is not None:
            return _internal(error)
        _let_go_of_output()
        print(f"flopwatch: standard output: {str(error.strerror).lower()}", file=sys.stderr)
        return EXIT_OUTPUT
    except Exception as error:  # noqa: BLE001  no traceback reaches a user
        return _internal(error)
    return code


class _Parser(argparse.ArgumentParser):
    """Reports unknown arguments in one line each, and when its help could not be written."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but a subcommand accepts no unknown arguments."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown and self.prog != _PROGRAM:
            flags = re.findall(r"--[\w.-]+", self.format_help())
            lines = [_unknown(word, self.prog, flags) for word in unknown if word[:1] == "-"]
            raise FlopwatchError("\n".join(lines or [f"unexpected argument {unknown[0]!r}"]))
        return parsed, unknown

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)


def build_parser(commands: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser for these subcommands. A daemon does not load the modules of the others."""
    parser = _Parser(
        prog=_PROGRAM,
        description="How many FLOPS each GPU delivers, and where the rest of the peak is lost.",
    )
    parser.add_argument("--version", action="version", version=version_line())
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in commands:
        module = importlib.import_module(f"exporter.cli.{COMMANDS[name]}")
        getattr(module, f"add_{name}")(subparsers)
    return parser


def _unknown(word: str, command: str, flags: list[str]) -> str:
    """An argument that no option has, with what was probably meant."""
    from exporter.config.load import variable_of
    from exporter.config.model import SCHEMA
    from flopwatch.option_parsers import nearest

    flag = word.partition("=")[0]
    path = flag.lstrip("-").replace("-", "_")
    if path in dict(SCHEMA.options()) and "--config.file" in flags:
        return f"{flag} is not a flag; set {path} in the configuration file, or {variable_of(path)}"
    meant = nearest(flag, flags)
    return f"unknown flag {flag}; " + (
        f"did you mean {meant}?" if meant else f"see {command} --help"
    )


def _run(arguments: Sequence[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    given = next((word for word in words if word[:1] != "-"), "")
    if given == "serve":  # it runs for months beside a server
        gc.disable()  # until all is loaded: collections would take a third of the import time
        _load_structlog_alone()
    parser = build_parser((given,) if given in COMMANDS else COMMANDS)
    try:
        parsed = parser.parse_args(arguments)
    finally:  # a failed write of the help text surfaces now, not at interpreter exit
        sys.stdout.flush()
    return int(parsed.run(parsed))


def _internal(error: Exception) -> int:
    if os.environ.get(_TRACEBACK_VARIABLE):
        raise error
    print(
        f"flopwatch: internal error: {type(error).__name__}: {error}; please report it, with "
        f"what {_TRACEBACK_VARIABLE}=1 prints",
        file=sys.stderr,
    )
    return EXIT_INTERNAL


def _prepare_streams() -> None:
    """Make standard output and error writable even if they are closed or not UTF-8."""
    # Otherwise the first socket would reuse the descriptor of a closed stream and receive its
    # output.
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= _STANDARD_ERROR:
        descriptor = os.dup(descriptor)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  stays open for the whole run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _let_go_of_output() -> None:
    """Write nothing more to standard output, not even at interpreter exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _load_structlog_alone() -> None:
    """Load structlog without imports unused here: rich, greenlet, and TLS for asyncio.

    They take 11 MB. Each can still be imported later.
    """
    hidden = [name for name in ("rich", "greenlet", "ssl") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None blocks the import
    importlib.import_module("structlog")
    for name in hidden:
        del sys.modules[name]


if __name__ == "__main__":
    sys.exit(main())
